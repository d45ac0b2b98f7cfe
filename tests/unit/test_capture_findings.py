"""Hand-made packet records, and what they say about a move.

A `Wire` is one client's connection as a list of packets; positions are bytes of the client's stream
from its SYN on, so that each test reads the same wherever the sequence numbers start.
"""

import numpy as np
import pytest

from netlab.capture.findings import ack_progress, find, resets, retransmissions
from netlab.capture.flows import Servers, flows
from netlab.capture.packets import ACK, FIN, PSH, RST, SYN, Packets

VIP, POD_A, POD_B, CLIENT = "10.96.0.1", "10.1.0.5", "10.2.0.5", "192.0.2.9"
PORT = 6379
SERVERS = Servers(
    {"service": frozenset({VIP}), "direct": frozenset({POD_A, POD_B})}, frozenset({PORT})
)
Record = tuple[float, str, int, str, int, int, int, int, int, int]


class Wire:
    """Builds packets. ``start``: the client's initial sequence number; the server's is another."""

    def __init__(self, start: int = 1000, server: str = VIP, client_port: int = 40000) -> None:
        self.start = start
        self.server_start = 77_000
        self.server = server
        self.client_port = client_port
        self.records: list[Record] = []

    def client(self, time: float, position: int, length: int = 0, flags: int = ACK) -> "Wire":
        seq = (self.start + position) % 2**32
        ends = (CLIENT, self.client_port, self.server, PORT)
        self.records.append((time, *ends, seq, self.server_start, flags, length, 500))
        return self

    def reply(self, time: float, acked: int, flags: int = ACK, window: int = 500) -> "Wire":
        ack = (self.start + acked) % 2**32
        ends = (self.server, PORT, CLIENT, self.client_port)
        self.records.append((time, *ends, self.server_start, ack, flags, 0, window))
        return self

    def opened(self, time: float = 0.0) -> "Wire":
        self.client(time, 0, flags=SYN).reply(time, 1, flags=SYN | ACK)
        return self.client(time, 1)


def packets(*wires: Wire) -> Packets:
    records = sorted((each for wire in wires for each in wire.records), key=lambda each: each[0])
    addresses = tuple(sorted({each[1] for each in records} | {each[3] for each in records}))
    columns = list(zip(*records, strict=True)) or [()] * 10
    ids = [np.array([addresses.index(name) for name in columns[end]], np.int64) for end in (1, 3)]
    numbers = [np.array(columns[index], np.int64) for index in (2, 4, 5, 6, 7, 8, 9)]
    return Packets(addresses, np.array(columns[0], np.float64), *ids, *numbers)


@pytest.fixture(params=[1000, 2**32 - 1, 2**32 - 150, 2**31 - 60, 0], ids=str)
def start(request: pytest.FixtureRequest) -> int:
    """Initial sequence numbers; some of them wrap within the test's few hundred bytes."""
    return int(request.param)


def test_a_plain_conversation_has_nothing_to_report(start: int) -> None:
    wire = Wire(start).opened()
    for number in range(10):
        wire.client(1.0 + number, 1 + 100 * number, 100, ACK | PSH)
        wire.reply(1.1 + number, 101 + 100 * number)
    found = find(packets(wire), SERVERS, resumes=[5.0])
    assert (found.resets, found.retransmissions, found.probes) == ((), (), 0)
    assert (found.server_fins, found.zero_windows) == ((), ())
    assert (found.packets, found.connections, len(found.opened)) == (23, 1, 1)
    assert found.connections_by_client == {f"service {CLIENT}": 1}


def test_payload_sent_again_is_a_retransmission(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100).client(1.1, 101, 100)
    wire.client(1.3, 1, 100).reply(1.4, 201)
    (again,) = find(packets(wire), SERVERS).retransmissions
    assert (again.time, again.position, again.length, again.late) == (1.3, 1, 100, None)


def test_a_part_sent_again_within_a_larger_segment_is_a_retransmission(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100).client(1.2, 51, 200)
    assert len(find(packets(wire), SERVERS).retransmissions) == 1


def test_a_retransmission_soon_after_the_resume_is_not_late(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100).client(2.049, 1, 100)
    found = find(packets(wire), SERVERS, resumes=[2.0])
    assert (len(found.retransmissions), found.late_retransmissions) == (1, ())


def test_payload_from_before_the_resume_sent_again_later_than_50_ms_is_late(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100).client(1.5, 1, 100).client(2.3, 1, 100)
    found = find(packets(wire), SERVERS, resumes=[2.0])
    assert len(found.retransmissions) == 2
    assert [(each.time, each.late) for each in found.late_retransmissions] == [(2.3, 0)]


def test_payload_first_sent_after_the_resume_cannot_be_late(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100).reply(1.1, 101)
    wire.client(2.1, 101, 100).client(2.4, 101, 100)
    found = find(packets(wire), SERVERS, resumes=[2.0])
    assert (len(found.retransmissions), found.late_retransmissions) == (1, ())


def test_a_late_retransmission_belongs_to_the_move_it_waited_for() -> None:
    wire = Wire().opened().client(1.0, 1, 100).reply(1.1, 101)
    wire.client(3.5, 101, 100).client(4.2, 101, 100)
    found = find(packets(wire), SERVERS, resumes=[2.0, 4.0])
    assert [each.late for each in found.late_retransmissions] == [1]


def test_linux_keep_alives_and_window_probes_are_probes(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100).reply(1.1, 101, window=0)
    wire.client(1.3, 100).client(1.5, 100)
    found = find(packets(wire), SERVERS)
    assert (found.probes, found.retransmissions) == (2, ())


