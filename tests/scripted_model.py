"""A model that says what a test wrote, tools for it, and the agent's steps as lists."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import chain, repeat
from typing import Any, TypeAlias

import anyio
from msgspec.structs import replace

from chatserver.agent import Agent, Finished
from chatserver.errors import UpstreamError
from chatserver.events import Reasoning, Token, ToolCall, ToolResult, Usage
from chatserver.limits import Meter
from chatserver.providers import Delta, Finish, ModelRequest, TakeText, TextDelta, ToolCallRequest
from chatserver.tools import tool
from chatserver.tools.execution import ToolThreads

WAIT_SECONDS = 15.0
ASKED = ModelRequest(model="m", messages=[{"role": "user", "content": "Hi"}], temperature=0.5, max_output_tokens=9)
FAILURE = UpstreamError("upstream_truncated", "cut")

Said: TypeAlias = Delta | UpstreamError | anyio.Event | str
Turn: TypeAlias = Sequence[Said]
Single: TypeAlias = Token | Reasoning | ToolCall | ToolResult | Finished


def deaf(_: object) -> bool:
    """Takes nothing at once."""
    return False


class ScriptedModel:
    """A ``Provider`` of ready turns: deltas, text that may be taken at once, gates that must open, and failures."""

    def __init__(self, *turns: Turn) -> None:
        self._turns = iter(turns)
        self.requests: list[ModelRequest] = []
        self.open = 0
        """Streams that were not left yet."""

    async def stream(self, request: ModelRequest, take: TakeText) -> AsyncGenerator[Delta, None]:
        self.requests.append(replace(request, messages=list(request.messages)))
        self.open += 1
        try:
            for said in next(self._turns):
                match said:
                    case str():
                        if not take(said):
                            yield TextDelta(said)
                    case anyio.Event():
                        await said.wait()
                    case UpstreamError():
                        raise said
                    case _:
                        yield said
        finally:
            self.open -= 1


def stop(input_tokens: int | None = None, output_tokens: int = 0) -> Finish:
    return Finish("stop", None if input_tokens is None else Usage(input_tokens, output_tokens))


def wants(*calls: tuple[str, str, str], usage: Usage | None = None) -> list[Said]:
    """The end of a turn that calls tools: id, name, arguments."""
    return [*(ToolCallRequest(*call) for call in calls), Finish("tool_calls", usage)]


async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def shout(text: str) -> str:
    """Shout."""
    return text.upper()


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


def agent(model: ScriptedModel, *functions: Callable[..., Any], turns_limit: int = 10, calls_limit: int = 100) -> Agent:
    tools = [tool(each) for each in functions or (add, shout, hang)]
    return Agent(model, {each.name: each for each in tools}, ToolThreads(WAIT_SECONDS, 1000), turns_limit, calls_limit)


async def steps_of(
    made: Agent, meter: Meter | None = None, request: ModelRequest = ASKED, takes: Iterable[bool] = ()
) -> list[Single]:
    """All steps, results one by one, durations aside; ``takes`` says which of the tokens that are offered are taken."""
    steps: list[Single] = []
    answers = chain(takes, repeat(False))

    def take(token: Token) -> bool:
        if is_taken := next(answers):
            steps.append(token)
        return is_taken

    with anyio.fail_after(WAIT_SECONDS):
        async with (
            anyio.create_task_group() as tasks,
            aclosing(made.answer(request, meter or Meter(), tasks, take)) as answer,
        ):
            async for step in answer:
                steps += map(still, step) if isinstance(step, tuple) else [step]
    return steps


def still(result: ToolResult) -> ToolResult:
    return replace(result, duration_ms=0)


def called(call_id: str, name: str, **args: Any) -> ToolCall:
    return ToolCall(call_id=call_id, tool=name, args=args)


def gave(call_id: str, name: str, result: Any) -> ToolResult:
    return ToolResult(call_id=call_id, tool=name, result=result, is_error=False, truncated=False, duration_ms=0)


def results_of(steps: Sequence[Single]) -> list[ToolResult]:
    return [step for step in steps if isinstance(step, ToolResult)]
