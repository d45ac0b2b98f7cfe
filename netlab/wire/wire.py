"""Join two network namespaces by a wire::

with Wire.join(left, "eth0", right, "eth0", Impairment(loss=0.03), seed=1) as wire:
    ...                            # addresses and routes are the caller's business
    wire.impair(Impairment())      # heal it
    assert wire.counters().lost
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import ParamSpec, Protocol, Self, TypeVar

from mycoproxy.errors import MycoError
from netlab.wire.impairment import Counters, Impairment
from netlab.wire.tap import open_tap

P = ParamSpec("P")
T = TypeVar("T")

_ANSWER_SECONDS = 10.0
_ANSWER_BYTES = 4096


class InNamespace(Protocol):
    """Runs functions on a thread of a network namespace: a ``NamespaceWorker``, for instance."""

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` there and wait for its result."""


class Wire:
    """Two TAP devices and the process between them. To be used by one thread at a time.

    Everything ends with `close`, and just so if the process that holds this object is killed: the
    process in between ends, and with it both devices.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    def join(
        cls,
        left: InNamespace,
        left_ifname: str,
        right: InNamespace,
        right_ifname: str,
        impairment: Impairment | None = None,
        *,
        seed: int = 0,
        mtu: int = 1500,
        offload: bool = False,
    ) -> Self:
        """A wire from an interface in ``left`` to one in ``right``, both new, and up.

        ``impairment`` holds for both directions, each with random numbers of its own from ``seed``.
        ``mtu`` is bytes. ``offload`` lets TCP hand over up to 64 KiB at a time: fast, but all of
        that is then lost as one packet. Raises ``MycoError``.
        """
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.settimeout(_ANSWER_SECONDS)
        passed: list[int] = []
        with there:
            try:
                for worker, ifname in ((left, left_ifname), (right, right_ifname)):
                    passed.append(worker.call(open_tap, ifname, mtu=mtu, offload=offload))
                passed.append(there.fileno())
                process = subprocess.Popen(
                    [sys.executable, "-m", "netlab.wire", *map(str, passed), str(seed)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=passed,
                    process_group=0,  # a Ctrl-C is the parent's
                )
            except BaseException:
                here.close()
                raise
            finally:
                for tap in passed[:2]:
                    os.close(tap)
        wire = cls(process, here)
        try:
            wire.impair(impairment or Impairment())
        except BaseException:
            wire.close()
            raise
        return wire

    @property
    def pid(self) -> int:
        """The process in between."""
        return self._process.pid

    def impair(self, impairment: Impairment) -> None:
        """From now on do this to packets, in both directions. ``Impairment()`` heals the wire.

        What is under way is not changed. Raises ``MycoError`` if the wire has ended.
        """
        self._ask(asdict(impairment))

    def counters(self) -> Counters:
        """What happened until now, both directions together. Raises ``MycoError`` as `impair`."""
        return self._ask(None)

    def close(self) -> None:
        """Take the wire away, interfaces included. What is under way is lost."""
        with suppress(OSError):  # not a plain close: a fork of this process may have a copy
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: dict[str, float | None] | None) -> Counters:
        try:
            self._control.send(json.dumps(request).encode())
            answer = self._control.recv(_ANSWER_BYTES)
        except OSError as error:
            raise MycoError(f"{self} does not answer: {error}") from error
        if not answer:
            raise MycoError(f"{self} has ended")
        return Counters(**json.loads(answer))

    def __str__(self) -> str:
        return f"wire (pid {self.pid})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
