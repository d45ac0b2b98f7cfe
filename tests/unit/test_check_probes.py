"""The pure parts of the probes: releases, capability masks, mounts."""

from pathlib import Path

import pytest

from mycoproxy.check import capabilities
from mycoproxy.check.container import freezer_mount, missing_capabilities
from mycoproxy.check.kernel import kernel_version, parse_release
from mycoproxy.check.mounts import mount_of, parse_mounts
from mycoproxy.check.report import UnmetError

V1 = """\
21 26 0:20 / /sys rw - sysfs sysfs rw
30 21 0:25 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:27 / /sys/fs/cgroup/freezer rw shared:10 master:1 - cgroup cgroup rw,freezer
"""
V2 = "31 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
PLACES = r"""
26 1 8:1 / / rw - ext4 /dev/sda1 rw
40 26 0:30 / /run rw - tmpfs tmpfs rw
41 26 0:31 / /mnt/a\040b rw - tmpfs tmpfs rw
42 26 0:32 / /mnt/images rw - tmpfs tmpfs rw
43 26 8:2 / /mnt/images rw - ext4 /dev/sdb rw
""".lstrip()


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-fc", (6, 18)), ("5.15.0-1-amd64", (5, 15)), ("6.1", (6, 1))],
)
def test_release_is_read(release: str, version: tuple[int, int]) -> None:
    assert parse_release(release) == version


def test_old_kernel_is_refused() -> None:
    with pytest.raises(UnmetError, match=r"5\.10\.0-21"):
        kernel_version("5.10.0-21-amd64")


def test_two_digit_minor_version_is_newer_than_one_digit() -> None:
    assert kernel_version("5.15.1") == "5.15.1"
    with pytest.raises(UnmetError):
        kernel_version("5.9.1")


def test_capabilities_are_read_from_the_status() -> None:
    status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\n"
    mask = capabilities.effective_capabilities(status)
    assert not mask >> capabilities.CAP_SYS_RESOURCE & 1
    assert mask >> capabilities.CAP_SYS_ADMIN & 1


def test_missing_capabilities_are_named() -> None:
    assert missing_capabilities((1 << 41) - 1) == []
    without = (1 << 41) - 1 & ~(1 << capabilities.CAP_SYS_PTRACE)
    assert missing_capabilities(without) == ["SYS_PTRACE"]


def test_freezer_of_version_1_is_preferred_where_both_are_mounted() -> None:
    assert freezer_mount(parse_mounts(V1)) == (1, Path("/sys/fs/cgroup/freezer"))
    assert freezer_mount(parse_mounts(V2)) == (2, Path("/sys/fs/cgroup"))


def test_no_cgroups_is_said() -> None:
    with pytest.raises(UnmetError, match="no cgroup file system"):
        freezer_mount(parse_mounts(PLACES))


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/run/x", "/run", "tmpfs"),
        ("/running", "/", "ext4"),
        ("/mnt/a b/c", "/mnt/a b", "tmpfs"),
        ("/mnt/images", "/mnt/images", "ext4"),  # the later mount hides the earlier one
    ],
)
def test_mount_of_a_path(path: str, point: str, kind: str) -> None:
    mount = mount_of(Path(path), parse_mounts(PLACES))
    assert mount is not None
    assert (mount.point, mount.kind) == (Path(point), kind)
