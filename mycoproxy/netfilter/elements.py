"""Elements of nftables sets and maps that are keyed by a connection's 4-tuple.

Tables, chains and rules are written once and early, as text, through libnftables. What changes
during a handover is only which connections are in which set, and that goes to the kernel in its
own form: constant cost, however large the node's other rulesets are.

A concatenated key is its fields one after the other, each filled up to four bytes
(net/netfilter/nft_set_*.c reads it from 32-bit registers).
"""

import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mycoproxy.addresses import Endpoint, wire_address
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.nfnetlink import Request, attribute, attribute_header, nested, parse, walk

# A list of elements is one attribute, and an attribute's length has 16 bits.
_ELEMENTS_A_MESSAGE = 400

_PORT_FIELD = struct.Struct(">Hxx")


@dataclass(frozen=True)
class SetChange:
    """Elements to add to a set or to delete from it. No keys and ``delete``: all of them.

    ``keys`` are encoded; ``data`` has one value for each key if the set is a map.
    """

    set_name: str
    keys: Sequence[bytes] = ()
    data: Sequence[bytes] = ()
    delete: bool = False


# Addresses repeat in a handover, and the standard library's classes cost 10 us each.
@lru_cache(maxsize=1 << 14)
def packed(address: str) -> bytes:
    """The address in network order: 4 or 16 bytes. Raises ``OSError``."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@lru_cache(maxsize=1 << 14)
def read_address(value: bytes) -> str:
    """An address in its canonical text form from its 4 or 16 bytes."""
    return str(ipaddress.ip_address(value))


@lru_cache(maxsize=1 << 14)
def _wire_address(address: str) -> str:
    return wire_address(address)


def on_the_wire(endpoint: Endpoint) -> Endpoint:
    """The endpoint as packets have it: IPv4-mapped addresses are IPv4."""
    if ":" not in endpoint.address:
        return endpoint
    return Endpoint(_wire_address(endpoint.address), endpoint.port)


def endpoint_key(endpoint: Endpoint) -> bytes:
    """``ip addr . tcp port``."""
    return packed(endpoint.address) + _PORT_FIELD.pack(endpoint.port)


def pair_key(source: Endpoint, destination: Endpoint) -> bytes:
    """``ip saddr . tcp sport . ip daddr . tcp dport``."""
    return endpoint_key(source) + endpoint_key(destination)


def port_key(port: int) -> bytes:
    """``tcp dport``, as a key or as a map's value."""
    return struct.pack(">H", port)


def read_port(value: bytes) -> int:
    """What ``port_key`` wrote."""
    return int.from_bytes(value, "big")


def read_pair(key: bytes) -> tuple[Endpoint, Endpoint]:
    """What ``pair_key`` wrote."""
    half = len(key) // 2
    return _read_endpoint(key[:half]), _read_endpoint(key[half:])


def _read_endpoint(key: bytes) -> Endpoint:
    return Endpoint(read_address(key[:-4]), int.from_bytes(key[-4:-2], "big"))


def change_requests(table: str, changes: Iterable[SetChange]) -> list[Request]:
    """The messages that carry ``changes`` to inet table ``table``, in order."""
    return [request for change in changes for request in _requests(table, change)]


def delete_table_request(table: str) -> Request:
    """The message that deletes inet table ``table`` with everything in it."""
    return _request(abi.NFT_MSG_DELTABLE, attribute(abi.NFTA_TABLE_NAME, _text(table)))


def get_table_request(table: str) -> Request:
    """The query whether inet table ``table`` exists."""
    return _request(abi.NFT_MSG_GETTABLE, attribute(abi.NFTA_TABLE_NAME, _text(table)))


def list_request(table: str, set_name: str) -> Request:
    """The dump of a set's elements."""
    return _request(abi.NFT_MSG_GETSETELEM, _set_of(table, set_name))


def read_elements(attributes: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, data) of each element in one answer to ``list_request``; data is empty in a set."""
    elements = parse(attributes).get(abi.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
    for _, element in walk(elements):
        fields = parse(element)
        yield _value(fields[abi.NFTA_SET_ELEM_KEY]), _value(fields.get(abi.NFTA_SET_ELEM_DATA, b""))


def _requests(table: str, change: SetChange) -> Iterator[Request]:
    operation = abi.NFT_MSG_DELSETELEM if change.delete else abi.NFT_MSG_NEWSETELEM
    target = _set_of(table, change.set_name)
    if change.delete and not change.keys:
        yield _request(operation, target)
        return
    data = change.data or [b""] * len(change.keys)
    elements = [_element(key, value) for key, value in zip(change.keys, data, strict=True)]
    flags = 0 if change.delete else abi.NLM_F_CREATE
    for start in range(0, len(elements), _ELEMENTS_A_MESSAGE):
        listed = nested(
            abi.NFTA_SET_ELEM_LIST_ELEMENTS, *elements[start : start + _ELEMENTS_A_MESSAGE]
        )
        yield _request(operation, target + listed, flags)


def _request(operation: int, attributes: bytes, flags: int = 0) -> Request:
    return Request(abi.NFNL_SUBSYS_NFTABLES, operation, abi.NFPROTO_INET, attributes, flags)


def _set_of(table: str, set_name: str) -> bytes:
    return attribute(abi.NFTA_SET_ELEM_LIST_TABLE, _text(table)) + attribute(
        abi.NFTA_SET_ELEM_LIST_SET, _text(set_name)
    )


def _element(key: bytes, data: bytes) -> bytes:
    # Keys and addresses fill whole words; a port alone is padded.
    before, between = _element_headers(len(key), len(data))
    if not data:
        return before + key + bytes(-len(key) % 4)
    return before + key + between + data + bytes(-len(data) % 4)


@lru_cache(maxsize=32)
def _element_headers(key_size: int, data_size: int) -> tuple[bytes, bytes]:
    """What stands ahead of the key, and what between key and data, in an element."""
    header, nest = attribute_header, abi.NLA_F_NESTED
    key_room = key_size + -key_size % 4
    data_room = 8 + data_size + -data_size % 4 if data_size else 0
    before = (
        header(abi.NFTA_LIST_ELEM | nest, 8 + key_room + data_room)
        + header(abi.NFTA_SET_ELEM_KEY | nest, 4 + key_room)
        + header(abi.NFTA_DATA_VALUE, key_size)
    )
    between = header(abi.NFTA_SET_ELEM_DATA | nest, 4 + data_size) + header(
        abi.NFTA_DATA_VALUE, data_size
    )
    return before, between


def _value(data: bytes) -> bytes:
    return parse(data).get(abi.NFTA_DATA_VALUE, b"")


def _text(name: str) -> bytes:
    return name.encode() + b"\0"
