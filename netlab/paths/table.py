"""Every path between the workload and somebody else in topology ``kube-service``, as data.

A row says who opens the connection, how it is dialled, whom the other end sees, and how it is to be
re-homed when the workload leaves alpha for beta. The strategies are those of
``mycoproxy.netfilter.paths``; "nothing" is for what moves with both of its ends.
"""

from dataclasses import dataclass
from typing import Literal

WORKLOAD = "workload"

Dials = Literal["virtual", "node-port", "external", "address", "loopback"]
Strategy = Literal["rebind", "translate", "anchor", "carry", "nothing"]
Activity = Literal["sending", "receiving", "idle"]

#: What the end outside the workload does: streams to it, is streamed to, or waits with a question.
ACTIVITIES: tuple[Activity, ...] = ("sending", "receiving", "idle")


_COMMON_PORT = 20_000  # below those that the kernel chooses from


@dataclass(frozen=True, slots=True)
class ClientPath:
    """A row. ``opener`` and ``acceptor`` are nodes or pods of the topology.

    What is dialled: the virtual address of ``service``, its node port on ``entry``, its external
    address, which leads to ``entry``, the acceptor's own address, or loopback. ``seen_as`` is the
    node whose address the acceptor sees, because it masquerades; None: the opener's own address.
    ``from_port``: the opener comes from it, or one of the next five; None: from any.
    ``port_is_taken``: by a row before it, so that NAT lets the acceptor see another one.
    """

    name: str
    description: str
    opener: str
    acceptor: str
    dials: Dials
    strategy: Strategy
    service: str | None = None
    entry: str | None = None
    seen_as: str | None = None
    from_port: int | None = None
    port_is_taken: bool = False

    @property
    def client(self) -> str:
        """The end outside the workload; of a connection in the workload itself, the opener."""
        return self.acceptor if self.outgoing else self.opener

    @property
    def outgoing(self) -> bool:
        """The workload opens it, to somebody else."""
        return self.opener == WORKLOAD != self.acceptor


def _from_pod(node: str) -> list[ClientPath]:
    pod = f"client-{node}"
    return [
        ClientPath(
            f"pod-{node}-virtual",
            f"a pod on {node} through the Service: DNAT on {node}",
            *(pod, WORKLOAD, "virtual", "rebind"),
            service="workload",
        ),
        ClientPath(
            f"pod-{node}-address",
            f"a pod on {node} that dialled the workload's address",
            *(pod, WORKLOAD, "address", "translate"),
        ),
    ]


def _from_host(node: str) -> list[ClientPath]:
    return [
        ClientPath(
            f"host-{node}-virtual",
            f"a process of {node} itself through the Service: DNAT and masquerading there",
            *(node, WORKLOAD, "virtual", "rebind"),
            service="workload",
            seen_as=node,
        ),
        ClientPath(
            f"host-{node}-address",
            f"a process of {node} itself that dialled the workload's address",
            *(node, WORKLOAD, "address", "translate"),
        ),
        ClientPath(
            f"outside-node-port-{node}",
            f"from outside by the node port of {node}: DNAT and masquerading there",
            *("outside", WORKLOAD, "node-port", "rebind"),
            service="workload",
            entry=node,
            seen_as=node,
        ),
    ]


def _from_elsewhere() -> list[ClientPath]:
    return [
        ClientPath(
            "outside-local-alpha",
            "from outside by a node port with externalTrafficPolicy Local: DNAT on the pod's node, "
            "through which it has to come for as long as it lives",
            *("outside", WORKLOAD, "node-port", "anchor"),
            service="workload-local",
            entry="alpha",
        ),
        ClientPath(
            "outside-load-balancer",
            "from outside by a load balancer's address, which comes to gamma: DNAT and "
            "masquerading there",
            *("outside", WORKLOAD, "external", "rebind"),
            service="workload",
            entry="gamma",
            seen_as="gamma",
        ),
        ClientPath(
            "routed-address",
            "a host outside, with a route to the pods, that dialled the workload's address",
            *("routed", WORKLOAD, "address", "anchor"),
        ),
        ClientPath(
            "outside-same-port",
            "from outside by a node port with externalTrafficPolicy Local, from the port of ...",
            *("outside", WORKLOAD, "node-port", "anchor"),
            service="workload-local",
            entry="alpha",
            from_port=_COMMON_PORT,
        ),
        ClientPath(
            "routed-same-port",
            "... a host outside that dialled the workload's address: both come by alpha's address",
            *("routed", WORKLOAD, "address", "anchor"),
            from_port=_COMMON_PORT,
        ),
        ClientPath(
            "pod-gamma-virtual-same-port",
            "a pod on gamma through the Service, from the port of ...",
            *("client-gamma", WORKLOAD, "virtual", "rebind"),
            service="workload",
            from_port=_COMMON_PORT,
        ),
        ClientPath(
            "pod-gamma-address-same-port",
            "... another one of its to the workload's address: NAT on gamma gives it another port",
            *("client-gamma", WORKLOAD, "address", "rebind"),
            from_port=_COMMON_PORT,
            port_is_taken=True,
        ),
        ClientPath(
            "self-virtual",
            "the workload to itself through its Service: DNAT and masquerading on its node",
            *(WORKLOAD, WORKLOAD, "virtual", "carry"),
            service="workload",
            seen_as="alpha",
        ),
        ClientPath(
            "self-address",
            "the workload to its own address",
            *(WORKLOAD, WORKLOAD, "address", "nothing"),
        ),
        ClientPath(
            "self-loopback",
            "the workload to itself over loopback",
            *(WORKLOAD, WORKLOAD, "loopback", "nothing"),
        ),
    ]


def _outgoing() -> list[ClientPath]:
    pods = {"alpha": "client-alpha", "beta": "client-beta", "gamma": "backend"}
    return [
        ClientPath(
            "to-virtual",
            "the workload to another Service: DNAT on its node",
            *(WORKLOAD, "backend", "virtual", "carry"),
            service="backend",
        ),
        *(
            ClientPath(
                f"to-pod-{node}",
                f"the workload to the address of a pod on {node}",
                *(WORKLOAD, pod, "address", "translate"),
            )
            for node, pod in pods.items()
        ),
        ClientPath(
            "to-node-alpha",
            "the workload to a process of its own node",
            *(WORKLOAD, "alpha", "address", "translate"),
        ),
        *(
            ClientPath(
                f"to-node-{node}",
                f"the workload to a process of {node} itself, masqueraded by its own node",
                *(WORKLOAD, node, "address", "anchor"),
                seen_as="alpha",
            )
            for node in ("beta", "gamma")
        ),
        ClientPath(
            "to-outside",
            "the workload to a host outside, masqueraded by its own node",
            *(WORKLOAD, "outside", "address", "anchor"),
            seen_as="alpha",
        ),
    ]


_NODES = ("alpha", "beta", "gamma")

#: All of them. "alpha" is the source of the move, "beta" its target, "gamma" neither.
PATHS: tuple[ClientPath, ...] = (
    *(row for node in _NODES for row in _from_pod(node)),
    *(row for node in _NODES for row in _from_host(node)),
    *_from_elsewhere(),
    *_outgoing(),
)


def path(name: str) -> ClientPath:
    """The row of that name. Raises ``KeyError``."""
    return {row.name: row for row in PATHS}[name]
