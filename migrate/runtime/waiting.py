"""Waiting for one thing while another may fail."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def first_of(wanted: Awaitable[T], failing: Awaitable[None]) -> T:
    """The result of ``wanted``, unless ``failing`` raises first. Neither is left running.

    A future that is passed as ``wanted`` is cancelled only if this coroutine is.
    """
    want = asyncio.ensure_future(wanted)
    fail = asyncio.ensure_future(failing)
    try:
        await asyncio.wait({want, fail}, return_when=asyncio.FIRST_COMPLETED)
        if not want.done():
            await fail
        return await want
    finally:
        for task in (want, fail):
            if not task.done():
                task.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await fail
