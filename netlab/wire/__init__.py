"""Wires between network namespaces: one that loses, duplicates, delays and reorders packets, and
the links of a lab that only delay them.

For kernels without netem. Each end is a TAP device; what one of them sends, a process in between
writes to the other, when and as often as is wanted. It is a process and not a thread, so that it
does not share an interpreter with what is measured over it.

* `tap`: the devices. `forwarding`: the loop between them.
* `impairment`: what a bad wire does to a packet (pure, repeatable by its seed); `wire`: `Wire`, for
  whoever wants one; ``python -m netlab.wire``: its process.
* `delay`: what a delayed link does (pure); `delayed`: start and ask the process of all delayed
  links of a lab, ``python -m netlab.wire.delaying``.

Nothing is imported here: the processes in between start in a few milliseconds that way.
"""
