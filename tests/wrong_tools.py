"""Tools of a server under test, each wrong in its own way, and one that is right."""

import asyncio
import sys
import threading
import time
from typing import Any

from chatserver.tools.context import ToolContext

REFERENCE = f"{__name__}:TOOLS"
FLOOD = 20_000
ENOUGH = threading.Event()
"""Set by a test that has seen enough: what blocks goes on, so that no thread stays."""


async def works(context: ToolContext) -> str:
    """Report, and answer."""
    await context.progress("working", 1, 1)
    return "worked"


async def exits() -> None:
    """End the program, in a task of its own too."""
    ending = asyncio.ensure_future(_exit())
    await asyncio.sleep(0.01)
    assert ending.done()
    sys.exit(3)


async def _exit() -> None:
    raise SystemExit


async def stops() -> None:
    """Stop the loop that all tools share."""
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    raise RuntimeError("stopped")


async def never() -> None:
    """Never come back, whoever cancels."""
    while not ENOUGH.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


def blocks() -> None:
    """Never come back."""
    ENOUGH.wait()


async def blocks_all() -> None:
    """Never come back, and keep the loop that all tools share."""
    ENOUGH.wait()


def floods(context: ToolContext) -> None:
    """Report in a loop, then fail."""
    for number in range(FLOOD):
        context.progress("x" * 1000, number, FLOOD)  # type: ignore[unused-awaitable]
    raise ValueError("flooded")


def much() -> list[str]:
    """100 MB."""
    return ["x" * 1_000_000] * 100


def no_number() -> list[float]:
    """What JSON has no word for."""
    return [float("nan"), float("-inf"), 1.0]


def cycle() -> Any:
    """What has no end."""
    found: list[Any] = []
    found.append(found)
    return found


def strange() -> Any:
    """What only Python knows."""
    return time


TOOLS = [works, exits, stops, never, blocks, blocks_all, floods, much, no_number, cycle, strange]
