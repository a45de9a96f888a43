"""The agent: ask the model, stream what it says, call the tools it wants, ask again. An async generator of steps."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeAlias

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream
from msgspec import Struct
from msgspec.structs import replace

from chatserver.commands import NAME_CHARS_LIMIT, is_id, new_id
from chatserver.dialogue import as_text, call_upstream
from chatserver.errors import UpstreamError
from chatserver.events import FinishReason, Reasoning, Token, ToolCall, ToolResult, to_json
from chatserver.limits import Meter
from chatserver.providers import (
    WANTED_CALLS_LIMIT,
    Finish,
    ModelRequest,
    Provider,
    ReasoningDelta,
    TextDelta,
    ToolCallRequest,
)
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply
from chatserver.tools import Tool
from chatserver.tools.execution import Outcome, ToolThreads

ARGUMENTS_BYTES_LIMIT = 32 * 1024
"""A call's arguments must fit into one event with room to spare."""

CALLS_PER_TURN_LIMIT = 32
"""Calls that are made of those that a model wants in one turn: the others are refused, and it is told so."""


class Finished(Struct, frozen=True):
    """The agent has nothing more to say."""

    reason: FinishReason


Step: TypeAlias = Token | Reasoning | ToolCall | tuple[ToolResult, ...] | Finished
"""What is done next. Results are one step where they came together: storing them takes as long as storing one."""

TakeToken: TypeAlias = Callable[[Token], bool]
"""Take a token at once; False: not now, and nothing was done."""


class Agent(Struct, frozen=True):
    """A model with tools; the limits bound how often, in one answer, the model is asked and a tool is called."""

    provider: Provider
    tools: Mapping[str, Tool]
    threads: ToolThreads
    turns_limit: int
    calls_limit: int

    async def answer(
        self, request: ModelRequest, meter: Meter, tasks: TaskGroup, take: TakeToken
    ) -> AsyncGenerator[Step, None]:
        """The steps of one answer, the last one ``Finished``.

        A token that comes while the next step is waited for is given to ``take`` first; what it takes is no step.
        The tokens that the meter allows are never passed by more than one delta, and the text that it allows never is:
        then the answer ends as too long.
        No cancel scope is open across a ``yield``: the tools run in ``tasks``, the caller's task group.

        Raises:
            UpstreamError: the model failed, or wants too many tools at once.
        """
        messages, call_ids = list(request.messages), set[str]()
        request = replace(request, messages=messages, tools=[each.specification() for each in self.tools.values()])
        for _ in range(self.turns_limit):
            if meter.is_spent():
                yield Finished("length")
                return
            wanted: list[ToolCallRequest] = []
            said: list[str] = []
            reason: FinishReason = "stop"
            meter.ask(request)
            turn = self.provider.stream(request, partial(_take_text, said, meter, take))
            async with aclosing(turn) as deltas:
                async for delta in deltas:
                    if meter.is_spent() and not isinstance(delta, Finish):
                        yield Finished("length")
                        return
                    match delta:
                        case TextDelta(text) | ReasoningDelta(text):
                            if fitting := meter.fitting(text):
                                meter.say(fitting)
                                yield _text_step(delta, fitting, said)
                            if len(fitting) < len(text):
                                yield Finished("length")
                                return
                        case ToolCallRequest():
                            meter.call(delta.arguments)
                            wanted.append(_one_of(delta, len(wanted)))
                        case Finish():
                            meter.told(delta.usage)
                            reason = "stop" if delta.reason == "tool_calls" else delta.reason
            if not wanted:
                yield Finished(reason)
                return
            made = len(call_ids)
            calls = [_checked(each, self.tools, call_ids) for each in wanted]
            for call in calls:
                yield ToolCall(call_id=call.call_id, tool=call.name, args=call.args)
            results: dict[str, ToolResult] = {}
            async with aclosing(self._results(calls, made, tasks)) as batches:
                async for batch in batches:
                    results |= {each.call_id: each for each in batch}
                    yield batch
            messages += _transcript("".join(said), calls, results)
        yield Finished("turn_limit")

    async def _results(
        self, calls: Sequence["_Call"], made: int, tasks: TaskGroup
    ) -> AsyncGenerator[tuple[ToolResult, ...], None]:
        """The results of a turn's calls as they come; so many were ``made`` in the answer before."""
        send, receive = anyio.create_memory_object_stream[ToolResult](len(calls))
        with send, receive:
            for position, call in enumerate(calls):
                tasks.start_soon(self._call, call, self._refusal(position, made + position), send)
            left = len(calls)
            while left:
                first = await receive.receive()
                others = range(receive.statistics().current_buffer_used)
                batch = (first, *(receive.receive_nowait() for _ in others))
                left -= len(batch)
                yield batch

    def _refusal(self, in_turn: int, in_answer: int) -> str | None:
        """Why a call is not made that has so many before it."""
        if in_turn >= CALLS_PER_TURN_LIMIT:
            return f"at most {CALLS_PER_TURN_LIMIT} calls in one turn"
        return f"at most {self.calls_limit} calls in one answer" if in_answer >= self.calls_limit else None

    async def _call(self, call: "_Call", refusal: str | None, results: MemoryObjectSendStream[ToolResult]) -> None:
        problem = refusal or call.problem
        if problem is None:
            outcome = await self.threads.call(self.tools[call.name], call.args)
        else:
            outcome = Outcome(problem, is_error=True, truncated=False, duration_ms=0)
        result = ToolResult(
            call_id=call.call_id,
            tool=call.name,
            result=outcome.result,
            is_error=outcome.is_error,
            truncated=outcome.truncated,
            duration_ms=outcome.duration_ms,
        )
        with suppress(anyio.ClosedResourceError):  # The answer was left; nobody asks any more.
            results.send_nowait(result)


