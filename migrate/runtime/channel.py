"""The connection that a checkpoint takes from the source node to the target node.

It goes over the nodes' own network, and is made in the preflight: a target that cannot be reached
is found out before anything has changed.
"""

import socket

from mycoproxy.errors import RefusedError
from mycoproxy.namespaces import NamespaceWorker


def connect(
    source: NamespaceWorker, target: NamespaceWorker, address: str, *, timeout: float = 3.0
) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from the source node to ``address`` of the target node; (ours, theirs).

    Raises ``RefusedError`` if the target cannot be reached within ``timeout`` seconds.
    """
    try:
        listener = target.call(
            socket.create_server,
            (address, 0),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            backlog=1,
        )
    except OSError as error:
        raise RefusedError(f"{address} is no address of the target node: {error}") from error
    with listener:
        listener.settimeout(timeout)
        where = listener.getsockname()[:2]
        try:
            ours = source.call(socket.create_connection, where, timeout=timeout)
            try:
                theirs = _accept(listener, ours)
            except OSError:
                ours.close()
                raise
        except OSError as error:
            raise RefusedError(
                f"target node unreachable: no connection to {address} from the source node "
                f"({error or 'timed out'})"
            ) from error
    for end in (ours, theirs):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def _accept(listener: socket.socket, ours: socket.socket) -> socket.socket:
    """The other end of ``ours``, and of nobody else's connection."""
    while True:
        theirs, _ = listener.accept()
        if theirs.getpeername() == ours.getsockname():
            return theirs
        theirs.close()
