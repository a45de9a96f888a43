"""Tools of the demo model: an approval, progress. Nothing is booked or done."""

import asyncio
from secrets import randbelow
from typing import Annotated

from msgspec import Meta

from chatserver.providers.demo_script import Table, Work
from chatserver.tools.builtin import TOOLS as BUILTIN
from chatserver.tools.context import ToolContext
from chatserver.tools.functions import tool

STEP_SECONDS = 0.25
WORK_SECONDS_LIMIT = 25
"""Less than the default time limit of a tool call."""


@tool(needs_approval=True)
async def book_table(
    people: Annotated[int, Meta(ge=1, le=20)] = 2,
    time: Annotated[str, Meta(pattern=r"^\d{1,2}:\d{2}$", description="such as 19:30")] = "19:00",
) -> Table:
    """Book a table in a restaurant that does not exist."""
    return Table(people, time, f"T-{randbelow(10_000):04}")


async def work(seconds: Annotated[int, Meta(ge=1, le=WORK_SECONDS_LIMIT)], context: ToolContext) -> Work:
    """Do nothing for some seconds, and tell how far it is."""
    steps = round(seconds / STEP_SECONDS)
    for step in range(1, steps + 1):
        await asyncio.sleep(STEP_SECONDS)
        await context.progress(f"step {step} of {steps}", step * STEP_SECONDS, seconds)
    return Work(seconds)


TOOLS = [*BUILTIN, book_table, work]
