"""Agents of a server under test that do something else while one of their calls waits."""

import asyncio
import os
from collections.abc import AsyncIterator

from chatserver import AgentContext, Dialogue, Yielded
from chatserver.errors import ToolError


async def talking(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    """Says in each process something else, for as long as its call waits."""
    booking = asyncio.ensure_future(context.call("book", {"table": 4}))
    number = 0
    while not booking.done():
        number += 1
        yield f"{os.getpid()}:{number} "
        await asyncio.sleep(0.002)
    yield await booking


async def kneading(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    """Makes a call while another one waits, just behind some words: what comes so fast is stored together."""
    booking = asyncio.ensure_future(context.call("book", {"table": 4}))
    await asyncio.sleep(0.05)
    yield "Well. "
    await asyncio.sleep(0.03)
    try:
        kneaded = await context.call("knead", {"seconds": 60})
    except ToolError as error:
        kneaded = str(error)
    yield f"{kneaded} {await booking}"
