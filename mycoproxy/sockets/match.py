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
    """Pairs, in the source's order, and what is left over on either side."""

    pairs: tuple[tuple[S, T], ...]
    unmatched_source: tuple[S, ...]
    unmatched_target: tuple[T, ...]

    @property
    def missing(self) -> tuple[DescriptorName, ...]:
        """The names of the source's sockets that the target does not have."""
        return tuple(name for socket in self.unmatched_source for name in socket.names)

    @property
    def surplus(self) -> tuple[DescriptorName, ...]:
        """The names of the target's sockets that the source does not have."""
        return tuple(name for socket in self.unmatched_target for name in socket.names)


def match(source: Iterable[S], target: Iterable[T]) -> Matching[S, T]:
    """Pair sockets that share a name. Raises ``MatchError`` if that is ambiguous."""
    targets = tuple(target)
    owner: dict[DescriptorName, int] = {}
    for index, candidate in enumerate(targets):
        for name in candidate.names:
            if owner.setdefault(name, index) != index:
                raise MatchError(f"{name} is named by two sockets of the target")
    pairs: list[tuple[S, T]] = []
    unmatched: list[S] = []
    taken: set[int] = set()
    for wanted in source:
        found = {owner[name] for name in wanted.names if name in owner}
        if not found:
            unmatched.append(wanted)
            continue
        if len(found) > 1 or found & taken:
            shared = ", ".join(str(name) for name in wanted.names if name in owner)
            raise MatchError(f"{shared}: one socket on one side is two on the other")
        (index,) = found
        taken.add(index)
        pairs.append((wanted, targets[index]))
    return Matching(
        pairs=tuple(pairs),
        unmatched_source=tuple(unmatched),
        unmatched_target=tuple(
            candidate for index, candidate in enumerate(targets) if index not in taken
        ),
    )
