"""What can go wrong between two agents, by what the caller can do about it.

The question that counts in a handover is whether a request *can have been carried out* although
no reply came. Every error that a call can end with answers it in ``may_have_run``.
"""

from mycoproxy.errors import MycoError


class PeeringError(MycoError):
    """Something between two agents failed. ``may_have_run``: the request may have had an effect."""

    may_have_run = False


class FrameError(PeeringError):
    """Bytes that are not a frame within the limits, or a value that does not go into one."""


class ProtocolError(PeeringError):
    """The other side broke the rules of the protocol. It ends the link."""

    may_have_run = True


class HandshakeError(PeeringError):
    """No link came about: certificate, identity, version, or the other side has no room.

    ``reason`` is one word for metrics: ``tls``, ``identity``, ``version``, ``deadline``, ...
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LinkLost(PeeringError):  # noqa: N818 - it is an event, and has the field's name
    """There is no link, or it broke before the reply was complete.

    ``may_have_run`` false: the request was never sent, or the other side said that it did not take
    it; it can be sent again whatever it is. True: nobody knows. ``retry_after``: seconds in which
    another call to that node would fail at once, because it is not dialled again before.
    """

    def __init__(self, message: str, *, may_have_run: bool, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.may_have_run = may_have_run
        self.retry_after = retry_after


class DeadlineError(PeeringError):
    """The call's deadline passed. The other side was told to stop, and knows the deadline."""

    def __init__(self, message: str, *, may_have_run: bool) -> None:
        super().__init__(message)
        self.may_have_run = may_have_run


class RequestError(PeeringError):
    """An error reply: raised by a handler on one node, and by the call on the other.

    ``code`` is one word for programs, at most 64 characters; the message is for people and is cut
    at 2,000. ``may_have_run`` is true: a handler can fail half way.
    """

    may_have_run = True

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
