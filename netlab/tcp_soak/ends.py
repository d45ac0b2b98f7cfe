"""A connection's two ends, one of which may be moved under the hands of whoever uses it."""

import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class End:
    """A non-blocking TCP socket; ``sock`` keeps its descriptor number when the connection moves.

    What CRIU would restore for a task is kept here: the options that were set (`set_option`) and
    the epoll registrations (`watch`).
    """

    sock: socket.socket
    _options: dict[tuple[int, int], int | bytes] = field(default_factory=dict)
    _watched: dict[int, tuple[select.epoll, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sock.setblocking(False)

    @property
    def is_closed(self) -> bool:
        """`close` was called."""
        return self.sock.fileno() < 0

    def set_option(self, level: int, name: int, value: int | bytes) -> None:
        """setsockopt(2)."""
        self.sock.setsockopt(level, name, value)
        self._options[level, name] = value

    def watch(self, epoll: select.epoll, events: int) -> None:
        """Register with ``epoll``, for ``events``, across moves."""
        epoll.register(self.sock, events)
        self._watched[epoll.fileno()] = (epoll, events)

    def rewatch(self, epoll: select.epoll, events: int) -> None:
        """Change what `watch` asked for."""
        epoll.modify(self.sock, events)
        self._watched[epoll.fileno()] = (epoll, events)

    def unwatch(self, epoll: select.epoll) -> None:
        """Undo `watch`."""
        del self._watched[epoll.fileno()]
        epoll.unregister(self.sock)

    def exchange(self, fresh: socket.socket) -> socket.socket:
        """From now on the descriptor means ``fresh``, which is closed. Returns what it meant."""
        for epoll, _ in self._watched.values():
            epoll.unregister(self.sock)
        before = self.sock.dup()
        os.dup2(fresh.fileno(), self.sock.fileno(), inheritable=False)
        fresh.close()
        for (level, name), value in self._options.items():
            self.sock.setsockopt(level, name, value)
        for epoll, events in self._watched.values():
            epoll.register(self.sock, events)
        return before

    def close(self) -> None:
        """close(2); may be called again."""
        self.sock.close()


@dataclass(frozen=True)
class Pair:
    """Two connected ends. ``move`` moves one of them (or does nothing); either may be it."""

    left: End
    right: End
    move: Callable[[], None]

    def flipped(self) -> "Pair":
        """The same, seen from the other end."""
        return Pair(self.right, self.left, self.move)

    def close(self) -> None:
        """Close both ends."""
        self.left.close()
        self.right.close()
