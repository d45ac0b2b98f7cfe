"""pcap bytes made by scapy are read as scapy meant them."""

import random
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet
from scapy.utils import RawPcapWriter, wrpcap

from mycoproxy.errors import MycoError
from netlab.capture.packets import ACK, PSH, SYN, read_pcap
from netlab.capture.tcpdump import ClockOffset

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def write(path: Path, packets: list[Packet], *, nano: bool = True, snaplen: int = 65535) -> None:
    with RawPcapWriter(str(path), linktype=1, nano=nano, sync=True) as out:
        out.write_header(None)
        for index, packet in enumerate(packets):
            raw = bytes(packet)
            kept = raw[:snaplen]
            out.write_packet(kept, sec=1000, usec=index, caplen=len(kept), wirelen=len(raw))


def test_ipv4_and_ipv6_headers_are_decoded(tmp_path: Path) -> None:
    options = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
    four = IP(src="10.0.0.1", dst="10.0.0.2") / TCP(
        sport=40000, dport=6379, seq=2**32 - 5, ack=77, flags="PA", window=501, options=options
    )
    six = IPv6(src="fd00::1", dst="fd00::ffff:0:2") / TCP(sport=6379, dport=50000, flags="S")
    write(tmp_path / "a.pcap", [ETHER / four / (b"x" * 100), ETHER / six])
    found = read_pcap(tmp_path / "a.pcap")
    addresses = [
        (found.addresses[a], found.addresses[b])
        for a, b in zip(found.source, found.destination, strict=True)
    ]
    assert addresses == [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::ffff:0:2")]
    assert found.source_port.tolist() == [40000, 6379]
    assert found.destination_port.tolist() == [6379, 50000]
    assert found.seq.tolist() == [2**32 - 5, 0]
    assert found.ack.tolist() == [77, 0]
    assert found.flags.tolist() == [PSH | ACK, SYN]
    assert found.payload.tolist() == [100, 0]
    assert found.window.tolist() == [501, 8192]


def test_payload_length_does_not_depend_on_the_snap_length(tmp_path: Path) -> None:
    packet = ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A") / (b"x" * 1400)
    write(tmp_path / "a.pcap", [packet], snaplen=96)
    assert read_pcap(tmp_path / "a.pcap").payload.tolist() == [1400]


def test_a_segment_over_64_kib_has_its_length_from_the_wire(tmp_path: Path) -> None:
    packet = ETHER / IP(src="10.0.0.1", dst="10.0.0.2", len=0) / TCP(flags="A") / (b"x" * 70_000)
    write(tmp_path / "a.pcap", [packet], snaplen=128)
    assert read_pcap(tmp_path / "a.pcap").payload.tolist() == [70_000]


def test_padding_of_a_short_frame_is_no_payload(tmp_path: Path) -> None:
    packet = ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A") / (b"x" * 2)
    write(tmp_path / "a.pcap", [bytes(packet) + b"\0" * 4])
    assert read_pcap(tmp_path / "a.pcap").payload.tolist() == [2]


def test_everything_but_tcp_is_ignored_and_counted(tmp_path: Path) -> None:
    ip = IP(src="10.0.0.1", dst="10.0.0.2")
    fragment = IP(src="10.0.0.1", dst="10.0.0.2", frag=100, proto=6)
    tcp = ETHER / ip / TCP()
    others = [ETHER / ARP(), ETHER / ip / UDP(), ETHER / fragment / (b"x" * 40), bytes(tcp)[:50]]
    write(tmp_path / "a.pcap", [*others, tcp])
    found = read_pcap(tmp_path / "a.pcap")
    assert (len(found), found.ignored) == (1, len(others))


def test_a_file_that_is_cut_off_is_read_up_to_its_last_whole_packet(tmp_path: Path) -> None:
    packets = [ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(seq=seq) for seq in range(3)]
    write(tmp_path / "a.pcap", packets)
    whole = (tmp_path / "a.pcap").read_bytes()
    for cut in (1, 53, 54, 60, 69):
        (tmp_path / "a.pcap").write_bytes(whole[:-cut])
        assert read_pcap(tmp_path / "a.pcap").seq.tolist() == [0, 1]


def test_a_capture_without_packets_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.pcap", [])
    assert len(read_pcap(tmp_path / "a.pcap")) == 0


def test_times_become_monotonic_with_a_clock_offset(tmp_path: Path) -> None:
    packets = [ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP()] * 3
    write(tmp_path / "a.pcap", packets)
    clock = ClockOffset(nanoseconds=999 * 10**9)
    assert read_pcap(tmp_path / "a.pcap", clock).time.tolist() == pytest.approx(
        [1.0, 1.000000001, 1.000000002], abs=1e-12
    )


def test_microsecond_files_are_read_as_well(tmp_path: Path) -> None:
    packets = [ETHER / IP(src="10.0.0.1", dst="10.0.0.2") / TCP()] * 2
    write(tmp_path / "a.pcap", packets, nano=False)
    time = read_pcap(tmp_path / "a.pcap").time
    assert time[1] - time[0] == pytest.approx(1e-6, abs=2e-7)


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"\x0a\x0d\x0d\x0a" + b"\0" * 40, struct.pack("<I16xI", 0xA1B23C4D, 113)],
)
def test_another_kind_of_file_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pcap").write_bytes(content)
    with pytest.raises(MycoError, match=r"a\.pcap"):
        read_pcap(tmp_path / "a.pcap")


def test_random_packets_are_decoded_as_scapy_decodes_them(tmp_path: Path) -> None:
    dice = random.Random(1)
    packets = []
    for _ in range(200):
        ip = (
            IP(src=f"10.0.{dice.randrange(3)}.1", dst=f"10.1.{dice.randrange(256)}.2")
            if dice.random() < 0.5
            else IPv6(src=f"fd00::{dice.randrange(1, 9):x}", dst=f"fd00:{dice.randrange(9)}::1")
        )
        tcp = TCP(
            sport=dice.randrange(65536),
            dport=dice.randrange(65536),
            seq=dice.randrange(2**32),
            ack=dice.randrange(2**32),
            flags=dice.randrange(256),
            window=dice.randrange(65536),
            options=[("NOP", None)] * dice.randrange(0, 40, 4),
        )
        packets.append(Ether(bytes(ETHER / ip / tcp / dice.randbytes(dice.randrange(50)))))
    wrpcap(str(tmp_path / "a.pcap"), packets, nano=True)
    found = read_pcap(tmp_path / "a.pcap")
    for row, packet in enumerate(packets):
        network, tcp = packet.payload, packet[TCP]
        assert found.addresses[found.source[row]] == network.src
        assert found.addresses[found.destination[row]] == network.dst
        columns = (found.source_port, found.destination_port, found.seq, found.ack)
        assert [column[row] for column in columns] == [tcp.sport, tcp.dport, tcp.seq, tcp.ack]
        assert found.flags[row] == int(tcp.flags) & 0xFF
        assert (found.payload[row], found.window[row]) == (len(tcp.payload), tcp.window)
