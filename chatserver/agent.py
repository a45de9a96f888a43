"""The agent: ask the model, emit what the model says, call the tools that the model wants, ask again."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import anyio
import msgspec
from anyio.lowlevel import checkpoint
from msgspec import Struct
from msgspec.structs import replace

from chatserver.answer import fold
from chatserver.commands import NAME_CHARS_LIMIT, is_id, new_id
from chatserver.dialogue import NO_ORIGIN, Leavings, TurnOrigin, told_turn
from chatserver.errors import UpstreamError
from chatserver.events import FinishReason, Reasoning, Token, ToolCall, ToolResult, to_json
from chatserver.meter import Meter
from chatserver.providers import (
    WANTED_CALLS_LIMIT,
    Delta,
    ModelRequest,
    Provider,
    ToolCallRequest,
)
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply
from chatserver.telemetry import RunObserver
from chatserver.tools import Tool
from chatserver.tools.execution import Outcome, ToolThreads

ARGUMENTS_BYTES_LIMIT = 32 * 1024
"""A call's arguments must fit into one event with room to spare."""

CALLS_PER_TURN_LIMIT = 32
"""How many of the calls that a model wants in one turn are made. The model is told that the others were refused."""


OWN_ID_CHARS_LIMIT = 1024
"""A longer call id of a provider is not kept: no provider is known that would miss it."""


Step: TypeAlias = Token | Reasoning | TurnOrigin | ToolCall | ToolResult
"""What an agent emits. A ``TurnOrigin`` reaches no reader. The agent emits it before the calls of its turn, so that a
checkpoint with the calls has the origin too. A turn without calls and leavings needs none.
"""
Emit: TypeAlias = Callable[[Step], None]
"""Hands a step to the run. Raises when the run takes no more steps; the agent need not catch that."""


Settled: TypeAlias = Callable[[], Awaitable[None]]
"""Waits until the run is on disk. An agent awaits this before it changes the world: the disk may refuse the run."""

Agent: TypeAlias = Callable[[ModelRequest, Meter, Emit, Settled], Awaitable[FinishReason]]
"""Answers a request: emits each step as it happens, and returns why the answer ends.

Cancelling the call ends all that the agent does. ``emit`` meters texts; the agent meters requests and tool calls.

Raises:
    UpstreamError: the model has failed.
    Spent: the meter allows no more.
"""


def generated(steps: Callable[[ModelRequest], AsyncGenerator[Step, None]]) -> Agent:
    """An agent made of an async generator of steps; the answer is complete when the generator ends."""

    async def answer(request: ModelRequest, meter: Meter, emit: Emit, settled: Settled) -> FinishReason:
        await settled()
        meter.begin_turn(request)
        async with aclosing(steps(request)) as theirs:
            async for step in theirs:
                emit(step)
        return "stop"

    return answer


class ToolAgent(Struct, frozen=True):
    """A model with tools. ``turns_limit`` and ``calls_limit`` bound the turns and the tool calls of one answer."""

    provider: Provider
    tools: Mapping[str, Tool]
    threads: ToolThreads
    turns_limit: int
    calls_limit: int

    async def answer(
        self, request: ModelRequest, meter: Meter, emit: Emit, settled: Settled = checkpoint
    ) -> FinishReason:
        """The ``Agent``. A model that wants too many tools at once has failed."""
        request = replace(request, tools=[each.specification() for each in self.tools.values()])
        call_ids: dict[str, None] = {}  # No set: an empty one takes 0.2 KB of each run.
        for _ in range(self.turns_limit):
            meter.begin_turn(request)
            turn = _Turn(meter, emit)
            finish = await self.provider.stream(request, turn.on_delta)
            meter.end_turn(finish.usage)
            made = len(call_ids)
            calls = [_checked(each, self.tools, call_ids) for each in turn.wanted]
            origin = _origin(turn.wanted, calls, finish.leavings)
            if origin != NO_ORIGIN:
                emit(origin)
            if not calls:
                return "stop" if finish.reason == "tool_calls" else finish.reason
            await settled()
            called = [ToolCall(call_id=call.call_id, tool=call.name, args=call.args) for call in calls]
            for event in called:
                emit(event)
            results = await self._results(calls, made, emit, request.observer)
            parts = fold([Token(content="".join(turn.said)), *called, *results]).parts
            request = replace(request, messages=[*request.messages, *told_turn(parts, origin)])
        return "turn_limit"

    async def _results(
        self, calls: Sequence["_Call"], made: int, emit: Emit, observer: RunObserver
    ) -> list[ToolResult]:
        """Make the calls of a turn at the same time, emit each result; ``made``: calls of the turns before."""
        results: list[ToolResult] = []

        async def complete(call: _Call, refusal: str | None) -> None:
            result = await self._call(call, refusal, observer)
            emit(result)
            results.append(result)

        async with anyio.create_task_group() as tasks:
            for position, call in enumerate(calls):
                tasks.start_soon(complete, call, self._refusal(position, made + position))
        return results

    def _refusal(self, in_turn: int, in_answer: int) -> str | None:
        """Why a call is refused that has so many calls before it, in its turn and in its answer; None: it is made."""
        if in_turn >= CALLS_PER_TURN_LIMIT:
            return f"at most {CALLS_PER_TURN_LIMIT} calls in one turn"
        return f"at most {self.calls_limit} calls in one answer" if in_answer >= self.calls_limit else None

    async def _call(self, call: "_Call", refusal: str | None, observer: RunObserver) -> ToolResult:
        problem = refusal or call.problem
        if problem is None:
            with observer.tool(call.name, call.call_id) as told:
                outcome = await self.threads.call(self.tools[call.name], call.args)
                told.returned(is_error=outcome.is_error)
        else:
            outcome = Outcome(problem, is_error=True, truncated=False, duration_ms=0)
        return ToolResult(
            call_id=call.call_id,
            tool=call.name,
            result=outcome.result,
            is_error=outcome.is_error,
            truncated=outcome.truncated,
            duration_ms=outcome.duration_ms,
        )


