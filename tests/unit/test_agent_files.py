"""Files of the agent: its lock, the control socket, and the other nodes' addresses."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mycoproxy.agent.config import PeersSection
from mycoproxy.agent.config_types import Listen
from mycoproxy.agent.control_socket import Caller, ControlSocket, group_id
from mycoproxy.agent.lock import Lock
from mycoproxy.agent.peer_addresses import PeerAddresses
from mycoproxy.errors import MycoError, RefusedError


def test_a_lock_is_one_agents_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "made" / "agent.lock"
    lock = Lock.take(path, key="state.directory")
    assert path.parent.stat().st_mode & 0o777 == 0o755
    with pytest.raises(RefusedError, match=f"process {os.getpid()} holds {path}.*state.directory"):
        Lock.take(path, key="state.directory")
    lock.release()
    Lock.take(path, key="state.directory").release()


def test_a_lock_that_cannot_be_is_refused_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match=r"state\.directory: cannot lock"):
        Lock.take(tmp_path / "file" / "agent.lock", key="state.directory")


def open_socket(path: Path) -> ControlSocket:
    return ControlSocket.open(path, mode=0o600, group=None)


def test_what_a_dead_agent_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    again = open_socket(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    again.close()
    assert not path.exists()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    """A socket that another program listens on."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        yield path


def test_a_socket_that_somebody_listens_on_is_left_alone(stranger: Path) -> None:
    with pytest.raises(RefusedError, match="another agent is running: it answers at"):
        open_socket(stranger)
    assert stranger.is_socket()


def test_a_socket_with_a_full_backlog_is_left_alone(stranger: Path) -> None:
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for each in (first, second):
            each.setblocking(False)
            try:
                each.connect(str(stranger))
            except BlockingIOError:
                break
        with pytest.raises(RefusedError, match="another agent is running"):
            open_socket(stranger)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("mine")
    with pytest.raises(RefusedError, match="is there and no socket"):
        open_socket(path)
    assert path.read_text() == "mine"


def test_closing_leaves_another_ones_socket(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    ours = open_socket(path)
    path.rename(tmp_path / "old")
    path.touch()
    ours.close()
    assert path.exists()


def test_two_agents_never_have_one_socket(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    ours = open_socket(path)
    with pytest.raises(RefusedError, match="another agent is running"):
        open_socket(path)
    ours.close()


def test_a_group_that_is_not_there_is_refused() -> None:
    with pytest.raises(RefusedError, match="groupadd --system no-such-group"):
        group_id("no-such-group")
    assert group_id(None) is None


def test_the_kernel_says_who_calls() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        caller = Caller.of(left.fileno())
    assert caller.pid == os.getpid()
    assert caller.uid == os.geteuid()
    assert caller.groups == frozenset(os.getgroups()) | {os.getegid()}


def test_root_the_agents_own_user_and_the_group_may_ask() -> None:
    nobody = 2**31
    assert Caller(1, 0, frozenset()).may_ask(None)
    assert Caller(1, os.geteuid(), frozenset()).may_ask(None)
    assert Caller(1, nobody, frozenset({7})).may_ask(7)
    assert not Caller(1, nobody, frozenset({7})).may_ask(8)
    assert not Caller(1, nobody, frozenset({7})).may_ask(None)


def test_addresses_come_from_the_table_and_then_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "peers.toml"
    file.write_text('beta = "192.0.2.2"\ngamma = "[2001:db8::3]:9"\n')
    config = PeersSection(file=file, static={"beta": "192.0.2.9:1"})  # type: ignore[dict-item]
    peers = PeerAddresses(config)
    assert peers.all() == {"beta": Listen("192.0.2.9", 1), "gamma": Listen("2001:db8::3", 9)}
    assert peers.resolve("gamma") == ("2001:db8::3", 9)
    with pytest.raises(MycoError, match=r"no address of node delta .*peers\.static or peers\.file"):
        peers.resolve("delta")


def test_a_file_that_changes_is_noticed_and_a_broken_one_keeps_what_was_known(
    tmp_path: Path,
) -> None:
    file = tmp_path / "peers.toml"
    file.write_text('beta = "192.0.2.2"\n')
    peers = PeerAddresses(PeersSection(file=file))
    assert peers.resolve("beta") == ("192.0.2.2", 7420)
    file.write_text('beta = "192.0.2.33"\n')
    assert peers.resolve("beta") == ("192.0.2.33", 7420)
    file.write_text('beta = "somewhere"\n')
    assert peers.resolve("beta") == ("192.0.2.33", 7420)
    assert "an IP address and a port" in peers.problem
    file.unlink()
    assert peers.resolve("beta") == ("192.0.2.33", 7420)
    with pytest.raises(MycoError, match=r"no address of node x is known .*No such file"):
        peers.resolve("x")
    file.write_text('x = "192.0.2.4"\n')
    assert peers.resolve("x") == ("192.0.2.4", 7420)
    assert peers.problem == ""
    peers.apply(PeersSection())
    assert peers.all() == {}
