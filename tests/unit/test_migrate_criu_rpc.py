"""CRIU's RPC messages: nothing that passes is changed but what was asked for.

The second opinion is ``protoc``, protocol buffers' own compiler, which decodes and encodes
messages independently of this project.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from migrate.runtime.criu_rpc import (
    Field,
    NetworkLock,
    Option,
    RequestType,
    RpcError,
    failure,
    notify_reply,
    parse,
    request_type,
    response,
    serialize,
    with_options,
)

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

numbers = st.integers(1, (1 << 29) - 1)
fields = st.one_of(
    st.builds(Field, numbers, st.just(VARINT), st.integers(0, (1 << 64) - 1)),
    st.builds(Field, numbers, st.just(BYTES), st.binary(max_size=300)),
    st.builds(Field, numbers, st.just(FIXED64), st.binary(min_size=8, max_size=8)),
    st.builds(Field, numbers, st.just(FIXED32), st.binary(min_size=4, max_size=4)),
)
messages = st.lists(fields, max_size=20)
option_values = st.dictionaries(
    st.sampled_from(list(Option)),
    st.one_of(st.integers(-(1 << 31), (1 << 31) - 1), st.text(max_size=20), st.binary(max_size=20)),
)


@given(messages)
def test_parsing_gives_back_what_was_serialized(message: list[Field]) -> None:
    assert parse(serialize(message)) == message


@given(messages.filter(bool), st.data())
def test_a_message_cut_inside_its_last_field_is_refused(
    message: list[Field], data: st.DataObject
) -> None:
    packet = serialize(message)
    first = len(serialize(message[:-1])) + 1
    assume(first < len(packet))
    cut = data.draw(st.integers(first, len(packet) - 1))
    with pytest.raises(RpcError):
        parse(packet[:cut])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_parsed_or_refused_and_nothing_else(packet: bytes) -> None:
    try:
        message = parse(packet)
    except RpcError:
        return
    # Encodings of a number may be longer than they need be, so bytes may differ; fields do not.
    assert parse(serialize(message)) == message


@pytest.mark.parametrize(
    "packet",
    [
        b"\x08",  # a tag without its value
        b"\x08\x80",  # a number cut off
        b"\x08" + b"\x80" * 10 + b"\x01",  # a number of more than ten bytes
        b"\x12\x05ab",  # five bytes announced, two there
        b"\x0d\x01\x02",  # fixed32 with two bytes
        b"\x09\x01\x02\x03\x04",  # fixed64 with four bytes
        b"\x0b",  # start of a group: CRIU has none
        b"\x0f",  # wire type 7 does not exist
    ],
)
def test_a_truncated_or_malformed_packet_is_refused(packet: bytes) -> None:
    with pytest.raises(RpcError):
        parse(packet)


def test_a_negative_int32_is_a_varint_of_ten_bytes() -> None:
    packet = with_options(b"\x08\x01", {Option.IMAGES_DIR_FD: -1})
    (_, opts) = parse(packet)
    assert opts.value == b"\x08" + b"\xff" * 9 + b"\x01"


@given(st.lists(fields, max_size=10), messages, option_values)
def test_setting_options_replaces_them_and_keeps_everything_else(
    request: list[Field], opts: list[Field], values: dict[Option, int | str | bytes]
) -> None:
    others = [field for field in request if field.number != 2]
    packet = serialize([*others, Field(2, BYTES, serialize(opts))])
    changed = parse(with_options(packet, values))
    assert [field for field in changed if field.number != 2] == others
    (only,) = (field for field in changed if field.number == 2)
    assert isinstance(only.value, bytes)
    inner = parse(only.value)
    assert [field for field in inner if field.number not in values] == [
        field for field in opts if field.number not in values
    ]
    for number in values:
        assert len([field for field in inner if field.number == number]) == 1


def test_options_are_made_where_the_request_has_none() -> None:
    changed = parse(with_options(b"\x08\x02", {Option.TCP_CLOSE: 1, Option.IMAGES_DIR: "/i"}))
    assert changed[0] == Field(1, VARINT, RequestType.RESTORE)
    assert parse(changed[1].value) == [  # type: ignore[arg-type]
        Field(Option.TCP_CLOSE, VARINT, 1),
        Field(Option.IMAGES_DIR, BYTES, b"/i"),
    ]


def test_the_type_of_a_request_is_read_and_has_to_be_there() -> None:
    assert request_type(b"\x08\x0a") == RequestType.VERSION
    with pytest.raises(RpcError, match="no type"):
        request_type(b"")


def test_a_notification_is_read_with_its_script_and_pid() -> None:
    notify = serialize([Field(1, BYTES, b"post-restore"), Field(2, VARINT, 4711)])
    packet = serialize([Field(1, VARINT, 6), Field(2, VARINT, 1), Field(5, BYTES, notify)])
    answer = response(packet)
    assert (answer.type, answer.success) == (RequestType.NOTIFY, True)
    assert (answer.script, answer.pid) == ("post-restore", 4711)


def test_a_failure_is_read_with_its_errno_and_message() -> None:
    packet = failure(RequestType.DUMP) + serialize(
        [Field(7, VARINT, 17), Field(9, BYTES, b"no \xff room")]
    )
    answer = response(packet)
    assert (answer.type, answer.success, answer.errno) == (RequestType.DUMP, False, 17)
    assert answer.message == "no � room"
    assert answer.script is None


@dataclass(frozen=True)
class Protoc:
    """protoc, with the part of CRIU's rpc.proto that matters here, written down a second time."""

    path: str
    proto: str

    def decode(self, message: str, packet: bytes) -> str:
        return self._run(f"--decode={message}", packet).decode()

    def encode(self, message: str, text: str) -> bytes:
        return self._run(f"--encode={message}", text.encode())

    def decode_raw(self, packet: bytes) -> str:
        return self._run("--decode_raw", packet).decode()

    def _run(self, mode: str, data: bytes) -> bytes:
        arguments = [mode] if mode == "--decode_raw" else [mode, f"-I{self.proto}", "rpc.proto"]
        done = subprocess.run(
            [self.path, *arguments], input=data, capture_output=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


RPC_PROTO = """
syntax = "proto2";
message criu_page_server_info { optional string address = 1; optional int32 port = 2;
  optional int32 pid = 3; optional int32 fd = 4; }
enum criu_network_lock_method { IPTABLES = 1; NFTABLES = 2; SKIP = 3; }
message criu_opts {
  required int32 images_dir_fd = 1; optional bool leave_running = 3; optional int32 log_level = 9;
  optional criu_page_server_info ps = 11; optional string parent_img = 18;
  optional uint32 timeout = 45; optional bool tcp_close = 52;
  optional criu_network_lock_method network_lock = 64; optional string images_dir = 68; }
enum criu_req_type { EMPTY = 0; DUMP = 1; RESTORE = 2; NOTIFY = 6; VERSION = 10; }
message criu_notify { optional string script = 1; optional int32 pid = 2; }
message criu_req { required criu_req_type type = 1; optional criu_opts opts = 2;
  optional bool notify_success = 3; optional bool keep_open = 4; }
message criu_resp { required criu_req_type type = 1; required bool success = 2;
  optional criu_notify notify = 5; optional int32 cr_errno = 7; optional string cr_errmsg = 9; }
"""


@pytest.fixture(scope="module")
def protoc(tmp_path_factory: pytest.TempPathFactory) -> Protoc:
    path = shutil.which("protoc")
    if path is None:
        pytest.skip("no protoc on PATH (Debian: protobuf-compiler)")
    directory = tmp_path_factory.mktemp("proto")
    (directory / "rpc.proto").write_text(RPC_PROTO)
    return Protoc(path, str(directory))


def test_protoc_reads_the_options_that_were_set_and_those_that_were_there(protoc: Protoc) -> None:
    original = protoc.encode(
        "criu_req",
        "type: DUMP opts { images_dir_fd: 9 leave_running: true log_level: 4"
        ' ps { port: 77 } parent_img: "../before" } keep_open: true',
    )
    changed = with_options(
        original,
        {
            Option.IMAGES_DIR_FD: -1,
            Option.LOG_LEVEL: 2,
            Option.TIMEOUT: 30,
            Option.TCP_CLOSE: 1,
            Option.NETWORK_LOCK: NetworkLock.SKIP,
            Option.IMAGES_DIR: "/run/images",
        },
    )
    assert " ".join(protoc.decode("criu_req", changed).split()) == (
        "type: DUMP opts { images_dir_fd: -1 leave_running: true log_level: 2 ps { port: 77 }"
        ' parent_img: "../before" timeout: 30 tcp_close: true network_lock: SKIP'
        ' images_dir: "/run/images" } keep_open: true'
    )


def test_protoc_and_we_agree_on_replies(protoc: Protoc) -> None:
    refusal = protoc.encode("criu_req", "type: NOTIFY notify_success: false")
    assert notify_reply(success=False) == refusal
    assert failure(RequestType.DUMP) == protoc.encode("criu_resp", "type: DUMP success: false")
    answer = response(
        protoc.encode(
            "criu_resp",
            'type: NOTIFY success: true notify { script: "pre-resume" pid: 12 } cr_errno: 3',
        )
    )
    assert (answer.script, answer.pid, answer.errno) == ("pre-resume", 12, 3)


def test_protoc_sees_the_same_raw_fields_whatever_their_kind_and_size(protoc: Protoc) -> None:
    message = [
        Field(1, VARINT, 0),
        Field(15, VARINT, 127),
        Field(16, VARINT, 128),
        Field((1 << 29) - 1, VARINT, (1 << 64) - 1),
        Field(3, FIXED32, (0xDEADBEEF).to_bytes(4, "little")),
        Field(4, FIXED64, (0xDEADBEEFCAFE).to_bytes(8, "little")),
        Field(5, BYTES, b"\xff" * 200),
    ]
    lines = protoc.decode_raw(serialize(message)).splitlines()
    assert lines[:6] == [
        "1: 0",
        "15: 127",
        "16: 128",
        f"{(1 << 29) - 1}: {(1 << 64) - 1}",
        "3: 0xdeadbeef",
        "4: 0x0000deadbeefcafe",
    ]
    assert re.fullmatch(r'5: "(\\377){200}"', lines[6])
