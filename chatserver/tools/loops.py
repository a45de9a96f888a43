"""An event loop for tools, in a thread of its own: whatever a tool does to the loop, it goes on until it is left."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio

STUCK_SECONDS = 1.0

T = TypeVar("T")


class ToolLoop:
    """A running event loop. Its thread is a daemon: nothing waits for it at exit."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_left = False
        threading.Thread(target=self._run, name="chatserver-tools", daemon=True).start()

    def _run(self) -> None:
        while not self._is_left:
            try:
                self._loop.run_forever()
            except BaseException:  # noqa: BLE001, S112 - a task of a tool's own that raises SystemExit ends the loop
                continue
        self._loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a task in the loop, from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def is_stuck(self) -> bool:
        """Whether the loop does nothing, since one of its callbacks does not come to its end."""
        echo = self.submit(asyncio.sleep(0))
        with anyio.move_on_after(STUCK_SECONDS):
            await asyncio.wrap_future(echo)
            return False
        return True

    def leave(self) -> Future[None]:
        """End the loop as soon as it continues and its tasks are done."""
        return self.submit(self._end())

    async def _end(self) -> None:
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        self._is_left = True
        self._loop.call_soon(self._loop.stop)
