"""The executor: it calls the sides in the machine's order, and gives back what they gave.

The sides here are recorders: they implement the interfaces of ``sides.py``, keep a common list of
what was asked of them, and fail where they are told to. The machine and its executor are sans-IO,
so nothing of a kernel is imitated.
"""

import asyncio
import socket
from collections.abc import Collection, Coroutine, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover import (
    Action,
    Connection,
    Event,
    Handover,
    HandoverError,
    Known,
    Nodes,
    Offer,
    Peer,
    Source,
    State,
    Target,
    Task,
    WentLive,
)
from mycoproxy.netfilter.paths import Path
from mycoproxy.sockets import DescriptorName
from mycoproxy.statetable import Transition
from mycoproxy.tcp import Segment, TcpConnectionState, TcpState
from mycoproxy.tcp.segments import ACK, SYN, segment
from mycoproxy.tcp.state import Buffers, Negotiated, ReceiveQueue, SendQueue, Window

T = TypeVar("T")

OLD, NEW = "10.1.0.5", "10.2.0.5"
ADDRESSES = {OLD: NEW}

FORWARD = ["hold", "capture", "rehome router", "rehome client", "establish"]
COMMITTED = [*FORWARD, "record commit"]
LOSSES = ["losses source", "losses router", "losses client"]
LIVE = [*COMMITTED, *LOSSES, "go live"]
#: What the peers kept goes back to the source when its hold is released.
RELEASE = ["losses router", "losses client", "release hold"]
BACK = ["discard", "undo router", "undo client", "resume", *RELEASE]
#: Those whose failure is told. Not having what a peer kept only costs time.
UNDOS = [call for call in BACK if not call.startswith("losses")]

#: The calls of each undoing, by the call that it undoes.
UNDOING = {
    "hold": RELEASE,
    "capture": ["resume"],
    "rehome router": ["undo router", "undo client"],
    "establish": ["discard"],
}


def connection(port: int, local: str = OLD) -> Connection:
    state = TcpState(
        family=socket.AddressFamily.AF_INET,
        local=Endpoint(local, 6379),
        remote=Endpoint("192.0.2.7", port),
        state=TcpConnectionState.ESTABLISHED,
        send=SendQueue(1000, b"", b""),
        receive=ReceiveQueue(2000, b""),
        window=Window(1, 2, 3, 4, 5),
        negotiated=Negotiated(1460, None, sack=True, timestamps=None, ecn=False),
        buffers=Buffers(*(0 for _ in Buffers._fields)),
        reuse_address=False,
    )
    return Connection((DescriptorName(1, port),), state)


def lost_at(where: str) -> Segment:
    return segment(
        connection(40001).four_tuple,
        flags=ACK,
        sequence=2000,
        acknowledgement=1000,
        window=1,
        data=where.encode(),
    )


class Recorder:
    """The list that the recording sides share, and what is to fail in them."""

    def __init__(self, *failing: str) -> None:
        self.calls: list[str] = []
        self.failing = set(failing)
        self.connections: list[Connection] = [connection(40001), connection(40002)]
        self.newcomers: list[Segment] = []

    async def call(self, name: str) -> None:
        self.calls.append(name)
        await asyncio.sleep(0)
        if name in self.failing:
            raise MycoError(f"cannot {name}")


class RecordingSource:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def hold(self) -> Sequence[FourTuple]:
        await self._recorder.call("hold")
        return [one.four_tuple for one in self._recorder.connections]

    async def capture(self) -> Sequence[Connection]:
        await self._recorder.call("capture")
        return self._recorder.connections

    async def lost_segments(self) -> Sequence[Segment]:
        await self._recorder.call("losses source")
        return [lost_at("source")]

    async def newcomers(self) -> Sequence[Segment]:
        found, self._recorder.newcomers = self._recorder.newcomers, []
        return found

    async def resume(self) -> None:
        await self._recorder.call("resume")

    async def release_hold(self, lost: Sequence[Segment]) -> None:
        self.given_back = list(lost)
        await self._recorder.call("release hold")


