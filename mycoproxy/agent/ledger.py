"""What the moves that ended left on this node, by name: which connection is whose, and why.

The kernel knows which connections are led elsewhere, and ends that by itself; it does not know for
which move, nor tells an entry that a move has made from others. This does, over a restart of the
agent as well (a file in ``state.directory``). It is never asked alone: what it knows is listed only
if the kernel still has exactly that (``moved_connections``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover.peer import Changes
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, wire_direction
from mycoproxy.netfilter.paths import Path as Way
from mycoproxy.netfilter.rebind import Rebound
from mycoproxy.netfilter.renamed import untracked_entry


class Translated(NamedTuple):
    """A translation, by what a further move does not change: see ``Translate.list``."""

    namespace: str
    other_end: Endpoint
    now: Endpoint


@dataclass(frozen=True, slots=True)
class Led:
    """A conntrack entry of a move's. ``outgoing``: the workload opened the connection."""

    move: str
    strategy: Way
    namespace: str
    zone: int
    orig: Direction
    reply: Direction
    outgoing: bool

    @property
    def outer(self) -> Direction:
        """The tuple of the end that does not move: from there, to where it is known."""
        return self.reply if self.outgoing else self.orig

    @property
    def now(self) -> Endpoint:
        """The workload's end."""
        return self.orig.source if self.outgoing else self.reply.source

    @property
    def key(self) -> tuple[str, int, Direction]:
        """Of one connection, wherever it is moved to."""
        return self.namespace, self.zone, self.outer


class Ledger:
    """All that was noted. ``file``: where it is kept; made anew if it cannot be read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._led: dict[tuple[str, int, Direction], Led] = {}
        self._translated: dict[Translated, str] = {}
        try:
            self._load(json.loads(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError):  # names are lost, nothing else
            self._led, self._translated = {}, {}

    @property
    def led(self) -> list[Led]:
        """Entries that may still be there."""
        return list(self._led.values())

    def __len__(self) -> int:
        return len(self._led) + len(self._translated)

    def move_of(self, translated: Translated) -> str:
        """What translated it; nothing if that is not known."""
        return self._translated.get(translated, "")

    def note(
        self, move: str, namespace: Path, changes: Changes, without: Collection[FourTuple]
    ) -> Counter[Way]:
        """A move has ended, and this stays. Returns how many connections it is, by strategy.

        ``without``: connections that had ended before anything was done.
        """
        counts: Counter[Way] = Counter()
        for one in changes.moves:
            if one.connection not in without:
                counts[Way.TRANSLATE] += 1
                other_end = on_the_wire(one.connection.remote)
                self._translated[Translated(str(namespace), other_end, on_the_wire(one.new))] = move
        for led in _led_by(move, str(namespace), changes, without):
            counts[led.strategy] += 1
            if led.strategy is not Way.ADMIT:
                self._led[led.key] = self._as_before(led)
        return counts

    def _as_before(self, led: Led) -> Led:
        """A connection that was anchored here stays so, wherever it is led now."""
        before = self._led.get(led.key)
        anchored = before is not None and before.strategy is Way.ANCHOR
        passes_on = led.strategy is Way.REBIND and led.outer.source != _inner(led).destination
        return replace(led, strategy=Way.ANCHOR) if anchored and passes_on else led

    def forget(
        self, led: Iterable[Led], translated: Collection[Translated], within: Collection[str]
    ) -> None:
        """These entries are gone, and of the translations in the namespaces ``within`` all but
        ``translated``."""
        for one in led:
            if self._led.get(one.key) == one:
                del self._led[one.key]
        for each in [one for one in self._translated if one.namespace in within]:
            if each not in translated:
                del self._translated[each]

    def save(self) -> None:
        """Keep it. Raises ``MycoError``."""
        new = self._file.with_suffix(".new")
        try:
            new.write_text(json.dumps(self._plain()))
            new.rename(self._file)
        except OSError as error:
            raise MycoError(f"state.directory: cannot write {self._file}: {error}") from error

    def _plain(self) -> dict[str, Any]:
        return {
            "led": [
                [
                    one.move,
                    one.strategy.value,
                    one.namespace,
                    one.zone,
                    one.orig,
                    one.reply,
                    one.outgoing,
                ]
                for one in self._led.values()
            ],
            "translated": [[*one, move] for one, move in self._translated.items()],
        }

    def _load(self, data: dict[str, Any]) -> None:
        for move, strategy, namespace, zone, orig, reply, outgoing in data["led"]:
            led = Led(
                move, Way(strategy), namespace, zone, _direction(orig), _direction(reply), outgoing
            )
            self._led[led.key] = led
        for namespace, other_end, now, move in data["translated"]:
            key = Translated(namespace, Endpoint(*other_end), Endpoint(*now))
            self._translated[key] = move


def _led_by(
    move: str, namespace: str, changes: Changes, without: Collection[FourTuple]
) -> Iterator[Led]:
    for name, change in changes.replaced.items():
        if name not in without:
            yield _replaced(move, namespace, name, change)
    for entry in changes.added:
        strategy = Way.CARRY if entry.has_nat else Way.ADMIT
        yield _of(entry, move, namespace, strategy, outgoing=True)


def _replaced(move: str, namespace: str, name: FourTuple, change: Rebound) -> Led:
    before = wire_direction(name.local, name.remote)
    outgoing = before == (change.old or untracked_entry(name)).orig
    led = _of(change.new, move, namespace, Way.REBIND, outgoing=outgoing)
    # Its own address stands for the other end's where it stood for nobody before.
    own = _inner(led).destination
    is_anchor = own not in (before.destination, led.outer.source)
    return replace(led, strategy=Way.ANCHOR) if is_anchor else led


def _inner(led: Led) -> Direction:
    """The tuple of the workload's side: from it, to what it sees of the other end."""
    return led.orig if led.outgoing else led.reply


def _of(entry: ConntrackEntry, move: str, namespace: str, strategy: Way, *, outgoing: bool) -> Led:
    return Led(move, strategy, namespace, entry.zone, entry.orig, entry.reply, outgoing)


def _direction(ends: Sequence[Sequence[Any]]) -> Direction:
    source, destination = (Endpoint(*end) for end in ends)
    return Direction(source, destination)
