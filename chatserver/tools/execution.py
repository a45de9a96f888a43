"""Calling a tool so that nothing the tool does can hurt a run: a tool may raise, hang, block, or return 100 MB.

No tool runs in the server's thread. Async tools share one event loop in a thread of its own; each call of a plain tool
gets a daemon thread. So a tool that blocks its event loop blocks only tools. A call that never ends is left behind,
neither awaited nor joined at exit. An event loop that is stuck when a call times out is replaced; if the stuck loop
ever continues, it ends.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from math import inf
from time import monotonic
from typing import Any

import anyio
from anyio import to_thread

from chatserver.commands import ClientTool
from chatserver.json_schema import mistake_in
from chatserver.tools import Approval, BadArguments, Tool
from chatserver.tools.context import ToolContext
from chatserver.tools.functions import FunctionTool
from chatserver.tools.loops import ToolLoop
from chatserver.tools.results import Outcome, ToolFailed, cap, failed, words_of

logger = logging.getLogger(__name__)

ABANDONED_LIMIT = 64
"""Threads that never came back from a tool, a plain one or an async one that blocks its loop: then no more is begun."""


async def check(tool: Tool | ClientTool, args: dict[str, Any]) -> None:
    """Check the arguments of a call against the tool's schema.

    Raises:
        BadArguments: they do not fit.
    """
    mistake = None
    try:
        if isinstance(tool, FunctionTool):
            tool.bind(args)
        else:
            mistake = await to_thread.run_sync(mistake_in, tool.parameters, args)  # It may take a second.
    except Exception as error:  # noqa: BLE001 - a type or a schema may be foreign code
        mistake = words_of(error)
    if mistake is not None:
        raise BadArguments(f"the arguments do not fit: {mistake}")


class TimeLimit:
    """How long a call may take; the time stands still while a question of the call is open.

    Whether the tool waits for the answer cannot be seen: it may ask in a task, a thread, or a callback of a library.
    But no question is open for ever, so a tool that never ends has a limit all the same.
    """

    def __init__(self, seconds: float) -> None:
        self._scope = anyio.CancelScope()
        self._seconds = self._left = seconds
        self._stops = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """While entered, time passes.

        Raises:
            TimeoutError: the time is over.
        """
        self._scope.deadline = anyio.current_time() + self._seconds
        with self._scope:
            yield
        if self._scope.cancelled_caught:
            raise TimeoutError

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While entered, time stands still. To be called in the event loop of ``running``."""
        if self._scope.cancel_called:  # The time is over.
            yield
            return
        if not self._stops:
            self._left = self._scope.deadline - anyio.current_time()
            self._scope.deadline = inf
        self._stops += 1
        try:
            yield
        finally:
            self._stops -= 1
            if not self._stops:
                self._scope.deadline = anyio.current_time() + self._left


class ToolThreads:
    """Where tools run. Make one per server; nothing needs closing, since its threads are daemons."""

    def __init__(self, timeout_seconds: float, result_bytes_limit: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._result_bytes_limit = result_bytes_limit
        self._loop: ToolLoop | None = None
        self._lost: set[Future[Any]] = set()
        """One future for each thread that has not come back."""

    def time_limit(self) -> TimeLimit:
        """The time that a call has."""
        return TimeLimit(self._timeout_seconds)

    async def call(
        self, tool: Tool, args: dict[str, Any], context: ToolContext, limit: TimeLimit | None = None
    ) -> Outcome:
        """Call a tool. Whatever the tool does becomes an ``Outcome``; only cancelling this call raises."""
        began = monotonic()
        try:
            await check(tool, args)
            result, truncated = await self._result(
                partial(tool.call, args, context), iscoroutinefunction(tool.call), limit or self.time_limit()
            )
            is_error = False
        except TimeoutError:
            result, truncated, is_error = f"no answer within {self._timeout_seconds:g} seconds", False, True
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a tool is foreign code: SystemExit too is only its failure
            result, truncated = cap(words_of(error), self._result_bytes_limit)
            is_error = True
        return Outcome(result, is_error, truncated, round((monotonic() - began) * 1000))

    async def needs_approval(self, tool: Tool, args: dict[str, Any]) -> bool:
        """Whether a person must agree to a call whose arguments fit. A rule that fails, or takes too long, says yes."""
        try:
            rule: Approval = getattr(tool, "needs_approval", False)
            if not callable(rule):
                return rule
            awaited = list[Awaitable[bool]]()

            def ruled() -> bool:
                is_needed = rule(args)
                if isawaitable(is_needed):
                    awaited.append(is_needed)
                    return True
                return bool(is_needed)

            is_needed, _ = await self._result(ruled, False, self.time_limit())
            for each in awaited:
                is_needed, _ = await self._result(partial(_truth, each), True, self.time_limit())
        except Exception as error:  # noqa: BLE001 - a rule is foreign code
            logger.error("the rule for approvals of the tool %s has failed: %s", tool.name, words_of(error))
            return True
        return bool(is_needed)

    async def _result(self, call: Callable[[], Any], is_async: bool, limit: TimeLimit) -> tuple[Any, bool]:
        """What a call gives, capped, wherever it may run.

        Raises:
            TimeoutError: it takes too long.
            ToolFailed: it has failed.
        """
        bytes_limit, loop = self._result_bytes_limit, None
        if len(self._lost) >= ABANDONED_LIMIT and not (is_async and self._loop):
            raise ToolFailed("too many tool calls have not come back")
        if is_async:
            loop = self._loop = self._loop or ToolLoop()

            async def run() -> tuple[Any, bool] | ToolFailed:
                try:
                    result = call()
                    return cap(await result if isawaitable(result) else result, bytes_limit)
                except BaseException as error:  # noqa: BLE001 - SystemExit would end the tools' loop
                    return failed(error)  # Returned: an exception after the timeout would be logged as a fault.

            future = loop.submit(run())
        else:
            future = _in_thread(lambda: cap(call(), bytes_limit), self._lost.discard)
        try:
            with limit.running():
                done: tuple[Any, bool] | ToolFailed = await asyncio.wrap_future(future)
        except TimeoutError:
            if loop is not None:
                await self._replace_if_stuck(loop)
            raise
        finally:
            if not is_async and (not future.done() or future.cancelled()):
                self._lost.add(future)
        if isinstance(done, ToolFailed):
            raise done
        return done

    async def _replace_if_stuck(self, loop: ToolLoop) -> None:
        """Give further calls another event loop if this one is stuck. Its thread counts as lost until it continues."""
        if await loop.is_stuck() and self._loop is loop:  # Otherwise another call has replaced the loop already.
            self._loop = None
            ended = loop.leave()
            self._lost.add(ended)
            asyncio.wrap_future(ended).add_done_callback(lambda _: self._lost.discard(ended))


async def _truth(of: Awaitable[Any]) -> bool:
    return bool(await of)


def _in_thread(call: Callable[[], Any], came_back: Callable[[Future[Any]], None]) -> Future[Any]:
    loop, future = asyncio.get_running_loop(), Future[Any]()

    def run() -> None:
        try:
            result, failure = call(), None
        except BaseException as error:  # noqa: BLE001 - as above
            result, failure = None, failed(error)
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            return  # The server has gone; nobody waits any more.

    def settle(result: Any, failure: BaseException | None) -> None:
        came_back(future)
        if not future.cancelled():
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    threading.Thread(target=run, name="chatserver-tool", daemon=True).start()
    return future
