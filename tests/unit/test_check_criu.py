"""Which CRIU is taken, and what is said when there is none. The binaries are small scripts."""

from pathlib import Path

import pytest

from mycoproxy.check import criu
from mycoproxy.check.criu import CriuBinary, find_criu, parse_version, version_text
from mycoproxy.errors import RefusedError


def fake_criu(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'Version: {version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty cache and an empty PATH."""
    return {"MYCOPROXY_CACHE": str(tmp_path / "cache"), "PATH": str(tmp_path / "path")}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("Version: 4.2\n", (4, 2, 0)),
        ("Version: 4.2.1\nGitID: v4.2.1-3\n", (4, 2, 1)),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1\nspec: 1.0.2-dev\n", (1, 1, 5)),
        ("runc version 1.2.0-rc.1\n", (1, 2, 0)),
        ("no such thing", None),
        ("", None),
    ],
)
def test_version_is_read(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


def test_version_is_written_as_criu_writes_it() -> None:
    assert [version_text(v) for v in [(4, 2, 0), (4, 2, 1)]] == ["4.2", "4.2.1"]


def test_cache_comes_before_path(tmp_path: Path, environ: dict[str, str]) -> None:
    cached = fake_criu(tmp_path / "cache/bin/criu", "4.2.1")
    fake_criu(tmp_path / "path/criu", "4.3")
    assert find_criu(environ).path == cached


def test_path_is_used_when_the_cache_is_too_old(tmp_path: Path, environ: dict[str, str]) -> None:
    fake_criu(tmp_path / "cache/bin/criu", "4.1.1")
    system = fake_criu(tmp_path / "path/criu", "4.3")
    found = find_criu(environ)
    assert (found.path, found.version) == (system, (4, 3, 0))


def test_named_binary_is_never_passed_over(tmp_path: Path, environ: dict[str, str]) -> None:
    fake_criu(tmp_path / "path/criu", "4.3")
    environ["MYCOPROXY_CRIU"] = str(fake_criu(tmp_path / "old", "3.17"))
    with pytest.raises(RefusedError, match=r"CRIU 3\.17 found .*; 4\.2 or later .*make setup"):
        find_criu(environ)


def test_no_criu_at_all_says_what_to_do(environ: dict[str, str]) -> None:
    with pytest.raises(RefusedError, match=r"no CRIU found; 4\.2 or later is needed \(make setup"):
        find_criu(environ)


def test_binary_that_does_not_start_is_refused(tmp_path: Path, environ: dict[str, str]) -> None:
    broken = tmp_path / "broken"
    broken.write_text("not a program")
    broken.chmod(0o755)
    environ["MYCOPROXY_CRIU"] = str(broken)
    with pytest.raises(RefusedError, match="does not start"):
        find_criu(environ)


@pytest.mark.parametrize("capable", [True, False])
def test_fallback_is_preloaded_only_where_the_capability_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environ: dict[str, str], capable: bool
) -> None:
    monkeypatch.setattr(criu, "has_capability", lambda _number: capable)
    fake_criu(tmp_path / "cache/bin/criu", "4.2.1")
    library = tmp_path / "cache/lib/criu_rlimits.so"
    library.parent.mkdir()
    library.touch()
    assert find_criu(environ).preload == (None if capable else library)


def test_environment_puts_this_criu_first() -> None:
    found = CriuBinary(path=Path("/c/bin/criu"), version=(4, 2, 1), preload=Path("/c/lib/x.so"))
    environment = found.environment({"PATH": "/bin", "A": "b"})
    assert environment == {"PATH": "/c/bin:/bin", "A": "b", "LD_PRELOAD": "/c/lib/x.so"}
    bare = CriuBinary(path=Path("/c/bin/criu"), version=(4, 2, 1), preload=None)
    assert "LD_PRELOAD" not in bare.environment({})
