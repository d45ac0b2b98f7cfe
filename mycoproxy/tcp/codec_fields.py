"""What the fields of a ``TcpState`` may be, each alone and together.

The codec asks on both sides: what a reader would refuse is refused by its writer, while the source
still has its connection. Only what the kernel can hold, and ``establish`` can put back, passes.
"""

import socket
from typing import Final

from mycoproxy.tcp.abi import TCP_MAX_WSCALE, TcpConnectionState
from mycoproxy.tcp.errors import CodecError
from mycoproxy.tcp.options import Settings
from mycoproxy.tcp.segments import SEQUENCE_SPACE
from mycoproxy.tcp.state import FIN_RECEIVED, FIN_SENT, TcpState

LARGEST_QUEUE: Final = 64 * 1024 * 1024
"""Bytes a queue may hold; the kernel's defaults are 4 MiB (send) and 6 to 32 MiB (receive)."""

MOST_OPTIONS: Final = 128
LARGEST_OPTION_NUMBER: Final = 1023
LARGEST_OPTION: Final = 4096
"""Bytes of an option's value."""

_LARGEST_BUFFER = 0x7FFFFFFF
_LARGEST_LOCK = 3  # SOCK_BUF_LOCK_MASK, include/uapi/linux/socket.h
_LARGEST_MSS = 0xFFFF
_SMALLEST_MSS = 48  # TCP_MIN_SND_MSS, include/net/tcp.h
_LARGEST_ERROR = 4095  # MAX_ERRNO, include/linux/err.h

_CLOSE, _SYN_SENT, _FIN_WAIT2 = (
    TcpConnectionState.CLOSE,
    TcpConnectionState.SYN_SENT,
    TcpConnectionState.FIN_WAIT2,
)
_MOVABLE = tuple(
    sorted(FIN_SENT | FIN_RECEIVED | {TcpConnectionState.ESTABLISHED, _CLOSE, _SYN_SENT})
)
_MAPPED = bytes(10) + b"\xff\xff"


def wrong(state: TcpState, name: str, wanted: object, found: object) -> CodecError:
    """The error for one field: what was wanted, what was found, whose it is."""
    told = f"{len(found)} bytes" if isinstance(found, bytes) else f"{found!r:.64}"
    return CodecError(f"{name}: {wanted} wanted, {told} found ({state.connection})")


def check(state: TcpState, local: bytes, remote: bytes) -> None:
    """Raises ``CodecError`` for the first field that is wrong, alone or beside the others.

    ``local`` and ``remote`` are the addresses as they are in packets.
    """
    if state.state not in _MOVABLE:
        names = ", ".join(each.name for each in _MOVABLE)
        raise wrong(state, "state", f"one of {names}", state.state.name)
    _check_numbers(state)
    urgent = state.receive.urgent
    if urgent is not None and not 0 <= urgent < len(state.receive.data):
        raise wrong(state, "receive urgent", "an offset in the receive queue", urgent)
    if state.options:
        check_settings(state.options, str(state.connection))
    if state.state is _CLOSE:
        _check_ended(state, remote)
        return
    _check_endpoints(state, local, remote)
    if state.error:
        raise wrong(state, "error", f"0 in {state.state.name}", state.error)
    if state.state is _SYN_SENT:
        _check_nothing_sent(state)
        if state.receive.data:
            raise wrong(state, "receive queue", "none in SYN_SENT", state.receive.data)
        if state.shut_down:
            raise wrong(state, "shut_down", "false in SYN_SENT", state.shut_down)
        return
    if state.state is _FIN_WAIT2:
        _check_nothing_sent(state)
    _check_window(state)


