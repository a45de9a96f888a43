"""One answer of an agent: its task runs in the loop of the agents, its run in the loop of the server."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from inspect import isawaitable
from time import monotonic
from typing import Any, TypeVar, cast

from msgspec import Struct

from chatserver.errors import AgentFailed, Unavailable, UpstreamError
from chatserver.function_agent.agent_loop import AgentLoop, start
from chatserver.function_agent.hop import Hop
from chatserver.function_agent.yielded import Said, checked
from chatserver.meter import Spent

T = TypeVar("T")

PASSED_ON = (AgentFailed, Spent, Unavailable, UpstreamError)
"""Exceptions that say by themselves how a run ends. They reach an agent from what it asks of its context."""


class End(Struct, frozen=True):
    """The agent has ended, of itself or by an exception."""

    error: Exception | None = None


class Work:
    """An agent at work for one run. Methods are for the server's thread, but for ``_begin`` and what that calls."""

    def __init__(
        self,
        take: Callable[[Said], None],
        steps: Callable[["Work"], AsyncIterator[Any]],
        result_bytes_limit: int,
    ) -> None:
        """``take`` is told of each step, in the server's loop; what it raises ends the work."""
        self._server = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._server.create_future()
        """The end of the answer. The agent may go on after that, but nobody hears it."""

        self.is_gone = False
        """The agent's task has ended too, or never begins."""

        self.heard_at = monotonic()
        self._asked: set[asyncio.Task[Any]] = set()
        self._result_bytes_limit = result_bytes_limit
        self._take, self._steps = take, steps
        self._hop: Hop[Said | End] = Hop(self._server, self._arrive)
        self._where: AgentLoop | None = None
        self._has_begun, self._beginning = False, threading.Lock()
        self._task: asyncio.Task[None] | None = None

    def begin(self, where: AgentLoop) -> bool:
        """Begin in this loop; False: the work has begun in another one."""
        with self._beginning:
            if self._has_begun:
                return False
            self._where = where
        where.loop.call_soon_threadsafe(self._begin, where)
        return True

    @property
    def where(self) -> AgentLoop | None:
        return self._where

    @property
    def has_begun(self) -> bool:
        return self._has_begun

    @property
    def silent_seconds(self) -> float:
        """For how long the agent has said nothing and waited for nothing that it has asked of the server."""
        return 0.0 if self._asked else monotonic() - self.heard_at

    def fail(self, error: Exception) -> None:
        """End the answer, unless it has ended."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # Whoever waits for it has perhaps been cancelled.

    def stop(self) -> None:
        """The answer is over: cancel the agent, once more if it goes on nevertheless."""
        self.ended.cancel()
        for asked in self._asked:
            asked.cancel()
        with self._beginning:
            if not self._has_begun:
                self._has_begun = self.is_gone = True
        if self._where is not None and not self.is_gone:
            self._where.loop.call_soon_threadsafe(self._cancel)

    def _arrive(self, said: Said | End) -> None:
        self.heard_at = monotonic()
        if isinstance(said, End):
            self.is_gone = True
            if said.error is not None:
                self.fail(said.error)
            elif not self.ended.done():
                self.ended.set_result(None)
        elif not self.ended.done():
            try:
                self._take(said)
            except Exception as error:  # noqa: BLE001 - to be raised where the end is waited for
                self.fail(error)

    # In the thread of the agents.

    def ask(self, answer: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Let a coroutine run in the server's loop, behind all that was said; cancelling cancels it."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._answered(answer), self._server))

    def tell(self, said: Said) -> None:
        """Tell the server's loop, behind all that was said."""
        self._hop.send(said)

    async def _answered(self, answer: Coroutine[Any, Any, T]) -> T:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._asked.add(task)
        try:
            return await answer
        finally:
            self._asked.discard(task)
            self.heard_at = monotonic()

    def _begin(self, where: AgentLoop) -> None:
        with self._beginning:
            if self._has_begun or self._where is not where:
                return
            self._has_begun = True
        self._task = start(self._work(), self)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        error: Exception | None = None
        try:
            async with _opened(self._steps(self)) as steps:
                async for step in steps:
                    if (said := checked(step, self._result_bytes_limit)) is not None:
                        self.tell(said)
                    if self.ended.done():
                        break
                    if self._hop.is_full:
                        await self.ask(_nothing())
        except PASSED_ON as raised:
            error = raised
        except BaseException as raised:  # noqa: BLE001 - an agent is foreign code: SystemExit too is only its failure
            error = AgentFailed("the agent failed; this server's log says how")
            error.__cause__ = raised
        finally:
            self._hop.send(End(error))


@asynccontextmanager
async def _opened(steps: Any) -> AsyncIterator[AsyncIterator[Any]]:
    """The steps of an agent, closed at the end where they can be."""
    if not hasattr(steps, "__aiter__"):
        if isawaitable(steps) and hasattr(steps, "close"):
            steps.close()  # Else Python would warn of a coroutine that was never awaited.
        raise AgentFailed("the agent is no async generator: an `async def` with `yield` is needed")
    try:
        yield steps
    finally:
        if hasattr(steps, "aclose"):
            await steps.aclose()


async def _nothing() -> None:
    """Come back: all that was sent before has arrived."""
