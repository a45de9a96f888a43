"""The agent: ask the model, emit what the model says, make the calls that the model wants, ask again."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from chatserver.answer import fold
from chatserver.context import RunContext
from chatserver.dialogue import told_turn
from chatserver.errors import UpstreamError
from chatserver.events import FinishReason, Reasoning, Token
from chatserver.providers import (
    WANTED_CALLS_LIMIT,
    Delta,
    ModelRequest,
    Provider,
    ToolCallFragment,
    ToolCallRequest,
)
from chatserver.structured import check_answer

Agent: TypeAlias = Callable[[ModelRequest, RunContext], Awaitable[FinishReason]]
"""Answers a request: emits each step as it happens, and returns why the answer ends.

Cancelling the call ends all that the agent does.

Raises:
    UpstreamError: the model has failed.
    Spent: the meter allows no more.
"""


class ToolAgent(Struct, frozen=True):
    """A model with the tools of its run. ``turns_limit`` bounds the turns of one answer."""

    provider: Provider
    turns_limit: int

    async def answer(self, request: ModelRequest, context: RunContext) -> FinishReason:
        """The ``Agent``. A model that wants too many tools at once has failed."""
        request = replace(request, tools=context.calls.specifications())
        for _ in range(context.turns, self.turns_limit):
            context.meter.begin_turn(request)
            turn = _Turn(context)
            finish = await self.provider.stream(request, turn.on_delta)
            context.meter.end_turn(finish.usage)
            made = await context.calls.make(turn.wanted, finish.leavings)
            if not turn.wanted:
                if finish.reason == "stop":
                    await check_answer(request.response_format, "".join(turn.said))
                return "stop" if finish.reason == "tool_calls" else finish.reason
            parts = fold([Token(content="".join(turn.said)), *made.steps]).parts
            request = replace(request, messages=[*request.messages, *told_turn(parts, made.origin)])
        return "turn_limit"


class _Turn:
    """One turn: emits what the model says as it comes, and keeps it for the next request."""

    __slots__ = ("_calls", "_emit", "_meter", "said", "wanted")

    def __init__(self, context: RunContext) -> None:
        self._meter, self._emit, self._calls = context.meter, context.emit, context.calls
        self.said: list[str] = []
        self.wanted: list[ToolCallRequest] = []

    def on_delta(self, delta: Delta) -> None:
        if isinstance(delta, Token):
            self._emit(delta)
            self.said.append(delta.content)
        elif isinstance(delta, Reasoning):
            self._emit(delta)
        elif isinstance(delta, ToolCallFragment):
            self._calls.show(delta)
        else:
            self._want(delta)

    def _want(self, call: ToolCallRequest) -> None:
        if len(self.wanted) == WANTED_CALLS_LIMIT:
            raise UpstreamError("llm_error", f"the model wants over {WANTED_CALLS_LIMIT} tool calls at once")
        self._meter.add_arguments(call.arguments)
        self.wanted.append(call)
