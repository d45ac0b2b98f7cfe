"""The agent's own metrics, in a registry of its own. docs/agent.md lists them.

A part makes its metrics where it lives, ``Counter("mycoproxy_x_total", "...",
registry=agent.metrics.registry)``; what counts without this library (plain numbers, as in
``peering``) is read at each scrape by a collector that the part registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mycoproxy.agent.logs import LogCounters

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_DELAYS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_DURATIONS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0)


class Metrics:
    """What the daemon itself counts, and the registry for what its parts count."""

    def __init__(self, *, node: str, version: str) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        registry = self.registry
        Info("mycoproxy_agent", "The agent's version and node.", registry=registry).info(
            {"version": version, "node": node}
        )
        self.loop_delay = Histogram(
            "mycoproxy_agent_event_loop_delay_seconds",
            "How much later than asked for the event loop did something, once a second.",
            buckets=_DELAYS,
            registry=registry,
        )
        self.reloads = Counter(
            "mycoproxy_config_reloads",
            "Reloads of the configuration, by result.",
            ["result"],
            registry=registry,
        )
        for result in ("applied", "refused"):
            self.reloads.labels(result)
        self.reloaded = Gauge(
            "mycoproxy_config_last_reload_timestamp_seconds",
            "When a configuration was last taken, at the start or later.",
            registry=registry,
        )
        self.requests = Counter(
            "mycoproxy_control_requests",
            "Requests to the control socket, by route and HTTP status.",
            ["route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "mycoproxy_control_request_duration_seconds",
            "How long requests to the control socket took; streams are not counted.",
            ["route"],
            buckets=_DURATIONS,
            registry=registry,
        )

    def watch_parts(self, reasons: Callable[[], Mapping[str, bool]]) -> None:
        """Ask at each scrape which part is ready."""
        self.registry.register(_PartsReady(reasons))

    def watch_logs(self, counters: LogCounters) -> None:
        """Read at each scrape how many lines were written."""
        self.registry.register(_LogLines(counters))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _PartsReady(Collector):
    def __init__(self, reasons: Callable[[], Mapping[str, bool]]) -> None:
        self._reasons = reasons

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "mycoproxy_agent_part_ready",
            "1 if this part of the agent can do its work; /readyz says why not.",
            labels=["part"],
        )
        for part, ready in self._reasons().items():
            family.add_metric([part], float(ready))
        yield family


class _LogLines(Collector):
    def __init__(self, counters: LogCounters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        written = CounterMetricFamily(
            "mycoproxy_log_lines", "Lines logged, by level.", labels=["level"]
        )
        for level in ("info", "warning", "error"):
            written.add_metric([level], getattr(self._counters, level))
        yield written
        dropped = CounterMetricFamily(
            "mycoproxy_log_dropped_lines",
            "Lines that were not written: of a kind that repeats, or too many at once.",
            labels=["reason"],
        )
        for reason in ("repeated", "overflow"):
            dropped.add_metric([reason], getattr(self._counters, reason))
        yield dropped
