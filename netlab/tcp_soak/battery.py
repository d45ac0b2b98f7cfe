"""What any connected pair of TCP sockets must do, however it came to be connected.

After trio's ``check_two_way_stream``: one public battery, and every kind of connection goes through
all of it. A check gets a `Pair`, calls ``pair.move()`` where a move may come in between, and asks
only what TCP promises whether one came or not. Run each with the pair and with ``pair.flipped()``.

The checks are in `battery_data`, `battery_closing` and `battery_readiness`; ``CHECKS`` has them by
name. They raise ``AssertionError``, and close nothing: the pair's owner does.
"""

from collections.abc import Callable, Mapping
from typing import Final

from netlab.tcp_soak import battery_closing, battery_data, battery_readiness
from netlab.tcp_soak.ends import Pair

Check = Callable[[Pair], None]

CHECKS: Final[Mapping[str, Check]] = {
    check.__name__: check
    for part in (battery_data, battery_closing, battery_readiness)
    for check in part.CHECKS
}
