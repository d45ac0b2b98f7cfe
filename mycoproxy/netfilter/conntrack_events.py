"""Conntrack entries that have gone: the kernel tells whoever listens.

With the default of net.netfilter.nf_conntrack_events (2, since Linux 5.19) it tells only of entries
that were made while somebody listened. So nobody may rely on it: what was missed has to be looked
up.
"""

import errno
import socket
from typing import NamedTuple

from mycoproxy.netfilter import abi
from mycoproxy.netfilter.entry import ConntrackEntry, decode_entry

_NETLINK_ADD_MEMBERSHIP = 1  # linux/netlink.h
_NFNLGRP_CONNTRACK_DESTROY = 3  # linux/netfilter/nfnetlink_compat.h, nfnetlink.h
_PAYLOAD = 16 + 4  # struct nlmsghdr, struct nfgenmsg
_BUFFER_BYTES = 1 << 22
_RECEIVE_BYTES = 1 << 14


class Ended(NamedTuple):
    """TCP entries that have gone. ``missed``: others have, too, and nobody knows which."""

    entries: list[ConntrackEntry]
    missed: bool


class EndedEntries:
    """Listens in the namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            abi.NETLINK_NETFILTER,
        )
        try:
            self._netlink.setsockopt(socket.SOL_SOCKET, abi.SO_RCVBUFFORCE, _BUFFER_BYTES)
        except PermissionError:  # root of a user namespace only
            self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._netlink.bind((0, 0))
        self._netlink.setsockopt(
            abi.SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_CONNTRACK_DESTROY
        )

    def fileno(self) -> int:
        """Readable when there is something to ``read``."""
        return self._netlink.fileno()

    def read(self) -> Ended:
        """What has happened since the last time; does not wait."""
        found = Ended([], missed=False)
        while True:
            try:
                message = self._netlink.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = found._replace(missed=True)
                continue
            entry = decode_entry(message[_PAYLOAD:])
            if entry is not None:
                found.entries.append(entry)

    def close(self) -> None:
        """Listen no more."""
        self._netlink.close()
