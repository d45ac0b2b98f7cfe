"""The handover: the few milliseconds in which a workload's connections change nodes.

``machine`` is the state machine as a table, ``executor`` runs it, ``sides`` says what it needs of
the nodes, and ``source``, ``target`` and ``peer`` are those needs met in the network namespaces of
one machine.
"""

from mycoproxy.handover.executor import Handover, HandoverError, Step
from mycoproxy.handover.leading import Leading, Nodes
from mycoproxy.handover.machine import TABLE, Action, Event, State
from mycoproxy.handover.node import LocalNode
from mycoproxy.handover.orphans import until_finished
from mycoproxy.handover.peer import LocalPeer
from mycoproxy.handover.sides import (
    Connection,
    Known,
    Offer,
    Peer,
    Rehomed,
    Source,
    Target,
    Task,
    WentLive,
)
from mycoproxy.handover.source import LocalSource
from mycoproxy.handover.target import LocalTarget

__all__ = [
    "TABLE",
    "Action",
    "Connection",
    "Event",
    "Handover",
    "HandoverError",
    "Known",
    "Leading",
    "LocalNode",
    "LocalPeer",
    "LocalSource",
    "LocalTarget",
    "Nodes",
    "Offer",
    "Peer",
    "Rehomed",
    "Source",
    "State",
    "Step",
    "Target",
    "Task",
    "WentLive",
    "until_finished",
]
