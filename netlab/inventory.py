"""Everything of a lab, found by its name alone, and its removal.

Nothing here trusts the lab's own record: after a crash, a kill -9 or half a removal, what is left
is what carries the name. Removing is in such an order that each step leaves the rest findable:
processes, cgroups, mounts, tables, namespaces, and the runtime directory last.
"""

import shutil
import time
from pathlib import Path

from mycoproxy.errors import MycoError
from netlab import cgroups, layout, mounts, netns, processes, services
from netlab.layout import Layout

_TIMEOUT = 10.0  # seconds


def labs() -> list[str]:
    """The names of all labs of which there is anything, up or not."""
    names = {
        name
        for path in _entries(layout.NETNS)
        if (name := layout.lab_of_namespace(path.name)) is not None
    }
    names |= {path.name for path in _entries(layout.RUN) if path.is_dir()}
    for hierarchy in cgroups.hierarchies():
        top = hierarchy.target / layout.CGROUP
        names |= {path.name for path in _entries(top) if path.is_dir()}
    return sorted(names)


def leftovers(name: str) -> list[str]:
    """What there is of the lab, one line for people each; empty if there is nothing."""
    lab = Layout(name)
    found = [f"process {pid} {command}" for pid, command in processes.of_lab(lab).items()]
    found += [f"cgroup {cgroup.label}" for cgroup in cgroups.of_lab(name)]
    found += [f"mount {target}" for target in mounts.under(lab.run)]
    found += [f"nft table {table}" for table in services.tables_of_lab(lab.nft_table)]
    found += [f"namespace {path.name}" for path in netns.of_lab(name)]
    if lab.run.exists():
        found.append(f"directory {lab.run}")
    return found


def remove(name: str, *, timeout: float = _TIMEOUT) -> list[str]:
    """Remove everything of the lab; return what there was. Nothing is fine, so is a second time.

    Raises ``MycoError`` if a process does not die or a cgroup stays busy within ``timeout``
    seconds.
    """
    lab = Layout(name)
    found = leftovers(name)
    if found:
        deadline = time.monotonic() + timeout
        processes.kill(lab, deadline=deadline)
        cgroups.remove(name, deadline=deadline)
        # CRIU's cgroup yard (.criu.cgyard.XXXXXX) is among these: CRIU makes it where it works.
        for target in mounts.under(lab.run):
            mounts.detach(target)
        for table in services.tables_of_lab(lab.nft_table):
            services.apply(f"delete table {table}")
        for path in netns.of_lab(name):
            netns.remove(path)
        _remove_directory(lab.run)
    netns.remove_own_mount()
    return found


def _remove_directory(directory: Path) -> None:
    """Remove the runtime directory, which must not hold a mount: it would be emptied too."""
    left = mounts.under(directory)
    if left:
        raise MycoError(f"still mounted: {', '.join(map(str, left))}")
    if directory.exists():
        shutil.rmtree(directory)


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
