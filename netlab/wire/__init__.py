"""A wire between two network namespaces that loses, duplicates, delays and reorders packets.

For kernels without netem. Each end is a TAP device; what one of them sends, a process in between
writes to the other, when and as often as the impairment says.

* `impairment`: what happens to a packet. Pure, repeatable by its seed.
* `tap`: the two devices.
* `wire`: `Wire`, for whoever wants one.
* ``python -m netlab.wire`` is the process in between. It is a process and not a thread, so that it
  does not share an interpreter with what is measured over it.

Nothing is imported here: the process in between starts in a few milliseconds that way.
"""
