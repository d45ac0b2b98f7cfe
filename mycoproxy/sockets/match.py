"""Which socket of the target is which socket of the source. A pure function.

Two are the same if they share any name (inner pid, descriptor): a restored task has the
descriptors that it had. A socket that many tasks share has many names, one is enough; but two
sockets on one side that share names with the same one on the other mean that the two sides are not
copies of each other, and that is an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mycoproxy.errors import MycoError
from mycoproxy.sockets.names import DescriptorName


class Named(Protocol):
    """Anything that has names."""

    @property
    def names(self) -> tuple[DescriptorName, ...]: ...


S = TypeVar("S", bound=Named)
T = TypeVar("T", bound=Named)


class MatchError(MycoError):
    """The two sides are not copies of each other."""


@dataclass(frozen=True, slots=True)
class Matching(Generic[S, T]):
    """Pairs, in the source's order, and those of the source that the target has not."""

    pairs: tuple[tuple[S, T], ...]
    unmatched_source: tuple[S, ...]

    @property
    def missing(self) -> tuple[DescriptorName, ...]:
        """The names of the source's sockets that the target does not have."""
        return tuple(name for socket in self.unmatched_source for name in socket.names)


class Matcher(Generic[T]):
    """The target's sockets, of which each is paired once. Raises ``MatchError``."""

    def __init__(self, target: Iterable[T]) -> None:
        self._targets = tuple(target)
        self._owner: dict[DescriptorName, int] = {}
        self._taken: set[int] = set()
        for index, candidate in enumerate(self._targets):
            for name in candidate.names:
                if self._owner.setdefault(name, index) != index:
                    raise MatchError(f"{name} is named by two sockets of the target")

    def match(self, source: Iterable[S]) -> Matching[S, T]:
        """Pair these, which may be a part of the source's. Raises ``MatchError``."""
        owner = self._owner
        pairs: list[tuple[S, T]] = []
        unmatched: list[S] = []
        for wanted in source:
            found = {owner[name] for name in wanted.names if name in owner}
            if not found:
                unmatched.append(wanted)
                continue
            if len(found) > 1 or found & self._taken:
                shared = ", ".join(str(name) for name in wanted.names if name in owner)
                raise MatchError(f"{shared}: one socket on one side is two on the other")
            (index,) = found
            self._taken.add(index)
            pairs.append((wanted, self._targets[index]))
        return Matching(pairs=tuple(pairs), unmatched_source=tuple(unmatched))

    @property
    def unmatched(self) -> tuple[T, ...]:
        """Those that were not paired so far."""
        return tuple(
            candidate for index, candidate in enumerate(self._targets) if index not in self._taken
        )


def match(source: Iterable[S], target: Iterable[T]) -> Matching[S, T]:
    """Pair sockets that share a name. Raises ``MatchError`` if that is ambiguous."""
    return Matcher(target).match(source)
