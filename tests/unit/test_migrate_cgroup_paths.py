"""Which cgroup a task is in, from the text of /proc/PID/cgroup of several kinds of machine."""

import pytest

from migrate.runtime.cgroup import CgroupError, freezer_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0::/user.slice/a.scope\n", (False, "/user.slice/a.scope")),
        ("7:freezer:/pod/c\n3:cpu,cpuacct:/x\n0::/y\n", (True, "/pod/c")),
        ("4:cpu,freezer:/pod\n", (True, "/pod")),
        ("9:name=systemd:/s\n0::/unified\n", (False, "/unified")),
        ("6:freezer:/with:colon/c\n", (True, "/with:colon/c")),
    ],
    ids=["v2", "hybrid", "co-mounted", "v2-beside-a-named-hierarchy", "colon-in-the-path"],
)
def test_the_freezer_s_path_is_found(text: str, found: tuple[bool, str]) -> None:
    assert freezer_path(text) == found


@pytest.mark.parametrize("text", ["", "9:name=systemd:/s\n3:cpu:/x\n"])
def test_a_machine_without_a_freezer_is_named_as_such(text: str) -> None:
    with pytest.raises(CgroupError, match="neither a v1 freezer nor a v2 hierarchy"):
        freezer_path(text)
