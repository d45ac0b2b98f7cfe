"""Waiting for one thing while another may fail."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def first_of(wanted: Awaitable[T], failing: Awaitable[None]) -> T:
    """The result of ``wanted``, unless ``failing`` ends first. Neither is left running."""
    want = asyncio.ensure_future(wanted)
    fail = asyncio.ensure_future(failing)
    try:
        await asyncio.wait({want, fail}, return_when=asyncio.FIRST_COMPLETED)
        if not want.done():
            await fail
        return await want
    finally:
        for task in (want, fail):
            task.cancel()
        await asyncio.wait({want, fail})
        for task in (want, fail):
            if not task.cancelled():
                task.exception()  # seen: the one that counts has been raised
