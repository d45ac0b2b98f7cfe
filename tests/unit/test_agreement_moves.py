"""An agent's moves, told as transcripts: who says what, who is believed, what a person may do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mycoproxy.agreement import messages as m
from mycoproxy.agreement.effects import (
    Act,
    Action,
    Keys,
    Outcome,
    Record,
    RecordKind,
    Refuse,
    Send,
    Word,
)
from mycoproxy.agreement.ended import MOST_JOURNALS, MOST_WORDS, Ended
from mycoproxy.agreement.journal import Journal
from mycoproxy.agreement.moves import (
    MOST_OPEN_FROM_ONE_SOURCE,
    AgreementError,
    Do,
    Limits,
    Moves,
    Order,
    Over,
)

DONE, FAILED, DEAD = Outcome.DONE, Outcome.FAILED, Outcome.DEAD


class Nodes:
    """Some agents, a clock, and a wire whose links can be cut."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.directory, self.now = directory, 0.0
        self.cut: set[frozenset[str]] = set()
        self.wire: list[tuple[str, str, m.Message]] = []
        self.log: list[str] = []
        self.over: dict[str, bool] = {}
        self.journals: dict[str, Journal] = {}
        self.moves: dict[str, Moves] = {}
        for name in names:
            self.start(name)

    def start(self, name: str) -> None:
        self.journals[name] = Journal(self.directory / name)
        self.moves[name] = Moves(name, self.journals[name], clock=lambda: self.now)
        self.carry(name, self.moves[name].recover())

    def restart(self, name: str) -> None:
        self.journals[name].close()
        self.wire = [one for one in self.wire if name not in one[:2]]
        self.start(name)

    def begin(self, *peers: str) -> m.MoveId:
        lives = {name: moves.life for name, moves in self.moves.items()}
        move, orders = self.moves["s"].begin("t", peers, lives)
        self.carry("s", orders)
        return move

    def carry(self, name: str, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Send(node, message):
                    if frozenset((name, node)) not in self.cut:
                        self.wire.append((name, node, message))
                case Do(_, act):
                    self.log.append(f"{name} {act.action.value}")
                case Over(_, live):
                    self.over[name] = live

    def run(self) -> None:
        """Deliver all messages."""
        while self.wire:
            sender, name, message = self.wire.pop(0)
            self.log.append(f"{sender}>{name} {type(message).__name__}")
            self.carry(name, self.moves[name].receive(sender, message))

    def report(self, name: str, move: m.MoveId, action: Action, outcome: Outcome = DONE) -> None:
        self.carry(name, self.moves[name].report(move, action, outcome))
        self.run()

    def later(self, seconds: float = 11.0) -> None:
        self.now += seconds
        for name in list(self.moves):
            self.carry(name, self.moves[name].wake())
        self.run()

    def prepare(self, *names: str) -> m.MoveId:
        """All but the source have voted; the source's own step is still to be reported."""
        move = self.begin(*names)
        self.run()
        for name in ("t", *names):
            self.report(name, move, Action.PREPARE)
        return move

    def phases(self) -> dict[str, str]:
        return {
            name: moves.status()[0].phase for name, moves in self.moves.items() if moves.status()
        }

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    found = Nodes(tmp_path, "s", "t", "p")
    yield found
    found.close()


def left(nodes: Nodes) -> list[str]:
    return [path.name for path in nodes.directory.glob("*/*.move")]


def test_a_move_that_goes_well(nodes: Nodes) -> None:
    move = nodes.prepare("p")
    nodes.report("s", move, Action.PREPARE)
    nodes.report("t", move, Action.GO_LIVE)
    nodes.report("s", move, Action.REMOVE)
    nodes.report("p", move, Action.FINISH)
    assert nodes.log == [
        "s prepare",
        "s>t Prepare",
        "t prepare",
        "s>p Prepare",
        "p prepare",
        "t>s Vote",
        "p>s Vote",
        "s>t Commit",
        "t go live",
        "s>p Commit",
        "t>s Live",
        "s remove the source",
        "s>p Finish",
        "p finish",
        "p>s Finished",
        "s>t Closed",
    ]
    assert nodes.over == {"s": True, "t": True, "p": True}
    assert not left(nodes)
    assert all(moves.next_wake() is None for moves in nodes.moves.values())


def test_a_refusal_undoes_all_others_first_and_then_the_source(nodes: Nodes) -> None:
    move = nodes.begin("p")
    nodes.run()
    nodes.report("p", move, Action.PREPARE)
    nodes.report("t", move, Action.PREPARE, FAILED)
    assert nodes.log[-5:] == ["t undo", "t>s Vote", "s>t Abort", "s>p Abort", "p undo"]
    assert "s undo" not in nodes.log
    nodes.report("p", move, Action.UNDO)
    assert "s undo" not in nodes.log  # the target may lead clients of its own node
    nodes.report("t", move, Action.UNDO)
    assert nodes.log[-1] == "s undo"
    nodes.report("s", move, Action.UNDO)
    assert nodes.over == {"s": False, "t": False, "p": False}
    assert not left(nodes)


def test_the_source_does_not_wait_for_ever_for_a_peer_and_says_whose_paths_are_open(
    nodes: Nodes,
) -> None:
    move = nodes.prepare("p")
    nodes.cut = {frozenset("sp"), frozenset("tp")}
    nodes.carry("s", nodes.moves["s"].abort(move))
    nodes.run()
    nodes.report("t", move, Action.UNDO)
    nodes.now += Limits().peers_undone
    orders = nodes.moves["s"].wake()
    assert [order for order in orders if isinstance(order, Do)] == [
        Do(move, Act(Action.UNDO, frozenset({"p"})))
    ]
    nodes.report("s", move, Action.UNDO)
    nodes.cut.clear()
    nodes.carry("s", nodes.moves["s"].linked("p"))
    nodes.run()
    nodes.log.clear()
    nodes.report("p", move, Action.UNDO)
    assert "s undo" in nodes.log  # again, now for p's connections too
    nodes.later()
    nodes.report("s", move, Action.UNDO)
    assert nodes.phases() == {}
    assert not left(nodes)


def test_a_peer_passes_the_commit_on_if_only_the_link_to_the_target_is_cut(nodes: Nodes) -> None:
    move = nodes.prepare("p")
    nodes.cut = {frozenset("st")}
    nodes.report("s", move, Action.PREPARE)
    assert nodes.phases() == {"s": "committed", "t": "prepared", "p": "granted"}
    nodes.later()
    assert "p>t Commit" in nodes.log
    assert "t go live" in nodes.log
    nodes.report("t", move, Action.GO_LIVE)
    nodes.later()  # the peer hears from the target that it lives
    nodes.report("p", move, Action.FINISH)
    assert nodes.over == {"p": True}
    nodes.cut.clear()
    nodes.later()
    nodes.report("s", move, Action.REMOVE)
    assert nodes.over == {"s": True, "t": True, "p": True}
    assert not left(nodes)


def test_a_peer_that_makes_up_a_decision_is_not_believed(nodes: Nodes) -> None:
    move = nodes.prepare("p")
    for forged in (m.Commit(move, b"x" * 32), m.Abort(move, b"x" * 32), m.Abort(move, b"")):
        (refused,) = nodes.moves["t"].receive("p", forged)
        assert isinstance(refused, Refuse)
    (refused,) = nodes.moves["t"].receive("p", m.Closed(move))
    assert isinstance(refused, Refuse)
    assert nodes.phases()["t"] == "prepared"


@pytest.mark.parametrize("name", ["s", "t", "p"])
def test_a_node_that_is_not_in_the_plan_is_told_nothing_and_believed_nothing(
    nodes: Nodes, name: str
) -> None:
    move = nodes.prepare("p")
    before = nodes.phases()
    plan = m.Plan(move, "t", ("p",), b"l" * 32, b"l" * 32)
    for message in (
        m.Prepare(move, plan, nodes.moves[name].life),
        m.Vote(move, yes=True),
        m.Vote(move, yes=False),
        m.Inquiry(move),
        m.Commit(move, b"k" * 32),
        m.Abort(move, b""),
        m.Live(move),
        m.Dead(move),
        m.Finish(move),
        m.Undone(move),
        m.Closed(move),
    ):
        (refused,) = nodes.moves[name].receive("stranger", message)
        assert isinstance(refused, Refuse)
    assert nodes.phases() == before


def test_a_peer_cannot_say_that_the_copy_lives_or_is_dead(nodes: Nodes) -> None:
    move = nodes.prepare("p")
    nodes.report("s", move, Action.PREPARE)
    for message in (m.Live(move), m.Dead(move), m.Commit(move, b"k" * 32), m.Finish(move)):
        (refused,) = nodes.moves["s"].receive("p", message)
        assert isinstance(refused, Refuse)
    assert nodes.phases()["s"] == "committed"


def test_a_move_of_another_source_cannot_be_begun_by_anybody_else(nodes: Nodes) -> None:
    move = m.MoveId("s", nodes.journals["s"].identity, 1)
    plan = m.Plan(move, "t", ("p",), b"l" * 32, b"l" * 32)
    (refused,) = nodes.moves["t"].receive("p", m.Prepare(move, plan, nodes.moves["t"].life))
    assert isinstance(refused, Refuse)
    other = m.Plan(move, "p", (), b"l" * 32, b"l" * 32)
    (refused,) = nodes.moves["t"].receive("s", m.Prepare(move, other, nodes.moves["t"].life))
    assert isinstance(refused, Refuse)


def test_a_source_that_knows_nothing_of_a_move_says_aborted(nodes: Nodes) -> None:
    move = m.MoveId("s", nodes.journals["s"].identity, 1)
    aborted, closed = Send("t", m.Abort(move, b"")), Send("t", m.Closed(move))
    assert nodes.moves["s"].receive("t", m.Vote(move, yes=True)) == [aborted]
    assert nodes.moves["s"].receive("t", m.Inquiry(move)) == [aborted]
    assert nodes.moves["s"].receive("t", m.Dead(move)) == [aborted]
    assert nodes.moves["s"].receive("t", m.Live(move)) == [closed]


def test_a_source_that_lost_its_journal_presumes_nothing(nodes: Nodes) -> None:
    move = nodes.prepare("p")
    nodes.journals["s"].close()
    for path in (nodes.directory / "s").iterdir():
        path.unlink()
    nodes.start("s")
    assert nodes.moves["s"].receive("t", m.Vote(move, yes=True)) == [Send("t", m.Lost(move))]
    nodes.later()
    assert nodes.phases() == {"t": "prepared", "p": "prepared"}


@pytest.mark.parametrize("live", [True, False])
def test_a_person_can_decide_when_the_source_is_gone_for_ever(nodes: Nodes, live: bool) -> None:
    move = nodes.prepare("p")
    nodes.cut = {frozenset("st"), frozenset("sp")}
    nodes.carry("t", nodes.moves["t"].resolve(move, live=live))
    assert nodes.log[-1] == ("t go live" if live else "t undo")
    if live:
        nodes.report("t", move, Action.GO_LIVE)
        nodes.later()
        nodes.report("p", move, Action.FINISH)
        nodes.carry("t", nodes.moves["t"].resolve(move, live=True))
    else:
        nodes.report("t", move, Action.UNDO)
        nodes.carry("p", nodes.moves["p"].resolve(move, live=False))
        nodes.report("p", move, Action.UNDO)
    assert nodes.over == {"t": live, "p": live}


def test_a_person_can_give_the_workload_back_when_the_target_is_gone_for_ever(
    nodes: Nodes,
) -> None:
    move = nodes.prepare("p")
    nodes.cut = {frozenset("st"), frozenset("tp")}
    nodes.report("s", move, Action.PREPARE)
    nodes.carry("s", nodes.moves["s"].gone(move, "t"))
    nodes.run()
    nodes.report("p", move, Action.UNDO)
    assert nodes.log[-1] == "s undo"
    nodes.report("s", move, Action.UNDO)
    assert nodes.over == {"s": False, "p": False}


def test_commands_that_come_too_late_are_refused(nodes: Nodes) -> None:
    move = nodes.prepare("p")
    nodes.report("s", move, Action.PREPARE)
    with pytest.raises(AgreementError, match="cannot be given up"):
        nodes.moves["s"].abort(move)
    with pytest.raises(AgreementError, match="too late"):
        nodes.moves["s"].enrol(move, {"q": 1})
    with pytest.raises(AgreementError, match="in no doubt"):
        nodes.moves["s"].resolve(move, live=True)
    with pytest.raises(AgreementError, match=r"q takes no part in .*; these do: t, p"):
        nodes.moves["s"].gone(move, "q")
    nodes.carry("p", nodes.moves["p"].resolve(move, live=False))
    with pytest.raises(AgreementError, match="it is undoing here, where 'live' decides nothing"):
        nodes.moves["p"].resolve(move, live=True)
    with pytest.raises(AgreementError, match="not an open move"):
        nodes.moves["t"].abort(move)


def test_a_move_that_cannot_be_is_not_begun(nodes: Nodes) -> None:
    with pytest.raises(AgreementError, match="every node once"):
        nodes.moves["s"].begin("s", (), {"s": 1})
    with pytest.raises(AgreementError, match="no link to x"):
        nodes.moves["s"].begin("x", (), {})
    assert not left(nodes)


def test_the_copy_found_dead_after_the_commit_gives_the_workload_back(nodes: Nodes) -> None:
    move = nodes.prepare("p")
    nodes.report("s", move, Action.PREPARE)
    nodes.report("t", move, Action.GO_LIVE, DEAD)
    nodes.report("p", move, Action.UNDO)
    nodes.report("t", move, Action.UNDO)
    nodes.report("s", move, Action.UNDO)
    assert nodes.over == {"s": False, "t": False, "p": False}
    assert not left(nodes)


def test_attachments_are_there_after_a_restart_and_gone_with_the_move(nodes: Nodes) -> None:
    move = nodes.begin("p")
    nodes.run()
    nodes.moves["p"].attach(move, "conntrack", b"entries")
    nodes.restart("p")
    assert nodes.moves["p"].attachments(move) == {"conntrack": b"entries"}
    nodes.report("p", move, Action.UNDO)
    assert nodes.moves["p"].attachments(move) == {}


def test_a_late_request_does_not_begin_a_move_anew(nodes: Nodes) -> None:
    move = nodes.begin("p")
    late = [one for one in nodes.wire if isinstance(one[2], m.Prepare)]
    nodes.wire.clear()
    nodes.carry("s", nodes.moves["s"].abort(move))
    nodes.run()
    for sender, name, message in late:
        orders = nodes.moves[name].receive(sender, message)
        assert orders == [Send("s", m.Vote(move, yes=False))]
    assert not any(log.endswith("prepare") for log in nodes.log if not log.startswith("s "))


def test_a_source_cannot_open_any_number_of_moves(nodes: Nodes) -> None:
    opened = 0
    for number in range(MOST_OPEN_FROM_ONE_SOURCE + 5):
        move = m.MoveId("s", "0" * 16, number)
        plan = m.Plan(move, "t", (), *Keys(b"c" * 32, b"a" * 32).locks())
        orders = nodes.moves["t"].receive("s", m.Prepare(move, plan, nodes.moves["t"].life))
        opened += any(isinstance(order, Do) for order in orders)
    assert opened == MOST_OPEN_FROM_ONE_SOURCE


def test_what_is_said_again_is_said_more_and_more_slowly(nodes: Nodes) -> None:
    nodes.prepare("p")
    nodes.cut = {frozenset("st"), frozenset("sp"), frozenset("tp")}
    times = []
    for _ in range(8):
        wake = nodes.moves["t"].next_wake()
        assert wake is not None
        times.append(round(wake - nodes.now, 3))
        nodes.now = wake
        nodes.moves["t"].wake()
    assert times == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_memory_of_ended_moves_is_bounded_and_forgets_to_the_safe_side() -> None:
    ended = Ended()
    for number in range(3 * MOST_WORDS):
        move = m.MoveId("s", "0" * 16, number)
        assert ended.word(move) is None
        ended.keep(move, Word(m.Abort(move, b"a" * 32)))
    for number in range(3 * MOST_WORDS):
        assert ended.word(m.MoveId("s", "0" * 16, number)) is not None
    assert ended.word(m.MoveId("s", "0" * 16, 3 * MOST_WORDS)) is None
    assert ended.word(m.MoveId("other", "0" * 16, 0)) is None
    for number in range(1, MOST_JOURNALS):
        ended.keep(m.MoveId("s", f"{number:016x}", 0), Word())
    assert ended.word(m.MoveId("s", "f" * 16, 0)) is not None  # refused, not begun


@pytest.mark.parametrize("role", ["t", "p"])
def test_after_a_restart_a_participant_knows_what_it_had_written(nodes: Nodes, role: str) -> None:
    nodes.prepare("p")
    nodes.cut = {frozenset("st"), frozenset("sp")}
    nodes.restart(role)
    assert nodes.phases()[role] == "prepared"
    record = Record(RecordKind.PREPARED)
    ((found,), _) = Journal.open_moves(nodes.journals[role])
    assert found.records[-1] == record
