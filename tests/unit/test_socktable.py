"""Lines of /proc/net/tcp, as a little-endian machine prints them."""

import sys

import pytest

from mycoproxy.addresses import Endpoint
from mycoproxy.socktable import parse_line

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the samples are little-endian")


def test_a_listening_socket_has_no_remote_end() -> None:
    line = parse_line("   0: 0100007F:18EB 00000000:0000 0A 0:0 00:0 0 0 0 17 1")
    assert (line.local, line.remote, line.inode) == (Endpoint("127.0.0.1", 6379), None, 17)


def test_a_connection_has_both_ends() -> None:
    line = parse_line("   1: 0A00000A:18EB 0B00000A:9C40 01 0:0 00:0 0 0 0 0 1")
    assert line.local == Endpoint("10.0.0.10", 6379)
    assert line.remote == Endpoint("10.0.0.11", 40000)


def test_ipv6_addresses_are_four_words() -> None:
    line = parse_line(
        "   0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A "
        "0:0 00:0 0 0 0 17 1"
    )
    assert line.local == Endpoint("2001:db8::1", 80)


def test_a_mapped_address_keeps_its_form() -> None:
    line = parse_line(
        "   0: 0000000000000000FFFF00000100000A:0050 0000000000000000FFFF00000200000A:0051 01 "
        "0:0 00:0 0 0 0 17 1"
    )
    assert line.local == Endpoint("::ffff:10.0.0.1", 80)
