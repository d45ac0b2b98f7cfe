"""The agent's metrics: Prometheus' naming rules, and the table in docs/agent.md."""

import re
from pathlib import Path

import pytest
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from mycoproxy.agent import moved_connections
from mycoproxy.agent.logs import LogCounters
from mycoproxy.agent.metrics import Metrics
from mycoproxy.agent.move_metrics import MoveMetrics, Seen

DOCS = Path(__file__).parents[2] / "docs" / "agent.md"


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics(node="alpha", version="1.2.3")
    made.watch_logs(LogCounters(info=3, repeated=2))
    made.watch_parts(lambda: {"pki": False})
    MoveMetrics(made.registry, lambda: Seen(refused={"draining": 2}, journal_bytes=4096))
    moved_connections.metrics_of(made.registry)
    return made


def exposed(metrics: Metrics) -> dict[str, str]:
    """Name, as a person queries it, and type of each metric of ours."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        if family.name.startswith("mycoproxy_") and not family.name.endswith("_created"):
            suffix = "_total" if family.type == "counter" else ""
            found[family.name + suffix] = family.type
    return found


def test_names_follow_the_conventions(metrics: Metrics) -> None:
    for name, kind in exposed(metrics).items():
        assert re.fullmatch(r"mycoproxy(_[a-z]+)+", name), name
        assert (kind == "counter") == name.endswith("_total"), name
        if kind == "histogram":
            assert name.endswith(("_seconds", "_bytes")), name
        assert not re.search(r"_(ms|milliseconds|kb|minutes)(_|$)", name), name


def test_the_docs_list_every_metric_and_no_other(metrics: Metrics) -> None:
    listed = set(re.findall(r"^\| `(mycoproxy_\w+)", DOCS.read_text(), re.MULTILINE))
    assert listed == set(exposed(metrics))


def test_values_are_what_was_counted(metrics: Metrics) -> None:
    text = metrics.text().decode()
    assert 'mycoproxy_agent_info{node="alpha",version="1.2.3"} 1.0' in text
    assert 'mycoproxy_log_lines_total{level="info"} 3.0' in text
    assert 'mycoproxy_log_dropped_lines_total{reason="repeated"} 2.0' in text
    assert 'mycoproxy_agent_part_ready{part="pki"} 0.0' in text
    assert 'mycoproxy_moves_refused_total{reason="draining"} 2.0' in text
    assert "mycoproxy_journal_size_bytes 4096.0" in text
    assert "process_resident_memory_bytes" in text


def test_every_label_of_moves_has_its_values_from_the_start(metrics: Metrics) -> None:
    # Rates of counters that appear with their first event miss it; and nobody else adds values.
    text = metrics.text().decode()
    for role in ("source", "target", "peer"):
        assert f'mycoproxy_moves_under_way{{role="{role}"}} 0.0' in text
        for outcome in ("moved", "returned"):
            assert f'mycoproxy_moves_total{{outcome="{outcome}",role="{role}"}} 0.0' in text
    for strategy in ("rebind", "translate", "anchor", "carry", "admit"):
        assert f'mycoproxy_move_connections_total{{strategy="{strategy}"}} 0.0' in text


def test_two_agents_of_one_process_share_nothing() -> None:
    one, other = (Metrics(node=name, version="1") for name in ("a", "b"))
    Counter("mycoproxy_x_total", "x", registry=one.registry).inc()
    assert b"mycoproxy_x_total" in one.text()
    assert b"mycoproxy_x_total" not in other.text()