def test_a_keep_alive_with_a_byte_of_garbage_is_a_probe(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100).reply(1.1, 101).client(60.0, 100, 1)
    found = find(packets(wire), SERVERS)
    assert (found.probes, found.retransmissions) == (1, ())


def test_one_lost_byte_sent_again_is_a_retransmission_not_a_probe(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 1).client(1.2, 1, 1)
    found = find(packets(wire), SERVERS)
    assert (found.probes, len(found.retransmissions)) == (0, 1)


def test_every_reset_is_found_with_its_direction() -> None:
    wire = Wire().opened().client(1.0, 1, 10).reply(2.0, 11, flags=RST | ACK)
    stray = Wire(server="203.0.113.1").client(3.0, 0, flags=RST)
    back = Wire(client_port=5).client(4.0, 0, flags=RST)
    found = resets(packets(wire, stray, back), SERVERS)
    assert [(each.time, each.from_client) for each in found] == [
        (2.0, False),
        (3.0, False),
        (4.0, True),
    ]
    assert found[0].connection == f"{VIP}:{PORT} -> {CLIENT}:40000"


def test_a_resets_odd_sequence_number_confuses_nothing(start: int) -> None:
    wire = Wire(start).opened().client(1.0, 1, 100)
    wire.client(1.5, 2**31 + 99, flags=RST).client(2.0, 101, 100)
    assert find(packets(wire), SERVERS).retransmissions == ()


def test_a_connection_whose_server_address_changes_stays_one_connection(start: int) -> None:
    wire = Wire(start, server=POD_A).opened().client(1.0, 1, 100)
    wire.server = POD_B
    wire.client(2.2, 1, 100).reply(2.3, 101)
    found = find(packets(wire), SERVERS, resumes=[2.0])
    assert (found.connections, len(found.late_retransmissions)) == (1, 1)


def test_the_same_client_port_on_two_paths_is_two_connections() -> None:
    found = flows(packets(Wire().opened(), Wire(server=POD_A).opened()), SERVERS)
    assert [(each.path, each.client_port) for each in found] == [
        ("direct", 40000),
        ("service", 40000),
    ]


def test_a_port_used_again_is_a_new_connection() -> None:
    first = Wire(5000).opened().client(1.0, 1, 100)
    second = Wire(2000).opened(2.0).client(3.0, 1, 100)
    found = find(packets(first, second), SERVERS)
    assert (found.connections, len(found.opened), found.retransmissions) == (2, 2, ())


def test_a_syn_sent_again_opens_one_connection() -> None:
    wire = Wire().client(0.0, 0, flags=SYN).client(1.0, 0, flags=SYN).reply(1.1, 1, SYN | ACK)
    found = find(packets(wire), SERVERS)
    assert (found.connections, [each.time for each in found.opened]) == (1, [0.0])


def test_other_ports_and_addresses_are_no_connections_to_the_server() -> None:
    assert flows(packets(Wire(server="203.0.113.1").opened()), SERVERS) == []
    assert flows(packets(), SERVERS) == []


def test_a_server_that_closes_first_is_found_and_one_that_closes_second_is_not() -> None:
    first = Wire().opened().reply(2.0, 1, FIN | ACK).client(2.1, 1, flags=FIN | ACK)
    second = Wire(client_port=40001).opened().client(2.0, 1, flags=FIN | ACK)
    second.reply(2.1, 2, FIN | ACK)
    (fin,) = find(packets(first, second), SERVERS).server_fins
    assert (fin.time, fin.connection) == (2.0, f"{CLIENT}:40000 (service)")


def test_each_closing_of_the_window_is_found_once() -> None:
    wire = Wire().opened().client(1.0, 1, 100).reply(1.1, 101, window=0).reply(1.2, 101, window=0)
    wire.reply(1.3, 101).reply(1.4, 101, window=0)
    assert [each.time for each in find(packets(wire), SERVERS).zero_windows] == [1.1, 1.4]


def test_acknowledgements_during_a_freeze_are_followed_until_the_window_is_full(start: int) -> None:
    wire = Wire(start).opened()
    wire.client(0.5, 1, 50).reply(0.6, 51)
    for number in range(3):
        wire.client(1.0 + number / 10, 51 + 100 * number, 100)
        wire.reply(1.05 + number / 10, 151 + 100 * number, window=500 if number < 2 else 0)
    wire.client(1.9, 350).reply(3.0, 351, window=800)
    captured = packets(wire)
    (flow,) = flows(captured, SERVERS)
    progress = ack_progress(captured, flow, 0.9, 2.0)
    assert progress.acknowledged.tolist() == [100, 200, 300]
    assert (progress.total, progress.sent, progress.closed) == (300, 300, True)
    assert progress.times.tolist() == pytest.approx([1.05, 1.15, 1.25])
    assert ack_progress(captured, flow, 2.5, 3.5).total == 0
    assert ack_progress(captured, flow, 5.0, 6.0).total == 0


def test_a_stream_of_more_than_the_sequence_space_is_followed() -> None:
    # 5 GiB in segments of 256 MiB: the sequence numbers wrap once and a bit.
    wire, step = Wire(123).opened(), 2**28
    for number in range(20):
        wire.client(1.0 + number, 1 + step * number, step).reply(
            1.5 + number, 1 + step * (number + 1)
        )
    wire.client(30.0, 1 + step * 19, step)
    captured = packets(wire)
    (flow,) = flows(captured, SERVERS)
    (again,) = retransmissions(captured, flow)
    assert again.position == 1 + step * 19
    assert ack_progress(captured, flow, 0.9, 31.0).total == step * 20
