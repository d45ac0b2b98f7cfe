"""What an agent remembers of moves that have ended, in memory and bounded.

A request to prepare that comes late must not begin a move anew. Not remembering one is safe as
long as it is refused: when the memory of a source's moves is full, the oldest goes, and every
move with its number or a lower one is too old to begin. After a restart nothing is remembered,
and nothing needs to be: what was sent to the former life of this agent is refused for that.
"""

from dataclasses import dataclass, field

from mycoproxy.agreement.effects import Word
from mycoproxy.agreement.messages import MoveId

MOST_WORDS = 256
"""Ended moves that are remembered of one source."""

MOST_JOURNALS = 4
"""Journals that one source may have had, in one life of this agent."""

_NO_WORD = Word()


@dataclass(slots=True)
class _Source:
    floor: int = -1
    words: dict[int, Word] = field(default_factory=dict)


class Ended:
    """Of one life of an agent. Sources are nodes with a certificate, so not many."""

    def __init__(self) -> None:
        self._sources: dict[str, dict[str, _Source]] = {}

    def word(self, move: MoveId) -> Word | None:
        """The last word; one without an answer if ``move`` is too old to begin; or None."""
        journals = self._sources.get(move.source, {})
        source = journals.get(move.journal)
        if source is None:
            return _NO_WORD if len(journals) >= MOST_JOURNALS else None
        return source.words.get(move.number, _NO_WORD if move.number <= source.floor else None)

    def keep(self, move: MoveId, word: Word) -> None:
        """``move`` has ended here."""
        journals = self._sources.setdefault(move.source, {})
        if move.journal not in journals and len(journals) >= MOST_JOURNALS:
            return  # refused as it is
        source = journals.setdefault(move.journal, _Source())
        if move.number <= source.floor:
            return
        source.words[move.number] = word
        if len(source.words) > MOST_WORDS:
            source.floor = min(source.words)
            del source.words[source.floor]