class _Turn:
    """One turn: emits what the model says as it comes, and keeps it for the next request."""

    __slots__ = ("_emit", "_meter", "said", "wanted")

    def __init__(self, meter: Meter, emit: Emit) -> None:
        self._meter, self._emit = meter, emit
        self.said: list[str] = []
        self.wanted: list[ToolCallRequest] = []

    def on_delta(self, delta: Delta) -> None:
        if isinstance(delta, ToolCallRequest):
            return self._want(delta)
        self._emit(delta)
        if isinstance(delta, Token):
            self.said.append(delta.content)

    def _want(self, call: ToolCallRequest) -> None:
        if len(self.wanted) == WANTED_CALLS_LIMIT:
            raise UpstreamError("llm_error", f"the model wants over {WANTED_CALLS_LIMIT} tool calls at once")
        self._meter.add_arguments(call.arguments)
        self.wanted.append(call)


class _Call(Struct, frozen=True):
    """A call that the model wants, as readers see it and as the tool gets it; ``problem``: why it is not made."""

    call_id: str
    name: str
    args: dict[str, Any]
    problem: str | None = None


def _checked(wanted: ToolCallRequest, tools: Mapping[str, Tool], call_ids: dict[str, None]) -> _Call:
    """The call, under an id that is valid and unique in the run: some servers count from 0 in every turn."""
    call_id = wanted.call_id
    if call_id in call_ids or not is_id(call_id):
        call_id = f"call_{new_id()}"
    call_ids[call_id] = None
    problem = None
    if wanted.name not in tools:
        problem = "there is no such tool"
    elif len(wanted.arguments) > ARGUMENTS_BYTES_LIMIT:
        problem = f"the arguments are over {ARGUMENTS_BYTES_LIMIT} bytes"
    else:
        try:
            args = _arguments(wanted.arguments)
            encoded = to_json(args)
            if len(encoded) > ARGUMENTS_BYTES_LIMIT:  # Numbers may grow when they are encoded again: 1e15.
                problem = f"the arguments are over {ARGUMENTS_BYTES_LIMIT} bytes"
            elif is_nested_too_deeply(encoded):
                problem = f"the arguments are nested over {NESTING_LIMIT} levels"
            else:
                return _Call(call_id, wanted.name, args)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            problem = "the arguments are no valid JSON object"
    return _Call(call_id, wanted.name[:NAME_CHARS_LIMIT], {}, problem)


def _arguments(text: str) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any]) if text.strip() else {}


def _origin(wanted: Sequence[ToolCallRequest], calls: Sequence[_Call], leavings: Leavings | None) -> TurnOrigin:
    """The turn's leavings, and the id that the provider gave to each call, where these ids tell the calls apart."""
    own_ids: dict[str, str] = {}
    for each, call in zip(wanted, calls, strict=True):
        is_id_upstream = each.call_id.isprintable() and 0 < len(each.call_id) <= OWN_ID_CHARS_LIMIT
        is_unique = each.call_id not in own_ids.values()
        own_ids[call.call_id] = each.call_id if is_id_upstream and is_unique else call.call_id
    return TurnOrigin(own_ids, leavings)
