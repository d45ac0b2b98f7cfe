"""What is sent with a question to the control socket: JSON objects that are checked."""

from __future__ import annotations

from typing import Any, TypeVar

import pydantic
from aiohttp import web
from pydantic import BaseModel, ConfigDict

from mycoproxy.errors import UsageError

M = TypeVar("M", bound=BaseModel)


class Body(BaseModel):
    """Of one kind of question. What it does not have is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


async def json_body(request: web.Request) -> dict[str, Any]:
    """The object in a request. Raises ``UsageError``."""
    try:
        data = await request.json()
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"a JSON object is wanted: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"a JSON object is wanted, found {type(data).__name__}")
    return data


def checked(model: type[M], data: dict[str, Any]) -> M:
    """``data`` as a ``model``. Raises ``UsageError``."""
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5]]
        raise UsageError("; ".join(problems)) from error
