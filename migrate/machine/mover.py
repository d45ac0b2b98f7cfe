"""The mover: performs what the migration's state machine names, from one process.

I/O only; what follows what is in ``machine.py``. Everything slow (runc, CRIU's start, tables,
connections between the nodes) happens in ``prepare``, while the workload runs.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from migrate.machine.by_agents import AgentHandover
from migrate.machine.copies import RestoringCopy
from migrate.machine.ground import Ground, inspect
from migrate.machine.journal import Journal
from migrate.machine.machine import TABLE, Action, Event, State
from migrate.machine.places import Places
from migrate.machine.plan import MovePlan
from migrate.machine.report import MoveReport
from migrate.runtime.criu_rpc import (
    ManageCgroups,
    NetworkLock,
    Option,
    OptionValue,
    RequestType,
)
from migrate.runtime.gate import Gate
from migrate.runtime.inet_images import FILES_IMAGE, with_addresses
from migrate.runtime.runc import Job, Runc
from migrate.runtime.stream import ImageStream
from migrate.runtime.waiting import first_of
from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.handover import Handover, LocalSource, LocalTarget, Nodes
from mycoproxy.statetable import Driver, Transition

_FOLLOW_SECONDS = 0.005  # between looks for new connections that came to the old place
_LOG_LEVEL = 2  # errors and warnings; more is a write(2) for every line


class MoveError(MycoError):
    """A move did not come about; the source goes on, unless the message says otherwise."""


class Mover:
    """One move. ``run`` it once.

    ``progress`` is called with a few words as each step begins, also during the freeze: it must
    be quick. ``switch`` is called, in a thread of its own, once the workload runs on the target: to
    lead new connections there. Those that come to the source until then, or shortly after, are
    passed on.
    """

    def __init__(
        self,
        plan: MovePlan,
        *,
        progress: Callable[[str], None] = lambda _: None,
        switch: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self._progress = progress
        self._switch = switch
        self._stack = AsyncExitStack()
        self._driver = Driver(
            TABLE,
            done=Event.DONE,
            failed=Event.FAILED,
            perform=self._perform,
            record=self._record,
            # Not a dump: CRIU has to come to an end by itself, or the tasks keep its traces.
            interruptible=(Action.CHECK, Action.PREPARE, Action.RESTORE),
            abortable=(Action.FREEZE, Action.DUMP, Action.SEND, Action.HAND_OVER),
        )
        self._actions: dict[Action, Callable[[], Awaitable[None]]] = {
            Action.CHECK: self._check,
            Action.PREPARE: self._prepare,
            Action.FREEZE: self._freeze,
            Action.DUMP: self._dump,
            Action.SEND: self._send,
            Action.RESTORE: self._restore,
            Action.HAND_OVER: self._hand_over,
            Action.COMMIT: self._commit,
            Action.RESUME: self._resume,
            Action.GO_LIVE: self._go_live,
            Action.FINISH: self._finish,
            Action.REMOVE_SOURCE: self._remove_source,
            Action.CLEAN_UP: self._clean_up,
            Action.ABORT_RESTORE: self._abort_restore,
            Action.UNDO_HANDOVER: self._undo_handover,
            Action.THAW: self._thaw,
        }
        self.report = MoveReport(plan.move_id, plan.source.node, plan.target.node)
        self._places = Places(plan)
        self._journal: Journal | None = None
        self._handover: Handover | AgentHandover | None = None
        self._copy: RestoringCopy | None = None
        self._images: ImageStream | None = None
        self._dump_job: Job | None = None
        self._dump_gate: Gate | None = None
        self._frozen = False
        self._ground: Ground

    @property
    def moved(self) -> bool:
        """Whether the workload runs on the target: also if ``run`` raises, being cancelled late."""
        return self._copy is not None and self._copy.ran

    @property
    def stuck(self) -> bool:
        """Whether the move ended without anybody knowing if the copy is dead."""
        return self._driver.state is State.STUCK

    async def run(self) -> MoveReport:
        """Move the workload. Raises ``RefusedError`` (nothing was changed) or ``MoveError``.

        After a ``MoveError`` the source goes on as before, unless the message says otherwise. A
        cancellation is undone like a failure, up to the commit.
        """
        state = State.IDLE
        try:
            async with self._stack:
                state = await self._driver.feed(Event.START)
                if state is State.STUCK:
                    # What holds the connections has to outlive this process.
                    self._stack.pop_all()
        except (MycoError, OSError) as error:  # from closing what the move had open
            if state is State.IDLE:
                raise
            self._driver.errors.append(error)
        finally:
            gc.enable()
            if self._journal is not None:
                self._journal.close()
        if state is State.DONE:
            if isinstance(self._handover, AgentHandover):  # they tell when all is over
                self._fill_connections(self._handover)
            self.report.warnings += [_text(error) for error in self._driver.errors]
            return self.report
        raise self._failure(state)

    def _failure(self, state: State) -> MycoError:
        cause, *others = self._driver.errors
        if state is State.REFUSED:
            return cause if isinstance(cause, MycoError) else RefusedError(_text(cause))
        text = _text(cause)
        if self._frozen and state is State.ROLLED_BACK:
            others.append(
                MoveError(f"the source is still frozen: thaw {self._ground.cgroup.directory}")
            )
        if others:
            text += "; and while undoing: " + "; ".join(_text(error) for error in others)
        if state is State.STUCK:
            return MoveError(
                f"{text}; the copy on {self.plan.target.node} may still be alive, so the source "
                f"stays frozen and its connections held: make sure that the copy is dead, then "
                f"thaw {self._ground.cgroup.directory} or remove the container; "
                f"logs in {self._places.logs}"
            )
        if isinstance(cause, RefusedError) and not others:
            return cause
        return MoveError(f"{text}; rolled back, the source goes on; logs in {self._places.logs}")

    async def _perform(self, action: Action) -> None:
        self._progress(action.value)
        await self._actions[action]()

    def _record(self, state: State, event: Event, to: Transition[State, Action]) -> None:
        if self._journal is not None:
            self._journal.write(
                machine="move", state=state.value, event=event.value, next=to.state.value
            )

    def _mark(self, phase: str) -> None:
        self.report.marks[phase] = time.monotonic()

    # -- while the workload runs ------------------------------------------------------------

    async def _check(self) -> None:
        self._ground = await inspect(self.plan, self._stack)
        self.report.memory_bytes = self._ground.memory_bytes

    async def _prepare(self) -> None:
        async with asyncio.timeout(self.plan.deadlines.prepare):
            await self._prepare_both_sides()

    async def _prepare_both_sides(self) -> None:
        plan, places, ground = self.plan, self._places, self._ground
        places.make()
        self._journal = Journal(*places.journals)
        for part in ground.parts:
            self._stack.push_async_callback(part.close)
            await part.prepare()
        self._handover = self._make_handover(ground)
        addresses = plan.address_map()
        images = self._images = ImageStream(
            places.source_images,
            places.target_images,
            ground.channel,
            rewrite={FILES_IMAGE: lambda image: with_addresses(image, addresses)},
        )
        self._stack.push_async_callback(images.close)
        await images.reserve(ground.reserve_bytes)
        gate = self._dump_gate = Gate(places.dump_gate, ground.criu, netns=plan.source.pod_netns)
        self._stack.callback(gate.close)
        self._dump_job = await Runc(plan.source.runc_root).checkpoint(
            plan.source.container_id, images=places.source_images, environment=gate.environment
        )
        await first_of(gate.wait_for_request(RequestType.DUMP), self._dump_job.fail_when_ended())
        # runc reads the checkpoint's descriptors.json before it asks CRIU for anything.
        places.copy_descriptors()
        self._copy = RestoringCopy(plan.target, places, ground.criu)
        self._stack.push_async_callback(self._copy.close)
        await self._copy.prepare()
        await ground.datagrams.survey()

    def _make_handover(self, ground: Ground) -> Handover | AgentHandover:
        if ground.agents is not None:
            return AgentHandover(ground.agents)
        assert isinstance(ground.source, LocalSource) and isinstance(ground.target, LocalTarget)
        return Handover(
            ground.source,
            ground.target,
            ground.peers,
            addresses=self.plan.address_map(),
            nodes=Nodes(self.plan.source.node, self.plan.target.node),
            record_commit=self._record_commit,
            record=self._record_handover,
        )

    # -- while the workload stands ----------------------------------------------------------

    async def _freeze(self) -> None:
        # A collection in the middle of the handover would make it longer.
        gc.disable()
        self._mark("begin")
        self._frozen = True
        self._ground.cgroup.freeze(timeout=self.plan.deadlines.freeze)
        self._mark("freeze")

    async def _dump(self) -> None:
        assert self._dump_gate is not None
        deadline = self.plan.deadlines.dump
        options = {
            **self._common_options(),
            Option.IMAGES_DIR: str(self._places.source_images),
            # CRIU gives up by itself and cures the tasks; killing it in the middle would not.
            Option.TIMEOUT: max(1, int(deadline)),
        }
        assert self._images is not None
        self._images.start()
        collecting = asyncio.create_task(self._collect())
        try:
            async with asyncio.timeout(2 * deadline):
                try:
                    await self._dump_gate.go(options)
                except (MycoError, TimeoutError) as error:
                    raise MoveError(self._places.blame("dump", error)) from error
                await collecting
        except TimeoutError as error:
            raise MoveError("the connections were not found in time") from error
        finally:
            await asyncio.wait({collecting})
            if not collecting.cancelled():
                collecting.exception()  # seen: not the cause, if the dump failed first
        if not self._ground.cgroup.frozen():
            raise MoveError("CRIU left the source running after the dump")
        self._mark("dump")

    async def _collect(self) -> None:
        """Learn what the handover needs to know, while CRIU dumps."""
        assert self._handover is not None
        await self._handover.survey(await self._ground.source.collect())
        await self._ground.datagrams.collect()

    async def _send(self) -> None:
        assert self._images is not None
        async with asyncio.timeout(self.plan.deadlines.send):
            self.report.image_bytes = await self._images.finish()
        self._mark("send")

    async def _restore(self) -> None:
        assert self._copy is not None
        options = {
            **self._common_options(),
            Option.IMAGES_DIR: str(self._places.target_images),
        }
        try:
            async with asyncio.timeout(self.plan.deadlines.restore):
                self._copy_init = await self._copy.restore(options)
        except (MycoError, TimeoutError) as error:
            raise MoveError(self._places.blame("restore", error)) from error
        self._mark("restore")

    async def _hand_over(self) -> None:
        assert self._copy is not None and self._handover is not None
        self._ground.target.collect(self._copy_init, self._copy.pids())
        await self._ground.datagrams.restore(self._copy_init, self._copy.pids())
        await self._handover.ready()

    async def _commit(self) -> None:
        assert self._handover is not None
        await self._handover.commit()

    def _record_commit(self) -> None:
        assert self._journal is not None
        self._journal.write(machine="handover", event="committed")

    def _record_handover(self, state: object, event: object, to: object) -> None:
        if self._journal is not None:
            self._journal.write(
                machine="handover",
                state=getattr(state, "value", ""),
                event=getattr(event, "value", ""),
                next=to.state.value if isinstance(to, Transition) else "",
            )

    async def _resume(self) -> None:
        assert self._copy is not None
        self._mark("handover")
        try:
            async with asyncio.timeout(self.plan.deadlines.resume):
                await self._copy.resume()
        except (MycoError, TimeoutError) as error:
            raise MoveError(self._places.blame("restore", error)) from error

    async def _go_live(self) -> None:
        assert self._copy is not None and self._handover is not None
        try:
            await self._handover.go_live()
        finally:
            try:
                await self._ground.datagrams.deliver()
            finally:
                self._copy.let_run()

    async def _finish(self) -> None:
        assert self._copy is not None and self._handover is not None
        try:
            async with asyncio.timeout(self.plan.deadlines.resume):
                await self._copy.running()
        finally:
            self._fill_report(self._handover)

    def _fill_report(self, handover: Handover | AgentHandover) -> None:
        assert self._copy is not None
        self.report.marks["resume"] = self._copy.resumed_at
        self._fill_connections(handover)

    def _fill_connections(self, handover: Handover | AgentHandover) -> None:
        self.report.connections = handover.count
        self.report.rehomed = handover.rehomed
        self.report.replayed_packets = handover.replayed
        self.report.welcomed += handover.welcomed
        self.report.handover_steps_ms = handover.steps_ms
        self._fill_datagrams(handover)

    def _fill_datagrams(self, handover: Handover | AgentHandover) -> None:
        self.report.remarks = (*handover.remarks, *self._ground.datagrams.remarks)
        self.report.datagrams = self._ground.datagrams.delivered
        self.report.datagram_flows = self._ground.datagrams.flows

    async def _remove_source(self) -> None:
        assert self._handover is not None
        await self._ground.source.silence()
        failures = await _attempt(self._switch_over(self._handover))
        await self._handover.finish()
        await asyncio.to_thread(self._ground.cgroup.kill, timeout=self.plan.deadlines.remove)
        self._frozen = False
        assert self._dump_job is not None
        await self._dump_job.wait(timeout=self.plan.deadlines.remove)
        await Runc(self.plan.source.runc_root).delete(
            self.plan.source.container_id, timeout=self.plan.deadlines.remove
        )

        if failures:
            raise failures[0]

    async def _switch_over(self, handover: Handover | AgentHandover) -> None:
        switching = asyncio.create_task(asyncio.to_thread(self._switch))
        last = time.monotonic() + self.plan.deadlines.follow
        ended = asyncio.Event()
        datagrams = asyncio.create_task(self._ground.datagrams.follow(ended))
        try:
            while not switching.done() or time.monotonic() < last:
                self.report.welcomed += await handover.follow()
                await asyncio.sleep(_FOLLOW_SECONDS)
        finally:
            ended.set()
            await datagrams
        self._fill_datagrams(handover)
        await switching

    # -- back, and afterwards ---------------------------------------------------------------

    async def _abort_restore(self) -> None:
        assert self._copy is not None
        await self._copy.kill(timeout=self.plan.deadlines.remove)

    async def _undo_handover(self) -> None:
        if self._handover is not None:
            await self._handover.undo()

    async def _thaw(self) -> None:
        if self._frozen:
            self._ground.cgroup.thaw()
            self._frozen = False

    async def _clean_up(self) -> None:
        """End what is still waiting, in the order that lets runc clean up after itself.

        Every step is done, also if one before it fails.
        """
        deadline = self.plan.deadlines.remove
        failures: list[Exception] = []
        if self._copy is not None and not self._copy.ran:
            failures += await _attempt(self._copy.kill(timeout=deadline))
        if self._dump_gate is not None:
            self._dump_gate.refuse()
        if self._dump_job is not None:
            failures += await _attempt(self._dump_job.end(timeout=deadline))
        try:
            if self._driver.state is not State.CLEANING_UP:
                self._places.save_logs()
        except OSError as error:
            failures.append(error)
        if self._images is not None:
            # A receiver that is still at work would write into what is being removed.
            await self._images.close()
        self._places.remove()
        if failures:
            raise MoveError("; ".join(_text(failure) for failure in failures))

    def _common_options(self) -> dict[Option, OptionValue]:
        options: dict[Option, OptionValue] = {
            Option.IMAGES_DIR_FD: -1,
            Option.LOG_LEVEL: _LOG_LEVEL,
            Option.TCP_CLOSE: 1,
            # What waits to be accepted is no matter of CRIU's either.
            Option.TCP_SKIP_IN_FLIGHT: 1,
            Option.NETWORK_LOCK: NetworkLock.SKIP,
        }
        if self._ground.one_cgroup:
            # The tasks stay in the cgroup that runc made for them; looking through every
            # controller's files costs the dump 15 ms and the restore 10.
            options[Option.MANAGE_CGROUPS] = 0
            options[Option.MANAGE_CGROUPS_MODE] = ManageCgroups.IGNORE
        return options


async def _attempt(step: Awaitable[None]) -> list[Exception]:
    """What went wrong with a step that must not keep others from being done."""
    try:
        await step
    except (MycoError, OSError, TimeoutError) as error:
        return [error]
    return []


def _text(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "a step did not end in time"
    return str(error) or repr(error)
