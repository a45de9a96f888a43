"""Tasks of runs."""

import asyncio
from collections.abc import Callable, Coroutine


def spawn(life: Coroutine[None, None, None], among: set[asyncio.Task[None]]) -> Callable[[], object]:
    """Begin a task; what cancels it."""
    # Not in a task group of anyio: its scope, handle and event take 2 KB of each run.
    task = asyncio.create_task(life)
    among.add(task)
    task.add_done_callback(among.discard)
    return task.cancel
