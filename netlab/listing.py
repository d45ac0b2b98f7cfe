"""What ``netlab ps`` tells: the labs on this machine, their nodes and pods, as plain data."""

from typing import TypedDict

from mycoproxy.errors import MycoError, RefusedError
from netlab import inventory
from netlab.lab import Lab
from netlab.wire import delayed


class PodEntry(TypedDict):
    """A pod's place. ``pid`` is its init's, ``None`` if nothing runs there."""

    name: str
    node: str
    addresses: list[str]
    port: int
    pid: int | None
    netns: str


class NodeEntry(TypedDict):
    """A node and the path of its network namespace."""

    name: str
    netns: str


class WireEntry(TypedDict):
    """The process of the delayed links. ``pid`` is ``None`` if it does not answer.

    ``dropped``: frames that it had no room for, or found the other end's interface down for.
    """

    pid: int | None
    links: int
    dropped: int


class LabEntry(TypedDict):
    """A lab. ``state`` is ``up``, or ``remains`` if a crash left only parts of it.

    ``wire`` is ``None`` if no link has a delay.
    """

    name: str
    state: str
    wire: WireEntry | None
    nodes: list[NodeEntry]
    pods: list[PodEntry]


def entry(name: str) -> LabEntry:
    """What there is of one lab."""
    try:
        lab = Lab.attach(name)
    except MycoError:
        return LabEntry(name=name, state="remains", wire=None, nodes=[], pods=[])
    nodes = [NodeEntry(name=node.name, netns=str(node.netns)) for node in lab.nodes]
    pods = []
    for pod in lab.sandboxes():
        try:
            pid: int | None = pod.init_pid
        except RefusedError:
            pid = None
        pods.append(
            PodEntry(
                name=pod.name,
                node=pod.node,
                addresses=list(pod.addresses),
                port=pod.port,
                pid=pid,
                netns=str(pod.netns),
            )
        )
    wire = _wire(lab)
    there = all(node.netns.exists() for node in lab.nodes)
    there = there and (wire is None or wire["pid"] is not None)
    state = "up" if there else "remains"
    return LabEntry(name=name, state=state, wire=wire, nodes=nodes, pods=pods)


def _wire(lab: Lab) -> WireEntry | None:
    count = len(lab.topology.delayed_links())
    if not count:
        return None
    answer = delayed.ask(lab.layout.wire)
    if answer is None:
        return WireEntry(pid=None, links=count, dropped=0)
    dropped = sum(counters.dropped for counters in answer.links)
    return WireEntry(pid=answer.pid, links=count, dropped=dropped)


def everything() -> list[LabEntry]:
    """All labs."""
    return [entry(name) for name in inventory.labs()]


def as_text(labs: list[LabEntry]) -> str:
    """A table: one line for each lab, node and pod."""
    rows = [("LAB", "STATE", "NODE", "POD", "PID", "ADDRESSES")]
    for lab in labs:
        rows.append((lab["name"], lab["state"], "", "", "", ""))
        wire = lab["wire"]
        if wire is not None:
            pid = "-" if wire["pid"] is None else str(wire["pid"])
            rows.append(("", "", "(wire)", "", pid, f"{wire['links']} delayed links"))
        for node in lab["nodes"]:
            rows.append(("", "", node["name"], "", "", ""))
            for pod in lab["pods"]:
                if pod["node"] == node["name"]:
                    pid = "-" if pod["pid"] is None else str(pod["pid"])
                    rows.append(("", "", "", pod["name"], pid, " ".join(pod["addresses"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
