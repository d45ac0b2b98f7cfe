"""What ``netlab ps`` tells: the labs on this machine, their nodes and pods, as plain data."""

from typing import TypedDict

from mycoproxy.errors import MycoError, RefusedError
from netlab import inventory
from netlab.lab import Lab


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


class LabEntry(TypedDict):
    """A lab. ``state`` is ``up``, or ``remains`` if a crash left only parts of it."""

    name: str
    state: str
    nodes: list[NodeEntry]
    pods: list[PodEntry]


def entry(name: str) -> LabEntry:
    """What there is of one lab."""
    try:
        lab = Lab.attach(name)
    except MycoError:
        return LabEntry(name=name, state="remains", nodes=[], pods=[])
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
    there = all(node.netns.exists() for node in lab.nodes)
    return LabEntry(name=name, state="up" if there else "remains", nodes=nodes, pods=pods)


def everything() -> list[LabEntry]:
    """All labs."""
    return [entry(name) for name in inventory.labs()]


def as_text(labs: list[LabEntry]) -> str:
    """A table: one line for each lab, node and pod."""
    rows = [("LAB", "STATE", "NODE", "POD", "PID", "ADDRESSES")]
    for lab in labs:
        rows.append((lab["name"], lab["state"], "", "", "", ""))
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
