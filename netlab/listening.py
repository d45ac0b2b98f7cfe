"""Waiting until a pod's server accepts connections on all its addresses."""

import socket
import time

from mycoproxy.errors import MycoError
from mycoproxy.namespaces import NamespaceWorker
from netlab.pods import Pod

_POLL = 0.005  # seconds between two tries


def wait(pod: Pod, *, timeout: float) -> None:
    """Connect from inside the pod's namespace until it works, on each address.

    Raises ``MycoError`` if the container ends meanwhile or does not listen after ``timeout``
    seconds.
    """
    deadline = time.monotonic() + timeout
    with NamespaceWorker(pod.netns) as inside:
        for address in pod.addresses:
            while True:
                reason = inside.call(refusal, address, pod.port, timeout=1.0)
                if reason is None:
                    break
                if not pod.running:
                    raise MycoError(
                        f"pod {pod.name} ended as soon as it was started: "
                        f"see the command in {pod.bundle / 'config.json'}"
                    )
                if time.monotonic() > deadline:
                    raise MycoError(
                        f"pod {pod.name} does not listen on {address} port {pod.port} "
                        f"after {timeout:g} s: {reason}"
                    )
                time.sleep(_POLL)


def refusal(address: str, port: int, *, timeout: float) -> str | None:
    """Why a TCP connection from the calling thread's namespace fails; ``None`` if it does not."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return None
    except OSError as error:
        return error.strerror or str(error)
