"""What tests of tool calls share: calls that end in time, functions as both kinds of tool, gates for threads."""

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import anyio
import pytest

from chatserver.events import ToolResult
from chatserver.tools.context import ToolContext
from chatserver.tools.execution import ToolThreads
from chatserver.tools.functions import tool
from chatserver.tools.results import Outcome
from tests.clients import request
from tests.live import LiveServer

WAIT_SECONDS = 15.0
LONG = 600.0
"""A timeout that a test never waits for."""
SHORT = 0.05
"""A timeout that a test does wait for."""
LIMIT = 4096

Function: TypeAlias = Callable[..., Any]


async def called(threads: ToolThreads, function: Function, **args: Any) -> Outcome:
    """The outcome of a call, made in a task of its own: whatever gets out of a tool shall not end the test's."""
    calling = asyncio.ensure_future(threads.call(tool(function), args, ToolContext()))
    done, _ = await asyncio.wait([calling], timeout=WAIT_SECONDS)
    if not done:
        calling.cancel()
        await asyncio.wait([calling])
        raise TimeoutError("no outcome")
    assert not calling.cancelled(), "the tool cancelled its caller"
    return calling.result()


def both(function: Callable[[], Any]) -> list[Function]:
    """A plain function as the two tools that it can be."""

    @functools.wraps(function)
    async def in_loop() -> Any:
        return function()

    return [function, in_loop]


def each_way(functions: list[Callable[[], Any]]) -> pytest.MarkDecorator:
    """Parameters: every function as a plain tool and as an async one."""
    made = [way for function in functions for way in both(function)]
    kinds = ["plain", "async"] * len(functions)
    ids = [f"{way.__name__}-{kind}" for way, kind in zip(made, kinds, strict=True)]
    return pytest.mark.parametrize("function", made, ids=ids)


class Gates:
    """Blocks threads until the test has ended."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self._opened = threading.Event()

    def wait(self) -> bool:
        """Whether somebody opened in time."""
        return self.wait_for(60)

    def wait_for(self, seconds: float) -> bool:
        self.entered.release()
        return self._opened.wait(seconds)

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def open(self) -> None:
        self._opened.set()

    async def has_entered(self) -> None:
        """Somebody waits here, or has said so."""
        assert await anyio.to_thread.run_sync(self.entered.acquire, True, WAIT_SECONDS)


def open_gates() -> Iterator[Gates]:
    """Gates that are open at the end, so that no thread stays."""
    made = Gates()
    yield made
    made.open()


async def assert_works(threads: ToolThreads) -> None:
    """Other tools, async and plain, still answer."""

    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    def join(parts: list[str]) -> str:
        return "-".join(parts)

    assert (await called(threads, add, a="1", b=2)).result == 3
    assert (await called(threads, join, parts=["a", "b"])).result == "a-b"


def shown(outcome: Outcome) -> ToolResult:
    """The event of an outcome, with ids and names as long as they may be."""
    return ToolResult(
        run_id="r" * 64,
        seq=10**6,
        call_id="c" * 256,
        tool="t" * 256,
        result=outcome.result,
        is_error=outcome.is_error,
        truncated=outcome.truncated,
        duration_ms=outcome.duration_ms,
    )


async def call_ids_of(server: LiveServer) -> list[str]:
    """The ids that clients know the session's calls by."""
    session = json.loads((await request(server, "GET", "/chat/sessions/s")).body)
    return [part["call_id"] for each in session["messages"] for part in each["parts"] if part["type"] == "tool_call"]
