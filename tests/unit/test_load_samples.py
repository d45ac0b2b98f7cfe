"""Sample files and summaries: what a client writes is what the lab reads."""

from pathlib import Path

import pytest

from mycoproxy.errors import MycoError
from netlab.load.samples import SampleWriter, Verdict
from netlab.load.series import as_waits, read_samples
from netlab.load.summary import ClientSummary, LostConnection


def write(path: Path) -> None:
    with SampleWriter(path, kind="requests", name="c", group="direct") as out:
        out.request(3, 10.5, 10.75, Verdict.RIGHT, 100)
        out.request(4, 11.0, 12.0, Verdict.UNANSWERED, 0)


def test_requests_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "s")
    samples = read_samples(tmp_path / "s")
    assert (samples.kind, samples.name, samples.group) == ("requests", "c", "direct")
    assert samples.records.tolist() == [(3, 100, 10.5, 10.75, 0), (4, 0, 11.0, 12.0, 2)]


@pytest.mark.parametrize("cut", range(1, 32))
def test_an_incomplete_last_record_is_left_out(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "s")
    whole = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(whole[:-cut])
    assert len(read_samples(tmp_path / "s").records) == 1


@pytest.mark.parametrize("content", [b"", b"hello\n", b'{"a": 1}\n', b"[]\n"])
def test_another_file_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(MycoError, match=str(tmp_path / "s")):
        read_samples(tmp_path / "s")


def test_the_steps_of_a_stream_become_waits(tmp_path: Path) -> None:
    with SampleWriter(tmp_path / "s", kind="progress", name="d", group="service") as out:
        for moved in (10, 30, 60):
            out.progress(moved, moved)
    waits = as_waits(read_samples(tmp_path / "s"))
    assert waits["bytes"].tolist() == [20, 30]
    assert (waits["answered"] >= waits["sent"]).all()


def test_a_stream_without_progress_has_no_waits(tmp_path: Path) -> None:
    SampleWriter(tmp_path / "s", kind="progress", name="d", group="service").close()
    assert len(as_waits(read_samples(tmp_path / "s"))) == 0


def summary(**changed: object) -> ClientSummary:
    values: dict[str, object] = {
        "client": "checker",
        "name": "c",
        "group": "service",
        "connections": 2,
        "local_ports": (1, 2),
        "lost": (),
        "requests": 5,
        "bytes_checked": 10,
        "bytes_wrong": 0,
        "wrong": (),
        "longest_wait_s": (0.1, 0.2),
        "started": 1.0,
        "ended": 2.0,
        "stopped_by": "SIGTERM",
        "details": {"a": 1},
    }
    return ClientSummary(**{**values, **changed})  # type: ignore[arg-type]


def test_a_summary_survives_json() -> None:
    lost = summary(lost=(LostConnection(1, "end of stream", 3.5),))
    assert ClientSummary.from_json(lost.to_json()) == lost
    assert (summary().ok, lost.ok, summary(bytes_wrong=1).ok) == (True, False, False)


@pytest.mark.parametrize("line", ["", "x", "[]", "{}", '{"client": "checker", "lost": []}'])
def test_what_is_no_summary_is_refused(line: str) -> None:
    with pytest.raises(MycoError, match="summary wanted"):
        ClientSummary.from_json(line)
