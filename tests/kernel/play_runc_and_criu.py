"""Plays runc, or CRIU, on one end of their RPC socket: a list of steps, for the tests of the gate.

A program on its own (standard library only), started the way the real ones are:

* as ``PROGRAM runc``: for each session in PLAY_RUNC (JSON: a list of lists of steps) it starts
  ``criu swrk 3`` from PATH with one end of a SOCK_SEQPACKET pair as descriptor 3;
* as ``criu swrk 3``: it takes the first packet, and the steps that PLAY_CRIU (JSON) has for its
  type.

What happens is noted in the file PLAY_NOTES, one JSON object a line.
"""

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path


def note(role: str, what: str, value: object = None) -> None:
    """Append one line, in one write."""
    line = json.dumps({"role": role, "what": what, "value": value}) + "\n"
    fd = os.open(os.environ["PLAY_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


def receive(role: str, sock: socket.socket) -> bytes:
    """One packet, and what can be read from the descriptors that came with it."""
    data, fds, _, _ = socket.recv_fds(sock, 1 << 20, 16)
    note(role, "received", data.hex())
    for fd in fds:
        note(role, "read", os.read(fd, 100).decode())
        os.close(fd)
    return data


def play(  # noqa: PLR0912 - one branch for each step
    role: str, sock: socket.socket, steps: list[list[str]]
) -> None:
    """Take the steps, one after the other."""
    for what, *arguments in steps:
        if what == "send":
            sock.send(bytes.fromhex(arguments[0]))
        elif what == "send with descriptor":
            reader, writer = os.pipe()
            os.write(writer, arguments[1].encode())
            socket.send_fds(sock, [bytes.fromhex(arguments[0])], [reader])
            os.close(reader)
            os.close(writer)
        elif what == "receive":
            receive(role, sock)
        elif what == "descriptors":
            links = {}
            for entry in Path("/proc/self/fd").iterdir():
                try:
                    links[entry.name] = str(entry.readlink())
                except FileNotFoundError:
                    continue  # the listing's own
            note(role, what, links)
        elif what == "network namespace":
            note(role, what, str(Path("/proc/self/ns/net").readlink()))
        elif what == "wait for":
            deadline = time.monotonic() + 30
            while not Path(arguments[0]).exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(arguments[0])
                time.sleep(0.005)
        elif what == "ignore everything":
            signal.pause()
        elif what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "await the end":
            with suppress(ConnectionResetError):  # the end, with something of ours unread
                while receive(role, sock):
                    pass
        else:
            raise ValueError(what)


def play_runc() -> None:
    """Ask as often as there are sessions, each time through a CRIU of its own."""
    for steps in json.loads(os.environ["PLAY_RUNC"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        child = os.posix_spawnp("criu", ["criu", "swrk", "3"], os.environ, file_actions=actions)
        theirs.close()
        play("runc", ours, steps)
        ours.close()
        _, status = os.waitpid(child, 0)
        note("runc", "criu ended", os.waitstatus_to_exitcode(status))


def play_criu() -> None:
    """Serve one request."""
    note("criu", "started", [os.getpid(), os.environ.get("LD_PRELOAD")])
    sock = socket.socket(fileno=int(sys.argv[2]))
    request = receive("criu", sock)
    if request:
        play("criu", sock, json.loads(os.environ["PLAY_CRIU"])[str(request[1])])


if __name__ == "__main__":
    Path(os.environ["PLAY_NOTES"]).touch()
    if sys.argv[1] == "swrk":
        play_criu()
    else:
        play_runc()
