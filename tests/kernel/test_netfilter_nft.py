"""libnftables and set elements, in one namespace."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mycoproxy.addresses import Endpoint
from mycoproxy.netfilter.compiled import ANY_TABLE, CompileError, read_messages
from mycoproxy.netfilter.elements import SetChange, pair_key, read_pair
from mycoproxy.netfilter.nfnetlink import NetfilterError
from mycoproxy.netfilter.nft import Nft, NftError

pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]

_PAIRS = """\
add table inet t
add set inet t s { type ipv4_addr . inet_service . ipv4_addr . inet_service; }
"""


@pytest.fixture
def node(network: Any) -> Any:
    return network.node("nft")


@pytest.fixture
def nft(node: Any) -> Iterator[Nft]:
    made = node.call(Nft)
    yield made
    node.call(made.close)


def _pairs(count: int) -> list[bytes]:
    server = Endpoint("10.0.0.1", 80)
    return [pair_key(Endpoint(f"10.1.{n >> 8}.{n & 255}", 1024 + n), server) for n in range(count)]


def test_a_context_belongs_to_its_threads_namespace(network: Any, node: Any, nft: Nft) -> None:
    other = network.node("other")
    other_nft = other.call(Nft)
    node.call(nft.run, "add table inet here")
    assert "table inet here" in node.call(nft.run, "list ruleset")
    assert other.call(other_nft.run, "list ruleset") == ""
    other.call(other_nft.close)


def test_a_refused_command_is_one_line_that_says_why(node: Any, nft: Nft) -> None:
    with pytest.raises(NftError, match="No such file or directory") as caught:
        node.call(nft.run, "add rule inet nowhere c accept")
    assert "\n" not in str(caught.value)
    with pytest.raises(NftError, match="syntax error"):
        node.call(nft.run, "add nonsense")


def test_commands_of_one_run_happen_together_or_not_at_all(node: Any, nft: Nft) -> None:
    with pytest.raises(NftError):
        node.call(nft.run, "add table inet first\nadd chain inet missing c")
    assert node.call(nft.run, "list ruleset") == ""


def test_a_closed_context_refuses_and_closes_again(node: Any) -> None:
    nft = node.call(Nft)
    node.call(nft.close)
    node.call(nft.close)
    with pytest.raises(NftError, match="closed"):
        node.call(nft.run, "list ruleset")


def test_elements_come_back_as_they_went_in(node: Any, nft: Nft) -> None:
    node.call(nft.run, _PAIRS)
    keys = _pairs(3000)
    node.call(nft.change, "t", [SetChange("s", keys)])
    found = [key for key, _ in node.call(nft.elements, "t", "s")]
    assert sorted(found) == sorted(keys)
    assert read_pair(keys[0]) == (Endpoint("10.1.0.0", 1024), Endpoint("10.0.0.1", 80))
    listed = node.call(nft.run, "list set inet t s")
    assert "10.1.0.0 . 1024 . 10.0.0.1 . 80" in listed
    node.call(nft.change, "t", [SetChange("s", delete=True)])
    assert node.call(nft.elements, "t", "s") == []


def test_a_change_of_elements_happens_together_or_not_at_all(node: Any, nft: Nft) -> None:
    node.call(nft.run, _PAIRS)
    present, absent = _pairs(2)
    node.call(nft.change, "t", [SetChange("s", [present])])
    with pytest.raises(NetfilterError) as caught:
        node.call(
            nft.change,
            "t",
            [SetChange("s", delete=True), SetChange("s", [absent], delete=True)],
        )
    assert caught.value.errno == errno.ENOENT
    assert [key for key, _ in node.call(nft.elements, "t", "s")] == [present]


def test_a_change_in_a_missing_table_is_refused_and_the_context_goes_on(
    node: Any, nft: Nft
) -> None:
    with pytest.raises(NetfilterError) as caught:
        node.call(nft.change, "nowhere", [SetChange("s", _pairs(1000))])
    assert caught.value.errno == errno.ENOENT
    node.call(nft.run, _PAIRS)
    node.call(nft.change, "t", [SetChange("s", _pairs(1))])
    assert len(node.call(nft.elements, "t", "s")) == 1


def test_a_table_is_deleted_with_all_that_is_in_it_and_twice(node: Any, nft: Nft) -> None:
    node.call(nft.run, _PAIRS)
    assert node.call(nft.has_table, "t")
    node.call(nft.delete_table, "t")
    node.call(nft.delete_table, "t")
    assert not node.call(nft.has_table, "t")
    assert node.call(nft.run, "list ruleset") == ""


# Every kind of thing that our tables have, and that nftables shows in a way of its own.
_RULES = f"""\
add table inet {ANY_TABLE}
delete table inet {ANY_TABLE}
table inet {ANY_TABLE} {{
    map m {{ type ipv6_addr . inet_service : ipv6_addr; }}
    set s {{ type ipv4_addr . inet_service; timeout 150s; }}
    set d {{ type inet_service; size 65535; }}
    chain syn {{
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        ip saddr . tcp sport @s reject with icmp port-unreachable
        ip6 saddr set ip6 saddr . tcp sport map @m
        meta nfproto vmap {{ ipv4 : drop, ipv6 : accept }}
        delete @d {{ tcp dport }}
    }}
    chain output {{
        type filter hook output priority -350; policy drop;
        meta mark 0x6d79636f accept
        tcp flags & (fin | syn | rst | ack) == syn | ack jump syn
        oif lo meta l4proto != tcp counter accept
    }}
}}
"""


def test_an_installed_table_is_what_nftables_makes_of_its_text(node: Any, nft: Nft) -> None:
    for name in ("first", "a-name-of-another-length"):
        node.call(nft.run, _RULES.replace(f"inet {ANY_TABLE}", f"inet {name}"))
        wanted = node.call(nft.run, "list ruleset")
        for _ in range(2):
            node.call(nft.install, name, _RULES)
            assert node.call(nft.run, "list ruleset") == wanted
        node.call(nft.delete_table, name)


def test_a_table_is_installed_beside_a_set_that_grows(node: Any, nft: Nft) -> None:
    node.call(nft.install, "t", _RULES)
    keys = [port.to_bytes(2, "big") for port in range(1, 30_000)]
    node.call(nft.change, "t", [SetChange("d", keys)])
    assert len(node.call(nft.elements, "t", "d")) == len(keys)


def test_an_nftables_that_shows_nothing_installs_the_text(
    node: Any, nft: Nft, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.call(nft.install, "t", _RULES)
    wanted = node.call(nft.run, "list ruleset")
    node.call(nft.delete_table, "t")
    monkeypatch.setattr(nft, "_shown", lambda _: "nothing of the kind")
    ruleset = _RULES + "\n"  # not known yet
    node.call(nft.install, "t", ruleset)
    assert node.call(nft.run, "list ruleset") == wanted


def test_a_ruleset_that_cannot_be_is_refused_and_changes_nothing(node: Any, nft: Nft) -> None:
    with pytest.raises(NftError, match="syntax error"):
        node.call(nft.install, "t", f"add table inet {ANY_TABLE}\nadd nonsense")
    assert node.call(nft.run, "list ruleset") == ""


def test_what_is_cut_off_is_not_taken_for_a_ruleset() -> None:
    with pytest.raises(CompileError, match="begins a batch"):
        read_messages("")


_EVERY_TABLE = """
import os, resource, sys
from pathlib import Path
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.anchor import Anchors
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nft import Nft, NftError
from mycoproxy.netfilter.shield import Shield
from mycoproxy.netfilter.translate import Translate

