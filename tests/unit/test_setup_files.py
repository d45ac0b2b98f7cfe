"""What the set-up relies on: the lock holds everything, with hashes, and names no index."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


def canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_lock_names_no_index() -> None:
    assert not re.search(r"://|^-", LOCK, re.MULTILINE)


def test_every_locked_package_has_hashes() -> None:
    entries = re.split(r"\n(?=[a-z])", LOCK)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)


def test_lock_covers_the_project_its_tools_and_its_build() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    wanted = (
        project["dependencies"]
        + project["optional-dependencies"]["dev"]
        + pyproject["build-system"]["requires"]
    )
    locked = {canonical(line) for line in LOCK.splitlines() if "==" in line}
    assert {canonical(requirement) for requirement in wanted} <= locked


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci/run"], ids=lambda path: path.name)
def test_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=10)


def test_setup_without_root_is_one_clear_line(tmp_path: Path) -> None:
    fake_id = tmp_path / "id"
    fake_id.write_text("#!/bin/sh\necho 1000\n")
    fake_id.chmod(0o755)
    result = subprocess.run(
        [ROOT / "scripts/setup.sh"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == "setup: failed: set-up needs root"
