"""A packet capture beside a move, and what it proves: no reset, nothing sent again late, no new
connection.

`tcpdump` takes it, `packets` reads it, `findings` draws the conclusions.
"""

from netlab.capture.findings import Findings, find
from netlab.capture.flows import Flow, Servers, flows
from netlab.capture.packets import Packets, read_pcap
from netlab.capture.tcpdump import Capture, CaptureStatistics, ClockOffset

__all__ = [
    "Capture",
    "CaptureStatistics",
    "ClockOffset",
    "Findings",
    "Flow",
    "Packets",
    "Servers",
    "find",
    "flows",
    "read_pcap",
]
