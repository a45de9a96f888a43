"""A model that says what a test wrote, tools for it, a run for its agent, and what the run is told as a list."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import anyio
from msgspec import Struct
from msgspec.structs import replace

from chatserver.agent import Step, ToolAgent
from chatserver.errors import UpstreamError
from chatserver.events import Done, FinishReason, ToolCall, ToolResult, Usage, decode
from chatserver.limits import Meter
from chatserver.log.memory import MemoryLog
from chatserver.providers import Delta, Finish, ModelRequest, OnDelta, TextDelta, ToolCallRequest
from chatserver.records import RunRecord
from chatserver.runs.run import Run
from chatserver.tools import tool
from chatserver.tools.execution import ToolThreads

WAIT_SECONDS = 15.0
ASKED = ModelRequest(model="m", messages=[{"role": "user", "content": "Hi"}], temperature=0.5, max_output_tokens=9)
FAILURE = UpstreamError("upstream_truncated", "cut")


class Finished(Struct, frozen=True):
    """The end of an answer."""

    reason: FinishReason


Said: TypeAlias = Delta | Finish | UpstreamError | anyio.Event | str
Turn: TypeAlias = Sequence[Said]
Single: TypeAlias = Step | Finished


class ScriptedModel:
    """A ``Provider`` of ready turns: deltas, gates that must open, failures and ends."""

    def __init__(self, *turns: Turn) -> None:
        self._turns = iter(turns)
        self.requests: list[ModelRequest] = []
        self.open = 0
        """Streams that were not left yet."""

    async def stream(self, request: ModelRequest, on_delta: OnDelta) -> Finish:
        self.requests.append(request)
        self.open += 1
        try:
            for said in next(self._turns):
                match said:
                    case str():
                        on_delta(TextDelta(said))
                    case anyio.Event():
                        await said.wait()
                    case UpstreamError():
                        raise said
                    case Finish():
                        return said
                    case _:
                        on_delta(said)
            raise AssertionError("a turn ends with its finish")
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


def agent(
    model: ScriptedModel, *functions: Callable[..., Any], turns_limit: int = 10, calls_limit: int = 100
) -> ToolAgent:
    tools = [tool(each) for each in functions or (add, shout, hang)]
    threads = ToolThreads(WAIT_SECONDS, 1000)
    return ToolAgent(model, {each.name: each for each in tools}, threads, turns_limit, calls_limit)


def run_of(
    meter: Meter | None = None,
    grace_seconds: float | None = None,
    run_id: str = "run",
    on_result: Callable[[str], None] = lambda _: None,
) -> Run:
    record = RunRecord(
        run_id=run_id, session_id="s", message_id="m", status="running", last_seq=0, usage=None, created_at="2026"
    )
    return Run("ann", record, MemoryLog(run_id), meter or Meter(), grace_seconds, on_result)


async def steps_of(made: ToolAgent, meter: Meter | None = None, request: ModelRequest = ASKED) -> list[Single]:
    """All that a run is told by its agent, durations aside, and why the answer has ended.

    Raises:
        AssertionError: it has failed.
    """
    run = run_of(meter)
    with anyio.fail_after(WAIT_SECONDS):
        ending = await run.answer(made.answer, asking(request))
    assert isinstance(ending, Done), ending
    return [*await told(run), Finished(ending.finish_reason)]


def asking(request: ModelRequest = ASKED) -> Callable[[], Any]:
    async def ask() -> ModelRequest:
        return request

    return ask


async def told(run: Run) -> list[Single]:
    """What a run was told so far, as it was told."""
    return [still(replace(decode(each.data), run_id="", seq=0)) for each in await run.log.records()]  # type: ignore[arg-type]


def still(step: Step) -> Step:
    return replace(step, duration_ms=0) if isinstance(step, ToolResult) else step


def called(call_id: str, name: str, **args: Any) -> ToolCall:
    return ToolCall(call_id=call_id, tool=name, args=args)


def gave(call_id: str, name: str, result: Any) -> ToolResult:
    return ToolResult(call_id=call_id, tool=name, result=result, is_error=False, truncated=False, duration_ms=0)


def results_of(steps: Sequence[Single]) -> list[ToolResult]:
    return [step for step in steps if isinstance(step, ToolResult)]
