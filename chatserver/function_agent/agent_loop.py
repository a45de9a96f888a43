"""An event loop in a thread of its own, for agents: one that blocks blocks no server."""

import asyncio
import threading
from collections.abc import Coroutine
from contextvars import Context, ContextVar
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import anyio

LEFT_TASKS_SECONDS = 1.0
"""How long the tasks of an event loop that ends may still go on."""

OWNER: ContextVar[object | None] = ContextVar("chatserver_agent", default=None)
"""For whom a task works. Tasks that it starts inherit that."""


class AgentLoop:
    """The event loop, from its start to ``end``. What raises ``SystemExit`` in it does not end the loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(self._task)
        self._owners: WeakKeyDictionary[asyncio.Future[Any], object] = WeakKeyDictionary()
        self._asked_at: float | None = None
        self._is_over = False
        threading.Thread(target=self._run, name="chatserver-agents", daemon=True).start()

    def ask(self) -> None:
        """Ask the loop whether it still runs, unless it has not answered the last time."""
        if self._asked_at is None:
            self._asked_at = monotonic()
            self.loop.call_soon_threadsafe(self._answer)

    @property
    def blocked_seconds(self) -> float:
        """For how long the loop has not answered."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else monotonic() - asked_at

    @property
    def owner(self) -> object | None:
        """For whom the task works that the loop is in now."""
        task = asyncio.current_task(self.loop)
        return None if task is None else self._owners.get(task)

    async def end(self) -> None:
        """Cancel all tasks and end the thread. A loop that is blocked is left behind."""
        with anyio.move_on_after(2 * LEFT_TASKS_SECONDS, shield=True):
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._end(), self.loop))
        self._is_over = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _answer(self) -> None:
        self._asked_at = None

    def _task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, *, context: Context | None = None, **options: Any
    ) -> asyncio.Future[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, context=context, **options)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            self._owners[task] = owner
        return task

    async def _end(self) -> None:
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            for each in others:
                each.cancel()
            await asyncio.wait(others, timeout=LEFT_TASKS_SECONDS)
        await self.loop.shutdown_asyncgens()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._is_over:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # Raised by a task; asyncio has let it through.
        self.loop.close()


def start(work: Coroutine[Any, Any, None], owner: object) -> "asyncio.Task[None]":
    """Start a task for an owner, in the running loop."""
    context = Context()
    context.run(OWNER.set, owner)
    return asyncio.get_running_loop().create_task(work, context=context)
