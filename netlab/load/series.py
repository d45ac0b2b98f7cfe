"""Reads sample files (`netlab.load.samples`) as numpy arrays."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mycoproxy.errors import MycoError
from netlab.load.samples import FORMAT

REQUEST_DTYPE = np.dtype(
    {
        "names": ["connection", "bytes", "sent", "answered", "verdict"],
        "formats": ["<u4", "<u4", "<f8", "<f8", "u1"],
        "offsets": [0, 4, 8, 16, 24],
        "itemsize": 32,
    }
)
PROGRESS_DTYPE = np.dtype([("time", "<f8"), ("moved", "<u8"), ("acknowledged", "<u8")])

Records = npt.NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """One client's samples. ``records`` has `REQUEST_DTYPE` or `PROGRESS_DTYPE`, in time order of
    answers or progress; times are monotonic seconds."""

    kind: str
    name: str
    group: str
    records: Records


def read_samples(path: Path) -> Samples:
    """Read a sample file, complete or still growing. Raises ``MycoError`` if it is none."""
    raw = path.read_bytes()
    line_end = raw.find(b"\n")
    try:
        header = json.loads(raw[:line_end])
    except ValueError:
        header = {}
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise MycoError(f"{path}: a sample file ({FORMAT}) wanted; it begins {raw[:40]!r}")
    dtype = REQUEST_DTYPE if header["kind"] == "requests" else PROGRESS_DTYPE
    whole = (len(raw) - line_end - 1) // dtype.itemsize
    records = np.frombuffer(raw, dtype, count=whole, offset=line_end + 1)
    return Samples(header["kind"], header["name"], header["group"], records)


def as_waits(samples: Samples) -> Records:
    """Any samples as requests: for a stream, each step from one progress to the next is one wait.

    So "how long did the client get nothing" is asked of every kind of client in the same way.
    """
    if samples.kind == "requests":
        return samples.records
    steps = samples.records
    waits = np.zeros(max(len(steps) - 1, 0), REQUEST_DTYPE)
    waits["sent"] = steps["time"][:-1]
    waits["answered"] = steps["time"][1:]
    waits["bytes"] = np.diff(steps["moved"].astype(np.int64)).clip(min=0)
    return waits