def _check_numbers(state: TcpState) -> None:
    send, receive, lock, window_clamp = state.buffers
    scale_send, scale_receive = state.negotiated.window_scale or (0, 0)
    for name, found, lowest, highest in (
        ("mss_clamp", state.negotiated.mss_clamp, _SMALLEST_MSS, _LARGEST_MSS),
        ("window_scale send", scale_send, 0, TCP_MAX_WSCALE),
        ("window_scale receive", scale_receive, 0, TCP_MAX_WSCALE),
        ("buffers send", send, 0, _LARGEST_BUFFER),
        ("buffers receive", receive, 0, _LARGEST_BUFFER),
        ("buffers lock", lock, 0, _LARGEST_LOCK),
        ("buffers window_clamp", window_clamp, 0, _LARGEST_BUFFER),
        ("error", state.error, 0, _LARGEST_ERROR),
        ("receive queue", len(state.receive.data), 0, LARGEST_QUEUE),
        ("sent bytes", len(state.send.sent), 0, LARGEST_QUEUE),
        ("unsent bytes", len(state.send.unsent), 0, LARGEST_QUEUE),
    ):
        if not lowest <= found <= highest:
            raise wrong(state, name, f"a number from {lowest} to {highest}", found)
    timestamps = state.negotiated.timestamps
    if timestamps is not None and timestamps.clock & 1:
        raise wrong(state, "timestamps clock", "an even number", timestamps.clock)


def check_settings(settings: Settings, whose: str) -> None:
    """Raises ``CodecError`` for options that cannot be."""
    if len(settings) > MOST_OPTIONS:
        raise CodecError(f"options: at most {MOST_OPTIONS} wanted, {len(settings)} found ({whose})")
    seen = set()
    for number, value in settings:
        if not 0 <= number <= LARGEST_OPTION_NUMBER:
            raise CodecError(
                f"option: a number from 0 to {LARGEST_OPTION_NUMBER} wanted, {number} found "
                f"({whose})"
            )
        if number in seen:
            raise CodecError(f"option {number}: one value wanted, more found ({whose})")
        seen.add(number)
        if isinstance(value, bytes) and len(value) > LARGEST_OPTION:
            raise CodecError(
                f"option {number}: at most {LARGEST_OPTION} bytes wanted, {len(value)} found "
                f"({whose})"
            )


def _check_endpoints(state: TcpState, local: bytes, remote: bytes) -> None:
    """Of a connection that has a name."""
    for name, endpoint, address in (
        ("local", state.local, local),
        ("remote", state.remote, remote),
    ):
        if not endpoint.port:
            raise wrong(state, f"{name} port", f"not 0 in {state.state.name}", 0)
        if not any(address):
            raise wrong(
                state, name, f"an address that is specified in {state.state.name}", endpoint.address
            )
    if state.family == socket.AF_INET6 and local.startswith(_MAPPED) != remote.startswith(_MAPPED):
        raise wrong(
            state,
            "remote",
            f"an address of the same family as {state.local.address}",
            state.remote.address,
        )


def _check_ended(state: TcpState, remote: bytes) -> None:
    if state.remote.port or any(remote):
        raise wrong(state, "remote", "no address and port 0 in CLOSE", f"{state.remote}")
    _check_nothing_sent(state)
    if state.receive.urgent is not None:
        raise wrong(state, "receive urgent", "none in CLOSE", state.receive.urgent)
    if state.receive.data and not state.shut_down:  # tcp_disconnect purges it (net/ipv4/tcp.c)
        raise wrong(state, "receive queue", "none in CLOSE without shut_down", state.receive.data)


def _check_nothing_sent(state: TcpState) -> None:
    for name, data in (("sent bytes", state.send.sent), ("unsent bytes", state.send.unsent)):
        if data:
            raise wrong(state, name, f"none in {state.state.name}", data)


def _check_window(state: TcpState) -> None:
    """The rules of tcp_repair_set_window (net/ipv4/tcp.c), which would answer EINVAL."""
    snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup = state.window
    expected = state.next_expected
    if max_window < snd_wnd:
        raise wrong(state, "window max_window", f"at least snd_wnd {snd_wnd}", max_window)
    if _after(snd_wl1, expected + rcv_wnd):
        raise wrong(state, "window snd_wl1", f"at most {expected} + rcv_wnd {rcv_wnd}", snd_wl1)
    if _after(rcv_wup, expected):
        raise wrong(state, "window rcv_wup", f"at most {expected}", rcv_wup)


def _after(one: int, other: int) -> bool:
    """``after`` (include/net/tcp.h): signed difference of sequence numbers."""
    return (other - one) % SEQUENCE_SPACE >= SEQUENCE_SPACE // 2
