"""The addresses of sockets in CRIU's ``files.img``; layouts after CRIU's images/*.proto."""

import socket
import struct

import pytest

from migrate.runtime.criu_rpc import Field, RpcError, parse, serialize
from migrate.runtime.inet_images import with_addresses

MAGIC = struct.pack("<II", 0x54564319, 0x56303138)
ADDRESSES = {"10.1.0.2": "10.2.0.9", "fd01::2": "fd02::9"}
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10


def words(address: str) -> list[int]:
    version = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(version, address)
    return list(struct.unpack(f"={len(packed) // 4}I", packed))


def inet_socket(
    source: str, destination: str, *, proto: int = socket.IPPROTO_UDP, state: int = CLOSE
) -> bytes:
    fields = [Field(1, 0, 7), Field(5, 0, proto), Field(6, 0, state), Field(7, 0, 53)]
    fields += [Field(11, 0, word) for word in words(source)]
    fields += [Field(12, 0, word) for word in words(destination)]
    return serialize([*fields, Field(13, 2, b"\x08\x00"), Field(99, 2, b"of a later CRIU")])


def image(*entries: bytes) -> bytes:
    return MAGIC + b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)


def file(sock: bytes) -> bytes:
    return serialize([Field(1, 0, 4), Field(2, 0, 19), Field(4, 2, sock)])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("10.1.0.2", "10.2.0.9"),
        ("fd01::2", "fd02::9"),
        ("::ffff:10.1.0.2", "::ffff:10.2.0.9"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("10.1.0.3", "10.1.0.3"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_address_that_a_udp_socket_is_bound_to_is_changed_if_it_moves(
    old: str, new: str
) -> None:
    other = "192.0.2.7" if "." in old and ":" not in old else "2001:db8::7"
    before, after = (image(file(inet_socket(one, other))) for one in (old, new))
    assert with_addresses(before, ADDRESSES) == after


def test_so_is_a_peer_that_is_the_workload_itself() -> None:
    before = inet_socket("10.1.0.2", "10.1.0.2", state=ESTABLISHED)
    after = inet_socket("10.2.0.9", "10.2.0.9", state=ESTABLISHED)
    assert with_addresses(image(file(before)), ADDRESSES) == image(file(after))


def test_of_tcp_only_listeners_are_changed() -> None:
    listener, connection = (
        file(inet_socket("10.1.0.2", "0.0.0.0", proto=socket.IPPROTO_TCP, state=state))
        for state in (LISTEN, ESTABLISHED)
    )
    moved = file(inet_socket("10.2.0.9", "0.0.0.0", proto=socket.IPPROTO_TCP, state=LISTEN))
    assert with_addresses(image(listener, connection), ADDRESSES) == image(moved, connection)


def test_everything_else_passes_untouched() -> None:
    regular = serialize([Field(1, 0, 1), Field(2, 0, 3), Field(3, 2, b"\x08\x03\x12\x01/")])
    whole = image(regular, file(inet_socket("192.0.2.1", "192.0.2.2")), regular)
    assert with_addresses(whole, ADDRESSES) == whole


def test_a_packed_list_of_words_is_understood() -> None:
    packed = bytearray()
    for word in words("fd01::2"):
        packed += serialize([Field(1, 0, word)])[1:]
    sock = serialize([Field(5, 0, socket.IPPROTO_UDP), Field(11, 2, bytes(packed))])
    changed = with_addresses(image(file(sock)), ADDRESSES)
    inner = next(one.value for one in parse(changed[12:]) if one.number == 4)
    assert isinstance(inner, bytes)
    assert [one.value for one in parse(inner) if one.number == 11] == words("fd02::9")


@pytest.mark.parametrize("damaged", [b"", b"nonsense", image(b"\x08\x04")[:-1], MAGIC + b"\1"])
def test_what_is_no_such_image_is_refused(damaged: bytes) -> None:
    with pytest.raises(RpcError, match=r"files\.img"):
        with_addresses(damaged, ADDRESSES)
