"""Programs of system calls: built or not, alone or in threads, they say what single calls say."""

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mycoproxy.tcp import abi, batch

_TCP, _SOCKET = socket.IPPROTO_TCP, socket.SOL_SOCKET
_UNKNOWN_OPTION = 9999
_SO_FILTER = 26  # SO_ATTACH_FILTER to set, SO_GET_FILTER to read


@pytest.fixture(params=["built", "one by one"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs with the library and without it."""
    if request.param == "built":
        assert batch.COMPILED, "mycoproxy/tcp/_batch.c is not built (make setup builds it)"
    else:
        monkeypatch.setattr(batch, "_LIBRARY", None)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 5)
        server, _ = listener.accept()
        with client, server:
            yield client, server


Pair = tuple[socket.socket, socket.socket]


def test_every_kind_of_operation_says_what_the_single_call_says(pair: Pair) -> None:
    client, server = pair
    client.sendall(b"seven..")
    server.recv(1, socket.MSG_PEEK)
    program = batch.Program(
        [
            batch.getsockopt(_SOCKET, socket.SO_RCVBUF),
            batch.getsockopt(_TCP, socket.TCP_CONGESTION, 16),
            batch.ioctl(abi.SIOCINQ),
            batch.getsockname(),
            batch.getpeername(),
        ]
    )
    answer = program.run(server.fileno())
    receive_buffer = server.getsockopt(_SOCKET, socket.SO_RCVBUF, 4)
    outputs = [program.output(answer, index) for index in range(5)]
    assert outputs[0] == receive_buffer
    assert outputs[1] == server.getsockopt(_TCP, socket.TCP_CONGESTION, 16)
    assert struct.unpack("=i", outputs[2]) == (7,)
    assert struct.unpack_from("=H", outputs[3]) == (socket.AF_INET,)
    for name, output in ((server.getsockname(), outputs[3]), (server.getpeername(), outputs[4])):
        assert len(output) == 16
        assert output[2:8] == struct.pack(">H4s", name[1], socket.inet_aton(name[0]))
    assert struct.unpack_from("@4s", answer, program.offsets[0]) == (receive_buffer,)


def test_values_are_set_and_can_be_others_in_each_run(pair: Pair) -> None:
    program = batch.Program(
        [
            batch.setsockopt(_TCP, socket.TCP_KEEPIDLE, struct.pack("=i", 11)),
            batch.setsockopt(_TCP, socket.TCP_CONGESTION, b"reno"),
            batch.getsockopt(_TCP, socket.TCP_KEEPIDLE),
        ]
    )
    one, other = pair
    answer = program.run(one.fileno())
    assert program.result(answer, 0) == 0
    assert program.output(answer, 2) == struct.pack("=i", 11)
    assert one.getsockopt(_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
    program.run(other.fileno(), struct.pack("=i4x8s", 12, b"reno"))
    assert other.getsockopt(_TCP, socket.TCP_KEEPIDLE) == 12
    assert program.run(one.fileno()) == answer, "the program's own values are what they were"


def test_inputs_of_another_length_are_refused(pair: Pair) -> None:
    program = batch.Program([batch.setsockopt(_TCP, socket.TCP_NODELAY, bytes(4))])
    with pytest.raises(ValueError):
        program.run(pair[0].fileno(), bytes(4))


def test_a_failure_stands_in_the_answer_and_the_rest_runs(pair: Pair) -> None:
    program = batch.Program(
        [
            batch.getsockopt(_TCP, _UNKNOWN_OPTION),
            batch.getsockopt(_SOCKET, socket.SO_TYPE),
        ]
    )
    answer = program.run(pair[0].fileno())
    assert program.result(answer, 0) == -errno.ENOPROTOOPT
    assert program.output(answer, 0) == b""
    assert program.output(answer, 1) == struct.pack("=i", socket.SOCK_STREAM)


def test_the_length_that_the_kernel_says_is_kept_where_nothing_is_written(pair: Pair) -> None:
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF))
    pair[0].setsockopt(_SOCKET, _SO_FILTER, struct.pack("@HP", 1, ctypes.addressof(instruction)))
    program = batch.Program([batch.getsockopt(_SOCKET, _SO_FILTER, 0)])
    answer = program.run(pair[0].fileno())
    assert (program.result(answer, 0), program.length(answer, 0)) == (0, 1), "one instruction"
    assert program.output(answer, 0) == b""
    assert program.length(program.run(pair[1].fileno()), 0) == 0


def test_an_operation_that_must_succeed_stops_the_program_by_name(pair: Pair) -> None:
    program = batch.Program(
        [
            batch.getsockopt(_SOCKET, socket.SO_TYPE, must=True),
            batch.getsockopt(_TCP, _UNKNOWN_OPTION, must=True, name="TCP_NEVER_HEARD_OF"),
            batch.setsockopt(_TCP, socket.TCP_NODELAY, struct.pack("=i", 1)),
        ]
    )
    with pytest.raises(batch.OperationError, match="TCP_NEVER_HEARD_OF: Protocol not") as raised:
        program.run(pair[0].fileno())
    assert raised.value.index == 1
    assert raised.value.errno == errno.ENOPROTOOPT
    assert pair[0].getsockopt(_TCP, socket.TCP_NODELAY) == 0


def test_nothing_of_one_run_is_left_in_the_next(pair: Pair) -> None:
    program = batch.Program([batch.getsockopt(_TCP, socket.TCP_CONGESTION, 16)])
    first = program.run(pair[0].fileno())
    failed = program.run(-1)
    assert program.result(failed, 0) == -errno.EBADF
    assert failed[program.offsets[0] :] == bytes(16)
    assert program.run(pair[1].fileno()) == first


def test_threads_do_not_see_each_others_answers() -> None:
    program = batch.Program([batch.getsockopt(_TCP, socket.TCP_KEEPIDLE)] * 20)

    def read_often(value: int) -> None:
        with socket.socket() as sock:
            sock.setsockopt(_TCP, socket.TCP_KEEPIDLE, value)
            wanted = struct.pack("=i", value)
            for _ in range(200):
                answer = program.run(sock.fileno())
                assert {program.output(answer, index) for index in range(20)} == {wanted}

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(read_often, value) for value in range(1, 9)]:
            done.result(20)


def test_an_empty_program_does_nothing() -> None:
    assert batch.Program([]).run(-1) == b""
