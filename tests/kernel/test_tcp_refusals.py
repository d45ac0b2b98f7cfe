"""What cannot move is refused by name; everything else is not."""

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from mycoproxy.tcp.refusals import refusal
from mycoproxy.tcp.signatures import SignatureLookup, known

pytestmark = [pytest.mark.root, pytest.mark.timeout(20)]

_TCP_FASTOPEN_CONNECT = 30
_TCP_MD5SIG = 14
_TCP_ULP = 31
_SO_ATTACH_BPF = 50
_IPPROTO_MPTCP = 262
_BPF_PROG_LOAD, _BPF_PROG_TYPE_SOCKET_FILTER = 5, 1  # include/uapi/linux/bpf.h
_SYS_BPF = {"x86_64": 321}.get(os.uname().machine, 280)
_FASTOPEN_BOTH_WITHOUT_COOKIE = 0x1 | 0x2 | 0x4 | 0x200

# Answers to a SYN never arrive, so handshakes stay under way.
_NO_ANSWERS = """
table inet lab {
    chain silence {
        type filter hook input priority raw; policy accept;
        tcp flags & (syn | ack) == (syn | ack) drop
    }
}
"""


@contextmanager
def connection(
    host: str, *, before: Any = None, call: Any = None
) -> Iterator[tuple[socket.socket, socket.socket, socket.socket]]:
    """A listener and both ends; ``before`` prepares listener and client before they connect."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    make = call or (lambda function, *arguments: function(*arguments))
    with ExitStack() as stack:
        listener, client = (
            stack.enter_context(make(socket.socket, family, socket.SOCK_STREAM)) for _ in range(2)
        )
        listener.bind(("::" if "ffff" in host else host, 0))
        if before is not None:
            before(listener)
            before(client)
        listener.listen()
        client.connect((host, listener.getsockname()[1]))
        server = stack.enter_context(listener.accept()[0])
        yield listener, client, server


def sign(sock: socket.socket, host: str) -> None:
    """TCP_MD5SIG: ``struct tcp_md5sig`` with a key for whoever has that address."""
    if ":" in host:
        address = struct.pack("=HHI", socket.AF_INET6, 0, 0) + socket.inet_pton(
            socket.AF_INET6, host
        )
    else:
        address = struct.pack("=HH", socket.AF_INET, 0) + socket.inet_aton(host)
    key = b"secret"
    value = address.ljust(128, b"\0") + struct.pack("=BBHi", 0, 0, len(key), 0) + key
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, value.ljust(216, b"\0"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_usual_sockets_are_not_refused(host: str) -> None:
    with connection(host) as socks, SignatureLookup(socks[0]) as signatures:
        for sock in socks:
            assert refusal(sock) is None
            assert refusal(sock, signatures) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_closed_socket_is_not_refused(family: int) -> None:
    with socket.socket(family) as sock:
        assert refusal(sock) is None


@pytest.mark.parametrize(
    ("kind", "protocol", "said"),
    [
        (socket.SOCK_STREAM, _IPPROTO_MPTCP, "Multipath TCP"),
        (socket.SOCK_DGRAM, 0, "not a TCP socket"),
    ],
)
def test_other_protocols_are_named(kind: int, protocol: int, said: str) -> None:
    try:
        sock = socket.socket(socket.AF_INET, kind, protocol)
    except OSError as error:
        pytest.skip(f"no such socket here: {error}")
    with sock:
        assert said in (refusal(sock) or "")


def test_a_unix_socket_is_no_tcp_socket() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert "not a TCP socket" in (refusal(one) or "")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_signed_segments_are_refused(host: str) -> None:
    if not known():
        pytest.skip("this kernel has no TCP_MD5SIG")
    with connection(host, before=lambda sock: sign(sock, host)) as socks:
        for sock in socks:
            assert refusal(sock) == "its segments are signed (TCP_MD5SIG)"


def test_signatures_are_found_in_the_sockets_own_namespace(network: Any) -> None:
    if not known():
        pytest.skip("this kernel has no TCP_MD5SIG")
    node = network.node("signing")

    def before(sock: socket.socket) -> None:
        sign(sock, "127.0.0.1")

    with connection("127.0.0.1", before=before, call=node.call) as (_, client, _):
        assert "TCP_MD5SIG" in (refusal(client) or "")


def test_signatures_are_found_on_a_socket_that_is_bound_to_an_interface() -> None:
    if not known():
        pytest.skip("this kernel has no TCP_MD5SIG")

    def before(sock: socket.socket) -> None:
        sign(sock, "127.0.0.1")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")

    with connection("127.0.0.1", before=before) as (_, client, server):
        for sock in (client, server):
            assert "TCP_MD5SIG" in (refusal(sock) or "")


def test_kernel_tls_is_refused() -> None:
    with connection("127.0.0.1") as (_, client, _):
        try:
            client.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError as error:
            pytest.skip(f"no kernel TLS here (CONFIG_TLS): {error}")
        assert refusal(client) == "it uses kernel TLS (TCP_ULP=tls)"


def test_an_ebpf_filter_is_refused_and_a_classic_one_is_not() -> None:
    with connection("127.0.0.1") as (_, client, server):
        instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF))
        classic = struct.pack("@HP", 1, ctypes.addressof(instruction))
        server.setsockopt(socket.SOL_SOCKET, 26, classic)
        assert refusal(server) is None
        program = _accept_everything()
        try:
            client.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program)
        finally:
            os.close(program)
        assert refusal(client) == "it has an eBPF filter (SO_ATTACH_BPF), which cannot be read"


def test_fast_open_in_flight_is_refused_on_both_ends(network: Any) -> None:
    node = network.node("fast")
    node.sysctl("net.ipv4.tcp_fastopen", _FASTOPEN_BOTH_WITHOUT_COOKIE)
    node.call(subprocess.run, ["nft", "-f", "-"], input=_NO_ANSWERS, text=True, check=True)
    with ExitStack() as stack:
        listener, waiting, sending, usual = (
            stack.enter_context(node.call(socket.socket, socket.AF_INET)) for _ in range(4)
        )
        listener.bind(("127.0.0.1", 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        listener.listen()
        assert refusal(listener) is None

        waiting.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
        waiting.connect(listener.getsockname())
        assert refusal(waiting) == "it waits for data to send with its SYN (TCP_FASTOPEN_CONNECT)"

        sending.setblocking(False)
        assert sending.sendto(b"early", socket.MSG_FASTOPEN, listener.getsockname()) == 5
        assert refusal(sending) == (
            "it sent data with its SYN (TCP Fast Open), and has no answer yet"
        )
        accepted = stack.enter_context(listener.accept()[0])
        assert refusal(accepted) == (
            "it was accepted by TCP Fast Open, and its handshake is not complete"
        )

        usual.setblocking(False)
        with pytest.raises(BlockingIOError):
            usual.connect(listener.getsockname())
        assert refusal(usual) is None


def _accept_everything() -> int:
    """An eBPF socket filter: r0 = -1; exit."""
    code = ctypes.create_string_buffer(
        struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ",
        _BPF_PROG_TYPE_SOCKET_FILTER,
        2,
        ctypes.addressof(code),
        ctypes.addressof(licence),
    ).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_BPF, _BPF_PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        pytest.skip(f"no eBPF here: {os.strerror(ctypes.get_errno())}")
    return fd
