"""Benchmarks: what this project does against the usual way, in one run on one machine."""

import asyncio
import functools
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from mycoproxy.check.criu import find_criu
from netlab import topology
from netlab.lab import Lab
from netlab.load.process import LoadProcess
from netlab.moving import move_pod
from netlab.pods import Pod

Progress = Callable[[str], None]

_TIMEOUT = 60.0  # seconds that one runc command may take


def runtime(count: int, progress: Progress) -> dict[str, object]:
    """The freeze of a redis with 100 MB and no connection: runc alone against runc at the gate.

    ``runc``: ``runc pause``, ``runc checkpoint``, ``runc restore``, as it is used by hand, images
    on the same tmpfs, nothing sent anywhere, no network lock. ``gate``: a whole move of this
    project, with sending and handover. Medians in milliseconds, over ``count`` rounds of each,
    taken in turn.
    """
    lab = Lab.up(topology.load(Path("demo")), "bench")
    try:
        lab.start_pod("redis")
        fill(lab)
        plain: list[float] = []
        gated: list[float] = []
        for number in range(count):
            here = lab.pod("redis").node
            there = "beta" if here == "alpha" else "alpha"
            plain.append(_plain(lab, there))
            report = asyncio.run(move_pod(lab, "redis", there))
            gated.append(report.freeze_ms)
            progress(f"round {number + 1}: runc {plain[-1]:.0f} ms, gate {gated[-1]:.0f} ms")
    finally:
        lab.down()
    return {
        "rounds": count,
        "runc_ms": round(median(plain), 1),
        "gate_ms": round(median(gated), 1),
        "ratio": round(median(gated) / median(plain), 3),
        "each": [[round(a, 1), round(b, 1)] for a, b in zip(plain, gated, strict=True)],
    }


def fill(lab: Lab) -> None:
    """Give redis its 100 MB of keys."""
    host = str(lab.topology.service("redis").addresses[0])
    start = functools.partial(lab.popen, "client")
    loading = LoadProcess(start, ["preload", "--host", host], log=lab.logs / "preload.log")
    loading.wait_ready()
    loading.stop(60)


def _plain(lab: Lab, node: str) -> float:
    """The freeze with runc alone, milliseconds. The pod stays where it is."""
    source = lab.pod("redis")
    target = lab.make_sandbox("redis", node)
    images = lab.images / "plain"
    images.mkdir()
    options = images / "criu.conf"
    options.write_text("network-lock skip\n")
    environment = {**find_criu().environment(), "CRIU_CONFIG_FILE": str(options)}
    try:
        begin = time.monotonic()
        _runc(environment, source, "pause", source.container_id)
        arguments = ["--leave-running", "--image-path", str(images), source.container_id]
        _runc(environment, source, "checkpoint", *arguments)
        arguments = ["--detach", "--bundle", str(target.bundle), "--image-path", str(images)]
        _runc(environment, target, "restore", *arguments, target.container_id)
        frozen = time.monotonic() - begin
    finally:
        _runc(environment, source, "resume", source.container_id)
        lab.remove_pod(target)
        for image in images.iterdir():
            image.unlink()
        images.rmdir()
    return frozen * 1e3


def _runc(environment: Mapping[str, str], pod: Pod, *arguments: str) -> None:
    subprocess.run(
        ["runc", "--root", str(pod.runc_root), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT,
        check=True,
    )
