"""Calling a tool so that nothing the tool does can hurt a run: a tool may raise, hang, block, or return 100 MB.

No tool runs in the server's thread. Async tools share one event loop in a thread of its own; each call of a plain tool
gets a daemon thread. So a tool that blocks its event loop blocks only tools. A call that never ends is left behind,
neither awaited nor joined at exit. An event loop that is stuck when a call times out is replaced; if the stuck loop
ever continues, it ends.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from inspect import isawaitable
from time import monotonic
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from chatserver.events import to_json
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply
from chatserver.tools import Tool

ABANDONED_LIMIT = 64
"""Threads that never came back from a tool, a plain one or an async one that blocks its loop: then no more is begun."""
STUCK_SECONDS = 1.0


class ToolFailed(Exception):
    """The call gave no result; the message is for the model and the user."""


class Outcome(Struct, frozen=True):
    """What a call gave: JSON-ready, at most the cap in size."""

    result: Any
    is_error: bool
    truncated: bool
    duration_ms: int


class ToolThreads:
    """Where tools run. Make one per server; nothing needs closing, since its threads are daemons."""

    def __init__(self, timeout_seconds: float, result_bytes_limit: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._result_bytes_limit = result_bytes_limit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost: set[Future[Any]] = set()
        """One future for each thread that has not come back."""

    async def call(self, tool: Tool, args: dict[str, Any]) -> Outcome:
        """Call a tool. Whatever the tool does becomes an ``Outcome``; only cancelling this call raises."""
        began = monotonic()
        try:
            bound = tool.bind(args)
            result, truncated = await self._result(tool, bound)
            is_error = False
        except TimeoutError:
            result, truncated, is_error = f"no answer within {self._timeout_seconds:g} seconds", False, True
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a tool is foreign code: SystemExit too is only its failure
            result, truncated = cap(_words(error), self._result_bytes_limit)
            is_error = True
        return Outcome(result, is_error, truncated, round((monotonic() - began) * 1000))

    async def _result(self, tool: Tool, bound: dict[str, Any]) -> tuple[Any, bool]:
        limit, loop = self._result_bytes_limit, None
        if len(self._lost) >= ABANDONED_LIMIT and not (tool.is_async and self._loop):
            raise ToolFailed("too many tool calls have not come back")
        if tool.is_async:
            loop = self._loop = self._loop or _start_loop()

            async def run() -> tuple[Any, bool] | ToolFailed:
                try:
                    result = tool.function(**bound)
                    return cap(await result if isawaitable(result) else result, limit)
                except BaseException as error:  # noqa: BLE001 - SystemExit would end the tools' loop
                    return _harmless(error)  # Returned: an exception after the timeout would be logged as a fault.

            future = asyncio.run_coroutine_threadsafe(run(), loop)
        else:
            future = _in_thread(lambda: cap(tool.function(**bound), limit), self._lost.discard)
        try:
            with anyio.fail_after(self._timeout_seconds):
                done: tuple[Any, bool] | ToolFailed = await asyncio.wrap_future(future)
        except TimeoutError:
            if loop is not None:
                await self._replace_if_stuck(loop)
            raise
        finally:
            if not tool.is_async and (not future.done() or future.cancelled()):
                self._lost.add(future)
        if isinstance(done, ToolFailed):
            raise done
        return done

    async def _replace_if_stuck(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give further calls another event loop if this one is stuck. Its thread counts as lost until it continues."""
        if await _is_stuck(loop) and self._loop is loop:  # Otherwise another call has replaced the loop already.
            self._loop = None
            ended = _end_loop(loop)
            self._lost.add(ended)
            asyncio.wrap_future(ended).add_done_callback(lambda _: self._lost.discard(ended))


def cap(result: Any, bytes_limit: int) -> tuple[Any, bool]:
    """A result as JSON can hold it, and whether it had to be cut to ``bytes_limit`` bytes of JSON.

    Raises:
        TypeError: JSON has no form for it.
        ToolFailed: it is nested too deeply.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        result = bytes(result[: bytes_limit + 1]).decode(errors="replace")
    if isinstance(result, str):
        # Cut first: encoding 100 MB would hold the interpreter's lock, and so every thread.
        cut = result[: bytes_limit + 1].encode(errors="replace").decode()
        fitting = _prefix(cut, bytes_limit)
        return fitting, len(fitting) < len(cut)
    encoded = msgspec.json.encode(result)
    if len(encoded) > bytes_limit or len(to_json(result)) > bytes_limit:
        return _prefix(encoded[:bytes_limit].decode(errors="replace"), bytes_limit), True
    if is_nested_too_deeply(encoded):
        raise ToolFailed(f"the result is nested over {NESTING_LIMIT} levels")
    return msgspec.json.decode(encoded), False


def _prefix(text: str, bytes_limit: int) -> str:
    """The longest prefix, to within an eighth, whose JSON fits."""
    while len(to_json(text)) > bytes_limit:
        text = text[: len(text) * 7 // 8]
    return text


def _start_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()

    def run() -> None:
        loop.run_forever()
        loop.close()

    threading.Thread(target=run, name="chatserver-tools", daemon=True).start()
    return loop


def _end_loop(loop: asyncio.AbstractEventLoop) -> Future[None]:
    """Stop an event loop as soon as it continues and its tasks are done."""

    async def end() -> None:
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        loop.call_soon(loop.stop)

    return asyncio.run_coroutine_threadsafe(end(), loop)


async def _is_stuck(loop: asyncio.AbstractEventLoop) -> bool:
    echo = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
    with anyio.move_on_after(STUCK_SECONDS):
        await asyncio.wrap_future(echo)
        return False
    return True


def _harmless(error: BaseException) -> ToolFailed:
    """A tool's failure in words, found where the tool runs: `__str__` is foreign code too."""
    return ToolFailed(_words(error))


def _words(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - whatever it raises
        return type(error).__name__


def _in_thread(call: Callable[[], Any], came_back: Callable[[Future[Any]], None]) -> Future[Any]:
    loop, future = asyncio.get_running_loop(), Future[Any]()

    def run() -> None:
        try:
            result, failure = call(), None
        except BaseException as error:  # noqa: BLE001 - as above
            result, failure = None, _harmless(error)
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
