"""Questions: what the tools of a run ask its user. Each is a call of the client, which no model has made."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec

from chatserver.dialogue import QUESTION
from chatserver.errors import BadRequest
from chatserver.events import ToolCall, ToolResult, to_json
from chatserver.json_schema import mistake_in, mistake_in_schema
from chatserver.tools.arguments import check_size
from chatserver.tools.context import CANCELLED, Ask, Question, Reply
from chatserver.tools.execution import TimeLimit
from chatserver.tools.results import ToolFailed
from chatserver.waiting import Resolution, Resulted

PLAIN_TYPES = frozenset({"string", "number", "integer", "boolean", "null"})

Plain: TypeAlias = str | int | float | bool | None

Complete: TypeAlias = Callable[[ToolCall, str], Awaitable[ToolResult]]
"""Tells the run a question, waits for the answer, and tells that too, or that the question was withdrawn.

The id is that of the call whose tool asks.
"""


class Questions:
    """Puts questions of tools to the user of a run.

    ``begin`` gives a question its call id, or raises ``ToolFailed``: they are too many.
    """

    __slots__ = ("_begin", "_complete")

    def __init__(self, complete: Complete, begin: Callable[[], str]) -> None:
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
        args = _args(question)
        await asyncio.to_thread(check_form, question.schema)  # It may take a second.
        call = ToolCall(call_id=self._begin(), tool=QUESTION, args=args, executor="client")
        with limit.stopped():
            result = await self._complete(call, asker)
        return CANCELLED if result.is_error else _reply(result.result)


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


def check_form(schema: Any) -> None:
    """Refuse a schema that is no form: a flat object, as in MCP, which any client can show.

    Raises:
        ToolFailed: in words for the author of the tool.
    """
    if mistake := mistake_in_schema(schema):
        raise ToolFailed(f"the form of a question is no JSON Schema: {mistake}")
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ToolFailed("the form of a question is the JSON Schema of an object")
    fields = schema.get("properties", {})
    for name, each in fields.items():
        if not _is_plain(each):
            raise ToolFailed(f"the field `{name}` of a question is no text, number, boolean, choice, or list of these")
    for name in schema.get("required", []):
        if name not in fields:
            raise ToolFailed(f"the form of a question requires `{name}`, and has no such field")


def _is_plain(schema: Any, in_list: bool = False) -> bool:
    """Whether it is the schema of a text, a number, a boolean, a choice of such, or a list of such."""
    if not isinstance(schema, dict):
        return False
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return all(_is_plain(each, in_list) for each in choices)
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return not any(isinstance(each, dict | list) for each in values)
    kinds = schema.get("type", [])
    if kinds == "array":
        return not in_list and _is_plain(schema.get("items"), in_list=True)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return bool(kinds) and PLAIN_TYPES.issuperset(kinds)


def check_reply(resolution: Resolution, question: dict[str, Any]) -> None:
    """Refuse what does not fit a question, which are the arguments of its call.

    Raises:
        BadRequest: it is no reply, or its content does not fit the form.
    """
    if not isinstance(resolution, Resulted) or resolution.is_error:
        return
    try:
        reply = _reply(resolution.result)
        msgspec.convert(reply.content, dict[str, Plain | list[Plain]])
    except msgspec.ValidationError as error:
        raise BadRequest(f"`result` is no reply to a question: {error}", "/result") from None
    if reply.action == "accept" and (mistake := mistake_in(question["schema"], reply.content)):
        raise BadRequest(f"`content` does not fit the question: {mistake}", "/result/content")


def _reply(answer: Any) -> Reply:
    """The answer as a reply; one of clients of MCP has a `content` of null where there is none.

    Raises:
        msgspec.ValidationError: it is no reply.
    """
    known = {key: each for key, each in answer.items() if each is not None} if isinstance(answer, dict) else answer
    return msgspec.convert(known, Reply)
