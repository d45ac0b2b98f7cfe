"""The other end of the control socket, for commands: plain HTTP, and errors of use to a person."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mycoproxy.errors import MycoError, RefusedError, UsageError

DEFAULT_SOCKET: Final = Path("/run/mycoproxy/agent.sock")
"""As in ``config``, which takes a while to import."""

VARIABLE: Final = "MYCOPROXY_CONTROL_SOCKET"

SILENCE: Final = 60.0
"""Seconds without a byte after which the agent counts as dead. A stream says something every 10."""

Answer = dict[str, Any]


class ControlClient:
    """Asks the agent at one socket; a connection for each question."""

    def __init__(self, path: Path | None) -> None:
        self.path = path or Path(os.environ.get(VARIABLE) or DEFAULT_SOCKET)

    def get(self, question: str) -> Answer:
        """The answer to ``/v1/status`` and the like. Raises ``MycoError`` for a refusal."""
        return self._answer(*self._ask("GET", question))

    def post(self, question: str, body: Mapping[str, Any] | None = None) -> Answer:
        """The same for what changes something."""
        return self._answer(*self._ask("POST", question, body))

    def lines(self, question: str) -> Iterator[Answer]:
        """The objects of a stream, as they come; ends with the agent."""
        connection, response = self._ask("GET", question)
        if response.status != http.client.OK:
            self._answer(connection, response)
        try:
            while line := response.readline():
                yield json.loads(line)
        except (OSError, http.client.HTTPException) as error:
            raise MycoError(f"the agent at {self.path} went away: {error}") from error
        finally:
            connection.close()

    def _ask(
        self, method: str, question: str, body: Mapping[str, Any] | None = None
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        connection = _Connection(self.path)
        try:
            if body is None:
                connection.request(method, question)
            else:
                headers = {"Content-Type": "application/json"}
                connection.request(method, question, json.dumps(body), headers)
            return connection, connection.getresponse()
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise MycoError(
                f"no agent answers at {self.path}: is it running? systemctl status mycoproxy-agent"
            ) from None
        except PermissionError:
            connection.close()
            raise RefusedError(
                f"you may not ask the agent at {self.path}: ask as root, or as a member of the "
                f"group that control.group names"
            ) from None
        except TimeoutError:
            connection.close()
            raise MycoError(
                f"the agent at {self.path} did not answer within {SILENCE:g} s; see its log"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise MycoError(f"the agent at {self.path} did not answer: {error}") from error

    @staticmethod
    def _answer(connection: _Connection, response: http.client.HTTPResponse) -> Answer:
        try:
            answer: Answer = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise MycoError(f"the agent's answer cannot be read: {error}") from error
        finally:
            connection.close()
        if response.status == http.client.OK:
            return answer
        kind: type[MycoError] = MycoError
        if response.status in (http.client.FORBIDDEN, http.client.CONFLICT):
            kind = RefusedError
        elif response.status == http.client.UNPROCESSABLE_ENTITY:
            kind = UsageError
        raise kind(f"{answer.get('error')}; {answer.get('to_do')}")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=SILENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
