"""The agent: ask the model, stream what it says, call the tools it wants, ask again. A pure async generator."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream
from msgspec import Struct
from msgspec.structs import replace

from chatserver.commands import NAME_CHARS_LIMIT, NESTING_LIMIT, is_id, nesting, new_id
from chatserver.context import BYTES_PER_TOKEN, as_text, call_upstream, estimated_tokens
from chatserver.events import FinishReason, Reasoning, Token, ToolCall, ToolResult, Usage, to_json
from chatserver.providers import Finish, ModelRequest, Provider, ReasoningDelta, TextDelta, ToolCallRequest
from chatserver.tools import Tool
from chatserver.tools.execution import Outcome, ToolThreads

ARGUMENTS_BYTES_LIMIT = 32 * 1024
"""A call's arguments must fit into one event with room to spare."""

CALLS_PER_TURN_LIMIT = 32


class Finished(Struct, frozen=True):
    """The agent has nothing more to say."""

    reason: FinishReason


Step: TypeAlias = Token | Reasoning | ToolCall | ToolResult | Finished


class Meter:
    """The model tokens of a run, right at any moment: what the upstream told, and an estimate where it did not."""

    def __init__(self) -> None:
        self._told = Usage()
        self._asked: ModelRequest | None = None
        self._said_chars = 0

    def ask(self, request: ModelRequest) -> None:
        self._asked, self._said_chars = request, 0

    def say(self, text: str) -> None:
        self._said_chars += len(text)

    def told(self, usage: Usage | None) -> None:
        self._told, self._asked = self._told + (usage or self._estimate()), None

    def usage(self) -> Usage:
        return self._told + self._estimate()

    def _estimate(self) -> Usage:
        """The turn that is going on, or that ended without its usage."""
        if self._asked is None:
            return Usage()
        asked = estimated_tokens([*self._asked.messages, *self._asked.tools])
        return Usage(asked, -(-self._said_chars // BYTES_PER_TOKEN), estimated=True)


class Agent(Struct, frozen=True):
    """A model with tools: ``tasks`` runs the tools, ``turns_limit`` bounds how often the model is asked."""

    provider: Provider
    tools: Mapping[str, Tool]
    threads: ToolThreads
    turns_limit: int

    async def answer(self, request: ModelRequest, meter: Meter, tasks: TaskGroup) -> AsyncGenerator[Step, None]:
        """The steps of one answer, the last one ``Finished``.

        No cancel scope is open across a ``yield``: the tools run in ``tasks``, the caller's task group.

        Raises:
            UpstreamError: the model failed.
        """
        messages, call_ids = list(request.messages), set[str]()
        request = replace(request, messages=messages, tools=[each.specification() for each in self.tools.values()])
        for _ in range(self.turns_limit):
            wanted: list[ToolCallRequest] = []
            said: list[str] = []
            reason: FinishReason = "stop"
            meter.ask(request)
            async with self.provider.stream(request) as deltas:
                async for delta in deltas:
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
            calls = [_checked(each, self.tools, call_ids) for each in wanted]
            for call in calls:
                yield ToolCall(call_id=call.call_id, tool=call.name, args=call.args)
            results: dict[str, ToolResult] = {}
            send, receive = anyio.create_memory_object_stream[ToolResult](len(calls))
            with send, receive:
                for position, call in enumerate(calls):
                    tasks.start_soon(self._call, call, position, send)
                for _ in calls:
                    result = await receive.receive()
                    results[result.call_id] = result
                    yield result
            messages += _transcript("".join(said), calls, results)
        yield Finished("turn_limit")

    async def _call(self, call: "_Call", position: int, results: MemoryObjectSendStream[ToolResult]) -> None:
        problem = call.problem
        if position >= CALLS_PER_TURN_LIMIT:
            problem = f"at most {CALLS_PER_TURN_LIMIT} calls in one turn"
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
            elif nesting(encoded) > NESTING_LIMIT:
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
