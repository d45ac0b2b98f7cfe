#!/usr/bin/env -S python3 -ISE
"""What runc finds on PATH as ``criu``: lets the mover into the talk, then becomes the real CRIU.

runc starts ``criu swrk 3`` and speaks RPC with it over descriptor 3. This program gives that
descriptor, and one end of a new pair, to the mover (``gate.py``) over the abstract socket named by
``MYCOPROXY_GATE``, and executes the real CRIU on the other end of the pair. So CRIU sits exactly
where runc wanted it (cgroup, parent, inherited descriptors), already started and waiting, long
before the freeze; and what passes between the two goes through the mover.

CRIU is put into the network namespace of the workload (``MYCOPROXY_GATE_NETNS``). What CRIU finds
to be its own namespace it neither dumps nor restores; a network namespace that runc declares
external it would still look through (a conntrack dump walks the whole hash table: 10 ms).

An executable of its own, without an import of this project: 10-20 ms, before the freeze.
"""

import ctypes
import os
import socket
import struct
import sys


def main() -> None:
    """Hand over the RPC socket and execute the real CRIU with the same arguments."""
    real = os.environ["MYCOPROXY_CRIU"]
    environment = dict(os.environ)
    preload = environment.pop("MYCOPROXY_CRIU_PRELOAD", "")
    if preload:
        environment["LD_PRELOAD"] = preload
    if sys.argv[1:2] == ["swrk"]:
        rpc = int(sys.argv[2])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gate:
            gate.connect("\0" + environment["MYCOPROXY_GATE"])
            hello = struct.pack("=i", os.getpid()) + environment["MYCOPROXY_GATE_KEY"].encode()
            socket.send_fds(gate, [hello], [rpc, theirs.fileno()])
            if gate.recv(1) != b"+":
                sys.exit("the gate does not want this CRIU")
        os.dup2(ours.fileno(), rpc)
        theirs.close()
        enter_network_namespace(environment["MYCOPROXY_GATE_NETNS"])
    os.execve(real, [real, *sys.argv[1:]], environment)  # noqa: S606


def enter_network_namespace(path: str) -> None:
    """setns(2), which Python has from 3.12 on only."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    if libc.setns(fd, 0x40000000) != 0:  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), f"setns({path})")
    os.close(fd)


if __name__ == "__main__":
    main()