def install():
    with Nft() as nft:
        hold, shield, translate = Hold(nft, "m"), Shield(nft, "m"), Translate(nft)
        for _ in range(2):  # the second time from what was learnt the first time
            hold.install()
            shield.raise_()
            translate.install()
            Anchors(nft).install()
            print(nft.run("list ruleset"), end="")
            hold.release()
            shield.lift()
            translate.clear()
            nft.delete_table("mycoproxy-anchor")
            print(nft.run("list ruleset"), end="---")
        try:
            nft.run("add nonsense")
        except NftError as error:
            print(error)

count, path = int(sys.argv[1]), Path(sys.argv[2])
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
with NamespaceWorker(path) as worker:
    held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]
    worker.call(install)
"""


def test_a_process_with_3000_descriptors_installs_every_table_as_any_other_does(node: Any) -> None:
    """In a child: libnftables would have the C library abort it."""
    few, many = (
        subprocess.run(
            [sys.executable, "-c", _EVERY_TABLE, str(count), str(node.path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for count in (0, 3000)
    )
    first, second, refusal = many.split("---")
    assert first == second
    assert few.split("---")[:2] == [first, second]
    for table in ("hold-m", "shield-m", "moved", "anchor"):
        assert first.count(f"table inet mycoproxy-{table} {{") == 1
    assert "syntax error" in refusal
