"""Questions: what the tools of a run ask its user. Each is a call of the client, which no model has made."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec

from chatserver.dialogue import QUESTION
from chatserver.events import ToolCall, ToolResult, to_json
from chatserver.steps import Emit
from chatserver.structured import mistake_in
from chatserver.tools.arguments import check_size
from chatserver.tools.context import CANCELLED, Ask, Question, Reply
from chatserver.tools.execution import TimeLimit
from chatserver.tools.results import ToolFailed

Complete: TypeAlias = Callable[[ToolCall, str], Awaitable[ToolResult]]
"""Waits for the answer to a question, and tells it to the run, or that the question was withdrawn.

The id is that of the call whose tool asks.
"""


class Questions:
    """Puts questions of tools to the user of a run.

    ``begin`` gives a question its call id, or raises ``ToolFailed``: they are too many.
    """

    __slots__ = ("_begin", "_complete", "_emit")

    def __init__(self, emit: Emit, complete: Complete, begin: Callable[[], str]) -> None:
        self._emit = emit
        self._complete = complete
        self._begin = begin

    @asynccontextmanager
    async def of(self, asker: str, limit: TimeLimit) -> AsyncIterator[Ask]:
        """While entered, the tool of a call may ask, from any thread. At the end, open questions are withdrawn."""
        loop, asking = asyncio.get_running_loop(), set[asyncio.Task[Reply]]()
        is_over = asyncio.Event()

        async def replied(question: Question) -> Reply:
            if is_over.is_set():
                return CANCELLED
            reply = asyncio.create_task(self._ask(question, asker, limit))
            asking.add(reply)
            reply.add_done_callback(asking.discard)
            try:
                return await asyncio.shield(reply)
            except asyncio.CancelledError:
                _withdraw(reply)
                if is_over.is_set():  # Whoever waits here is not cancelled, and may be a callback of a library.
                    return CANCELLED
                raise

        try:
            yield lambda question: asyncio.run_coroutine_threadsafe(replied(question), loop)
        finally:
            is_over.set()
            for reply in asking:
                _withdraw(reply)
            if asking:
                await asyncio.wait(asking)

    async def _ask(self, question: Question, asker: str, limit: TimeLimit) -> Reply:
        call = ToolCall(call_id=self._begin(), tool=QUESTION, args=_args(question), executor="client")
        self._emit(call)
        with limit.stopped():
            result = await self._complete(call, asker)
        if result.is_error:
            return CANCELLED
        return await asyncio.to_thread(_reply, result.result, question)  # A schema may take a second.


def _withdraw(reply: "asyncio.Task[Reply]") -> None:
    """Cancel it once: a withdrawal that has begun must come to its end."""
    if not reply.cancelling():
        reply.cancel()


def _args(question: Question) -> dict[str, Any]:
    """The question as JSON, however the tool has built it."""
    encoded = to_json(question)
    check_size(encoded, "the question is")
    args: dict[str, Any] = msgspec.json.decode(encoded)
    return args


def _reply(answer: Any, question: Question) -> Reply:
    try:
        reply = msgspec.convert(_without_null(answer), Reply)
    except msgspec.ValidationError as error:
        raise ToolFailed(f"the user's answer is no reply: {error}") from None
    if reply.action == "accept" and (mistake := mistake_in(question.schema, reply.content)):
        raise ToolFailed(f"the user's answer does not fit the question: {mistake}")
    return reply


def _without_null(answer: Any) -> Any:
    """The answer as clients of MCP write it, too: with `content` of null where there is none."""
    return {key: each for key, each in answer.items() if each is not None} if isinstance(answer, dict) else answer