class RecordingPeer:
    """Re-homes connections to some of the clients' ports."""

    def __init__(self, recorder: Recorder, name: str, ports: Sequence[int], path: Path) -> None:
        self.name = name
        self._recorder = recorder
        self._ports = ports
        self._path = path
        self.staged: set[int] = set()
        self.rehomed: set[int] = set()

    async def stage(self, tasks: Sequence[Task]) -> None:
        self._check(tasks)
        self.staged = {task.connection.remote.port for task in tasks}

    async def rehome(self, tasks: Sequence[Task], without: Collection[FourTuple] = ()) -> None:
        self._check(tasks)
        self.rehomed = self.staged - {name.remote.port for name in without}
        self.rehomed |= {task.connection.remote.port for task in tasks}
        await self._recorder.call(f"rehome {self.name}")

    def _check(self, tasks: Sequence[Task]) -> None:
        assert all(task.path is self._path for task in tasks)
        assert all(task.after.local.address == NEW for task in tasks)
        assert {task.connection.remote.port for task in tasks} <= set(self._ports)

    async def survey(
        self, connections: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[Offer]:
        assert connections and addresses == ADDRESSES and not home
        return [Offer(one, self._path) for one in connections if one.remote.port in self._ports]

    async def lost_segments(self) -> Sequence[Segment]:
        await self._recorder.call(f"losses {self.name}")
        return [lost_at(self.name)]

    async def undo(self) -> None:
        await self._recorder.call(f"undo {self.name}")

    async def finish(self) -> None:
        await self._recorder.call(f"finish {self.name}")


class RecordingTarget:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.established: Sequence[Connection] = ()
        self.replayed: Sequence[Segment] = ()

    async def establish(
        self,
        connections: Sequence[Connection],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        assert addresses == ADDRESSES and not via
        self.established = connections
        await self._recorder.call("establish")

    async def go_live(self, lost: Sequence[Segment]) -> WentLive:
        self.replayed = lost
        await self._recorder.call("go live")
        return WentLive(len(lost), ("an option was not kept",))

    async def welcome(
        self,
        syns: Sequence[Segment],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        assert addresses == ADDRESSES and not via
        self._recorder.calls.append(
            "welcome " + ",".join(str(syn.connection.remote.port) for syn in syns)
        )

    async def discard(self) -> None:
        await self._recorder.call("discard")


class Recorded:
    """A handover between recording sides: two connections, each re-homed on another peer."""

    def __init__(self, *failing: str) -> None:
        self.recorder = Recorder(*failing)
        self.source: Source = RecordingSource(self.recorder)
        self.target = RecordingTarget(self.recorder)
        target: Target = self.target
        self.router = RecordingPeer(self.recorder, "router", [40001, 40005], Path.REBIND)
        self.client = RecordingPeer(self.recorder, "client", [40002, 40006], Path.TRANSLATE)
        self.peers: list[Peer] = [self.router, self.client]
        self.recorded: list[tuple[State, Event, State]] = []
        self.handover = Handover(
            self.source,
            target,
            self.peers,
            addresses=ADDRESSES,
            nodes=Nodes("alpha", "beta"),
            record_commit=self._record_commit,
            record=self._record,
        )

    @property
    def calls(self) -> list[str]:
        return self.recorder.calls

    def _record_commit(self) -> None:
        self.recorder.calls.append("record commit")
        if "record commit" in self.recorder.failing:
            raise OSError("no space for the journal")

    def _record(self, state: State, event: Event, to: Transition[State, Action]) -> None:
        self.recorded.append((state, event, to.state))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 10))


async def whole(handover: Handover) -> None:
    await handover.ready()
    await handover.commit()
    await handover.go_live()


def test_a_handover_asks_the_sides_in_order_and_keeps_what_they_say() -> None:
    recorded = Recorded()
    run(whole(recorded.handover))
    assert recorded.calls == LIVE
    assert recorded.handover.state is State.DONE
    assert recorded.handover.remarks == ("an option was not kept",)
    assert recorded.handover.connections == recorded.recorder.connections
    assert recorded.target.established == recorded.recorder.connections
    assert recorded.target.replayed == [lost_at(one) for one in ("source", "router", "client")]
    assert recorded.handover.replayed == 3
    assert {(one.peer, one.connection.remote.port) for one in recorded.handover.rehomed} == {
        ("router", 40001),
        ("client", 40002),
    }


def test_what_was_expected_is_told_ahead_and_only_what_changed_in_the_handover() -> None:
    recorded = Recorded()
    expected = [connection(port).four_tuple for port in (40001, 40002, 40006)]
    recorded.recorder.connections = [connection(port) for port in (40001, 40002, 40005)]
    run(recorded.handover.survey([Known(name) for name in expected]))
    assert (recorded.router.staged, recorded.client.staged) == ({40001}, {40002, 40006})
    run(whole(recorded.handover))
    assert recorded.router.rehomed == {40001, 40005}, "one came meanwhile"
    assert recorded.client.rehomed == {40002}, "one has gone meanwhile"
    assert {one.connection.remote.port for one in recorded.handover.rehomed} == {
        40001,
        40002,
        40005,
    }


def test_every_step_is_timed_once_and_in_order() -> None:
    recorded = Recorded()
    run(whole(recorded.handover))
    steps = recorded.handover.steps
    assert [step.action for step in steps] == [
        Action.HOLD,
        Action.CAPTURE,
        Action.REHOME,
        Action.ESTABLISH,
        Action.RECORD_COMMIT,
        Action.GO_LIVE,
    ]
    assert all(step.begin <= step.end for step in steps)
    assert all(one.end <= other.begin for one, other in pairwise(steps))


def test_every_transition_is_recorded() -> None:
    recorded = Recorded()
    run(whole(recorded.handover))
    assert recorded.recorded[0] == (State.IDLE, Event.START, State.HOLDING)
    assert recorded.recorded[-1] == (State.GOING_LIVE, Event.DONE, State.DONE)
    for (_, _, to), (origin, _, _) in pairwise(recorded.recorded):
        assert to is origin


def expected_after(failing: str, road: list[str]) -> list[str]:
    """The calls of a handover in which one fails, and of undoing all that was begun."""
    done = road[: road.index(failing) + 1]
    if failing == "rehome router":  # peers work side by side, all of them are waited for
        done = [*done, "rehome client"]
    back = [calls for call in reversed(done) for calls in UNDOING.get(call, [])]
    return done + back


@pytest.mark.parametrize("failing", FORWARD)
def test_a_failure_of_making_ready_is_undone_and_raised(failing: str) -> None:
    recorded = Recorded(failing)
    with pytest.raises(HandoverError, match=f"cannot {failing}") as failed:
        run(recorded.handover.ready())
    assert failed.value.exit_status == 1
    assert recorded.calls == expected_after(failing, FORWARD)
    assert recorded.handover.state is State.ROLLED_BACK


@pytest.mark.parametrize("failing", FORWARD)
@pytest.mark.parametrize("also", UNDOS)
def test_a_failure_of_undoing_skips_nothing_and_is_told_of_after_the_cause(
    failing: str, also: str
) -> None:
    recorded = Recorded(failing, also)
    with pytest.raises(HandoverError) as failed:
        run(recorded.handover.ready())
    assert recorded.calls == expected_after(failing, FORWARD)
    assert recorded.handover.state is State.ROLLED_BACK
    wanted = [f"cannot {failing}"] + ([f"cannot {also}"] if also in recorded.calls else [])
    assert str(failed.value).partition(": ")[2] == "; ".join(wanted)


@pytest.mark.parametrize("also", [(), *[(one,) for one in UNDOS], tuple(UNDOS)], ids="+".join)
def test_a_commit_that_cannot_be_recorded_is_undone(also: tuple[str, ...]) -> None:
    recorded = Recorded("record commit", *also)

    async def scenario() -> None:
        await recorded.handover.ready()
        with pytest.raises(HandoverError, match="no space for the journal"):
            await recorded.handover.commit()

    run(scenario())
    assert recorded.calls == [*COMMITTED, *BACK]
    assert recorded.handover.state is State.ROLLED_BACK


@pytest.mark.parametrize("failing", [None, *UNDOS])
@pytest.mark.parametrize("committed", [False, True], ids=["ready", "committed"])
def test_a_handover_that_is_not_live_can_be_undone(failing: str | None, committed: bool) -> None:
    recorded = Recorded(*([failing] if failing else []))

    async def scenario() -> None:
        await recorded.handover.ready()
        if committed:
            await recorded.handover.commit()
        if failing is None:
            await recorded.handover.undo()
        else:
            with pytest.raises(HandoverError, match=f"undone with errors: cannot {failing}"):
                await recorded.handover.undo()

    run(scenario())
    assert recorded.calls == [*(COMMITTED if committed else FORWARD), *BACK]
    assert recorded.handover.state is State.ROLLED_BACK


def test_undoing_what_never_began_or_was_undone_already_does_nothing() -> None:
    fresh, failed = Recorded(), Recorded("capture")

    async def scenario() -> None:
        await fresh.handover.undo()
        with pytest.raises(HandoverError):
            await failed.handover.ready()
        calls = list(failed.calls)
        await failed.handover.undo()
        await failed.handover.undo()
        assert failed.calls == calls

    run(scenario())
    assert fresh.calls == []


def test_a_handover_that_is_live_is_never_undone() -> None:
    recorded = Recorded()

    async def scenario() -> None:
        await whole(recorded.handover)
        await recorded.handover.undo()

    run(scenario())
    assert recorded.calls == LIVE
    assert recorded.handover.state is State.DONE


def test_connections_that_did_not_all_go_live_are_told_of_and_stay_on_the_target() -> None:
    recorded = Recorded("go live")
    with pytest.raises(HandoverError, match="did not all go live: cannot go live"):
        run(whole(recorded.handover))
    assert recorded.calls == LIVE
    assert recorded.handover.state is State.DONE


@pytest.mark.parametrize("failing", LOSSES)
def test_connections_go_live_also_if_one_cannot_tell_what_was_lost(failing: str) -> None:
    recorded = Recorded(failing)
    with pytest.raises(HandoverError, match=f"cannot {failing}"):
        run(whole(recorded.handover))
    assert recorded.calls == LIVE
    assert recorded.target.replayed == [
        lost_at(one) for one in ("source", "router", "client") if not failing.endswith(one)
    ]
    assert recorded.handover.state is State.DONE


@pytest.mark.parametrize("failing", ["rehome router", "rehome client"])
def test_one_peer_s_failure_is_undone_on_all_peers(failing: str) -> None:
    recorded = Recorded(failing)
    with pytest.raises(HandoverError):
        run(recorded.handover.ready())
    assert {"undo router", "undo client"} <= set(recorded.calls)


def test_undoing_goes_on_on_the_other_peer_when_one_cannot() -> None:
    recorded = Recorded("establish", "undo router")
    with pytest.raises(HandoverError):
        run(recorded.handover.ready())
    assert "undo client" in recorded.calls


def test_a_connection_that_no_peer_leads_to_its_new_address_is_named_and_undone() -> None:
    recorded = Recorded()
    recorded.recorder.connections += [connection(40003), connection(40004)]
    with pytest.raises(HandoverError, match=r"192\.0\.2\.7:40003 and 1 more to its new address"):
        run(recorded.handover.ready())
    assert "establish" not in recorded.calls
    way_back = ["undo router", "undo client", "resume", *RELEASE]
    assert recorded.calls[-len(way_back) :] == way_back


def test_a_connection_whose_address_is_kept_needs_no_peer() -> None:
    recorded = Recorded()
    recorded.recorder.connections.append(connection(40003, local="10.9.0.1"))
    run(recorded.handover.ready())
    assert recorded.handover.state is State.READY


def syn(port: int) -> Segment:
    return segment(connection(port).four_tuple, flags=SYN, sequence=1)


def test_who_comes_while_new_ones_are_kept_out_is_led_and_welcomed_when_all_is_live() -> None:
    recorded = Recorded()
    recorded.peers.append(RecordingPeer(recorded.recorder, "gateway", [40003], Path.REBIND))
    recorded.recorder.newcomers = [syn(40003), syn(40009)]  # nobody leads the second
    run(whole(recorded.handover))
    assert "rehome gateway" in recorded.calls
    assert recorded.calls[-2:] == ["go live", "welcome 40003,40009"]


def test_who_comes_when_all_is_live_is_passed_on() -> None:
    recorded = Recorded()
    recorded.peers.append(RecordingPeer(recorded.recorder, "gateway", [40003], Path.REBIND))

    async def scenario() -> None:
        await whole(recorded.handover)
        assert await recorded.handover.follow() == 0
        for _ in range(2):  # the SYN comes again: it is led already
            recorded.recorder.newcomers = [syn(40003)]
            assert await recorded.handover.follow() == 1

    run(scenario())
    assert recorded.calls == [
        *LIVE[:-4],
        *LOSSES,
        "losses gateway",
        "go live",
        "rehome gateway",
        "welcome 40003",
        "welcome 40003",
    ]


def test_who_came_meanwhile_is_given_back_with_all_others() -> None:
    recorded = Recorded("establish")
    recorded.recorder.newcomers = [syn(40003)]
    with pytest.raises(HandoverError):
        run(recorded.handover.ready())
    given = recorded.source.given_back  # type: ignore[attr-defined]
    assert given[-1].connection.remote.port == 40003


def test_the_nodes_forget_the_old_place_in_the_end() -> None:
    recorded = Recorded()

    async def scenario() -> None:
        await whole(recorded.handover)
        await recorded.handover.finish()

    run(scenario())
    assert recorded.calls == [*LIVE, "finish router", "finish client"]


def test_a_node_that_only_admits_a_connection_leads_it_nowhere() -> None:
    recorded = Recorded()
    recorded.peers.append(RecordingPeer(recorded.recorder, "gateway", [40003], Path.ADMIT))
    recorded.recorder.connections.append(connection(40003))
    with pytest.raises(HandoverError, match="40003"):
        run(recorded.handover.ready())


def test_a_workload_without_connections_is_handed_over() -> None:
    recorded = Recorded()
    recorded.recorder.connections.clear()
    run(whole(recorded.handover))
    assert recorded.calls == [call for call in LIVE if not call.startswith("rehome")]


@pytest.mark.parametrize("during", FORWARD)
def test_a_cancellation_while_making_ready_is_undone_and_passed_on(during: str) -> None:
    recorded = Recorded()

    async def scenario() -> bool:
        task = asyncio.create_task(recorded.handover.ready())
        while during not in recorded.calls:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert run(scenario())
    assert recorded.handover.state is State.ROLLED_BACK
    assert recorded.calls == expected_after(during, FORWARD)


@pytest.mark.parametrize("during", [*LOSSES, "go live"])
def test_a_cancellation_while_going_live_takes_no_connection_back(during: str) -> None:
    recorded = Recorded()

    async def scenario() -> bool:
        await recorded.handover.ready()
        await recorded.handover.commit()
        task = asyncio.create_task(recorded.handover.go_live())
        while during not in recorded.calls:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert run(scenario())
    assert recorded.calls == LIVE
    assert recorded.handover.state is State.DONE


def test_a_cancellation_while_undoing_skips_nothing() -> None:
    recorded = Recorded()

    async def scenario() -> bool:
        await recorded.handover.ready()
        task = asyncio.create_task(recorded.handover.undo())
        while "discard" not in recorded.calls:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert run(scenario())
    assert recorded.calls == [*FORWARD, *BACK]


@pytest.mark.parametrize("failing", [None, "losses router", "losses client"])
def test_what_the_peers_kept_is_given_back_to_a_source_that_goes_on(failing: str | None) -> None:
    recorded = Recorded("establish", *([failing] if failing else []))
    with pytest.raises(HandoverError, match="cannot establish"):
        run(recorded.handover.ready())
    kept = [where for where in ("router", "client") if f"losses {where}" != failing]
    assert isinstance(recorded.source, RecordingSource)
    assert recorded.source.given_back == [lost_at(where) for where in kept]
