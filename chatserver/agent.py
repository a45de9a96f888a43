"""The agent: ask the model, stream what it says, call the tools it wants, ask again. An async generator of steps."""

from collections.abc import AsyncGenerator, Callable, Mapping
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
from chatserver.context import as_text, call_upstream
from chatserver.events import FinishReason, Reasoning, Token, ToolCall, ToolResult, to_json
from chatserver.limits import Meter
from chatserver.providers import Finish, ModelRequest, Provider, ReasoningDelta, TextDelta, ToolCallRequest
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply
from chatserver.tools import Tool
from chatserver.tools.execution import Outcome, ToolThreads

ARGUMENTS_BYTES_LIMIT = 32 * 1024
"""A call's arguments must fit into one event with room to spare."""

CALLS_PER_TURN_LIMIT = 32


class Finished(Struct, frozen=True):
    """The agent has nothing more to say."""

    reason: FinishReason


Step: TypeAlias = Token | Reasoning | ToolCall | ToolResult | Finished

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
        What the meter allows is never passed by more than one delta: then the answer ends as too long.
        No cancel scope is open across a ``yield``: the tools run in ``tasks``, the caller's task group.

        Raises:
            UpstreamError: the model failed.
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
                        case TextDelta(text):
                            meter.say(text)
                            said.append(text)
                            yield Token(content=text)
                        case ReasoningDelta(text):
                            meter.say(text)
                            yield Reasoning(content=text)
                        case ToolCallRequest():
                            meter.say(delta.arguments)
                            wanted.append(delta)
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
            send, receive = anyio.create_memory_object_stream[ToolResult](len(calls))
            with send, receive:
                for position, call in enumerate(calls):
                    tasks.start_soon(self._call, call, self._refusal(position, made + position), send)
                for _ in calls:
                    result = await receive.receive()
                    results[result.call_id] = result
                    yield result
            messages += _transcript("".join(said), calls, results)
        yield Finished("turn_limit")

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


def _take_text(said: list[str], meter: Meter, take: TakeToken, text: str) -> bool:
    """As the agent's loop does with text, if nothing is in the way."""
    if meter.is_spent() or not take(Token(content=text)):
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
