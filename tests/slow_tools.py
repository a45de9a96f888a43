"""Tools of a server under test: one that answers at once, and one that never does."""

import asyncio


async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


async def hang() -> None:
    """Never come back."""
    await asyncio.get_running_loop().create_future()


TOOLS = [add, hang]
REFERENCE = f"{__name__}:TOOLS"
