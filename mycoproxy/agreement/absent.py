"""What a node answers about a move that it has no open record of."""

from mycoproxy.agreement import participant
from mycoproxy.agreement.effects import Effect, Refuse, Send, Word
from mycoproxy.agreement.messages import (
    Abort,
    Closed,
    Commit,
    Dead,
    Finish,
    Finished,
    Inquiry,
    Live,
    Lost,
    Message,
    Prepare,
    Undecided,
    Undone,
    Vote,
)

Result = tuple[participant.Participant | None, Word | None, list[Effect]]


def answer(  # noqa: PLR0911
    node: str, message: Message, *, me: str, life: int, word: Word | None, lost: bool = False
) -> Result:
    """To a message from ``node``: a participation that begins, the new last word, effects.

    ``life``: that of this agent. ``word``: what is remembered of the move, also if it is only
    that it is too old to begin. ``lost``: this node is its source, but the journal that would
    know of it is gone or damaged: no abort may be presumed then.
    """
    move = message.move
    if move.source == me:
        return None, word, _as_source(node, message, lost=lost)
    from_source = node == move.source
    match message:
        case Prepare(plan=plan) if from_source and me in plan.participants:
            if word is not None or message.life != life:
                return None, word, [Send(node, Vote(move, yes=False))]
            state, effects = participant.begin(me, plan)
            return state, word, effects
        case Abort() if from_source:
            word = word or Word(message if message.key else None)
            return None, word, [Send(node, Undone(move))]
        case Commit() if from_source:
            return None, word, [] if word else [Send(node, Lost(move))]
        case Finish() if from_source:
            return None, word, [Send(node, Finished(move))]
        case Inquiry():
            return None, word, [Send(node, word.answer)] if word and word.answer else []
        case Undecided() | Lost() | Closed() | Commit() | Abort() | Finish():
            return None, word, []
    return None, word, [Refuse(node, f"{type(message).__name__} is not for it to say")]


def _as_source(node: str, message: Message, *, lost: bool) -> list[Effect]:
    move = message.move
    match message:
        case Vote(yes=True) | Inquiry() | Live() | Dead() if lost:
            return [Send(node, Lost(move))]
        case Vote(yes=True) | Inquiry() | Dead():
            return [Send(node, Abort(move, b""))]
        case Live():
            return [Send(node, Closed(move))]
        case Vote() | Undone() | Finished() | Undecided() | Lost():
            return []
    return [Refuse(node, f"{type(message).__name__} is the source's to say")]
