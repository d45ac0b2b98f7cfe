"""Which task holds which TCP connection.

>>> with take(tasks_of(init_pid)) as source:   # doctest: +SKIP
...     matching = match(source.connections, target.closed)
"""

from mycoproxy.sockets.held import HeldSocket, HeldSockets, Listener, take
from mycoproxy.sockets.match import Matcher, MatchError, Matching, match
from mycoproxy.sockets.names import DescriptorName
from mycoproxy.sockets.tasks import Task, tasks_of

__all__ = [
    "DescriptorName",
    "HeldSocket",
    "HeldSockets",
    "Listener",
    "MatchError",
    "Matcher",
    "Matching",
    "Task",
    "match",
    "take",
    "tasks_of",
]