def _one_of(wanted: ToolCallRequest, before: int) -> ToolCallRequest:
    if before == WANTED_CALLS_LIMIT:
        raise UpstreamError("llm_error", f"the model wants over {WANTED_CALLS_LIMIT} tool calls at once")
    return wanted


def _text_step(delta: TextDelta | ReasoningDelta, text: str, said: list[str]) -> Token | Reasoning:
    if isinstance(delta, ReasoningDelta):
        return Reasoning(content=text)
    said.append(text)
    return Token(content=text)


def _take_text(said: list[str], meter: Meter, take: TakeToken, text: str) -> bool:
    """As the agent's loop does with text, if nothing is in the way."""
    if meter.is_spent() or meter.fitting(text) is not text or not take(Token(content=text)):
        return False
    meter.say(text)
    said.append(text)
    return True


class _Call(Struct, frozen=True):
    """A wanted call as it is shown and made; ``problem`` says why it cannot be."""

    call_id: str
    name: str
    args: dict[str, Any]
    problem: str | None = None


def _checked(wanted: ToolCallRequest, tools: Mapping[str, Tool], call_ids: set[str]) -> _Call:
    """The call under an id that is one, and its own in the run: some servers count from 0 in every turn."""
    call_id = wanted.call_id
    if call_id in call_ids or not is_id(call_id):
        call_id = f"call_{new_id()}"
    call_ids.add(call_id)
    problem = None
    if wanted.name not in tools:
        problem = "there is no such tool"
    elif len(wanted.arguments) > ARGUMENTS_BYTES_LIMIT:
        problem = f"the arguments are over {ARGUMENTS_BYTES_LIMIT} bytes"
    else:
        try:
            args = _arguments(wanted.arguments)
            encoded = to_json(args)
            if len(encoded) > ARGUMENTS_BYTES_LIMIT:  # Not as they came: 1e15 grows.
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


def _transcript(said: str, calls: list[_Call], results: Mapping[str, ToolResult]) -> list[dict[str, Any]]:
    """A turn with its tool calls, as the next turn is told of it."""
    made = [call_upstream(call.call_id, call.name, call.args) for call in calls]
    told = [
        {"role": "tool", "tool_call_id": call.call_id, "content": as_text(results[call.call_id].result)}
        for call in calls
    ]
    return [{"role": "assistant", "content": said or None, "tool_calls": made}, *told]
