"""A model that says what a test wrote, tools for it, a run for its agent, and what the run is told as a list."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import anyio
from anyio.lowlevel import checkpoint
from msgspec import Struct
from msgspec.structs import replace

from chatserver.agent import ToolAgent
from chatserver.answer import Answer
from chatserver.call_checks import Toolbox
from chatserver.calls import Calls
from chatserver.context import RunContext
from chatserver.dialogue import TurnOrigin, UserMessage
from chatserver.errors import UpstreamError
from chatserver.events import Done, FinishReason, Terminal, Token, ToolCall, ToolResult, Usage, decode
from chatserver.log.memory import MemoryLog
from chatserver.meter import Meter
from chatserver.providers import Delta, Finish, ModelRequest, OnDelta, ToolCallRequest
from chatserver.providers.chat_completions.requests import messages_of
from chatserver.resources import RunResource
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.life import Life
from chatserver.runs.run import Run
from chatserver.sessions import Sessions
from chatserver.steps import Emit, Settled, Step
from chatserver.telemetry import UNOBSERVED_RUN
from chatserver.tools.context import ToolContext
from chatserver.tools.execution import ToolThreads
from chatserver.tools.functions import tool
from chatserver.waiting import Resolution
from tests.logs import kept, watched_log

WAIT_SECONDS = 15.0
ASKED = ModelRequest(model="m", messages=[UserMessage("Hi")], temperature=0.5, max_output_tokens=9)
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
                        on_delta(Token(content=said))
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


class Scripted(Struct, frozen=True):
    """A ``ToolAgent`` with tools of its own, whatever its run has."""

    provider: ScriptedModel
    toolbox: Toolbox
    turns_limit: int

    async def answer(self, request: ModelRequest, context: RunContext) -> FinishReason:
        told = ToolContext(run_id=context.run_id)
        hold = Unanswered(context.emit)
        calls = Calls(self.toolbox, context.emit, context.settled, context.observer, told, hold)
        return await ToolAgent(self.provider, self.turns_limit).answer(request, replace(context, calls=calls))


def agent(
    model: ScriptedModel, *functions: Callable[..., Any], turns_limit: int = 10, calls_limit: int = 100
) -> Scripted:
    return Scripted(model, toolbox(*functions, calls_limit=calls_limit), turns_limit)


class Unanswered(Struct, frozen=True):
    """A ``Hold`` for calls of which none waits."""

    emit: Emit

    async def ask(self, calls: Sequence[ToolCall], waiting: Sequence[str], asker: str | None = None) -> None:
        assert not waiting, f"{waiting} wait"
        for call in calls:
            self.emit(call)

    async def answer(self, call_id: str, is_gone: bool = False) -> Resolution:
        raise AssertionError(f"{call_id} waits")

    async def withdraw(self, call_id: str) -> bool:
        return False


def toolbox(*functions: Callable[..., Any], calls_limit: int = 100) -> Toolbox:
    tools = [tool(each) for each in functions or (add, shout, hang)]
    return Toolbox({each.name: each for each in tools}, ToolThreads(WAIT_SECONDS, 1000), calls_limit)


def context_of(emit: Emit, meter: Meter | None = None, settled: Settled = checkpoint) -> RunContext:
    """The context of a run that tells what it is told to ``emit``."""
    return RunContext(
        user="ann",
        session_id="s",
        run_id="run",
        meter=meter or Meter(),
        emit=emit,
        settled=settled,
        calls=Calls(toolbox(), emit, settled, UNOBSERVED_RUN, ToolContext(), Unanswered(emit)),
        told=tuple,
    )


RESOURCE = RunResource(
    run_id="run", session_id="s", message_id="m", status="running", last_seq=0, usage=None, created_at="2026"
)


class Store:
    """In place of ``Sessions``: keeps what it is given, but for what it is told to refuse."""

    def __init__(self, refusals: Mapping[str, Exception] | None = None) -> None:
        self.answers: list[dict[str, Answer]] = []
        self.ends: list[Terminal] = []
        self.refusals = dict(refusals or {})
        self.is_asked = anyio.Event()

    async def checkpoint(self, answers: Mapping[str, Answer]) -> None:
        for run_id in answers:
            if run_id in self.refusals:
                raise self.refusals[run_id]
        self.answers.append(dict(answers))
        self.is_asked.set()

    async def finish(self, run_id: str, ending: Terminal, **_: Any) -> None:
        if run_id in self.refusals:
            raise self.refusals[run_id]
        self.ends.append(ending)


def life_of(
    meter: Meter | None = None,
    kept: Store | None = None,
    grace_seconds: float | None = None,
    is_settled: bool = True,
) -> Life:
    """A run in its life, stored nowhere, as if it were on disk where ``is_settled``."""
    sessions = cast(Sessions, kept or Store())
    run = Run(RESOURCE, watched_log(), meter or Meter(), grace_seconds, 0.0)
    life = Life("ann", run, sessions, Checkpoints(sessions), toolbox())
    life.hold = lambda life: Unanswered(life.say)
    if is_settled:
        life.settle()
    return life


async def steps_of(made: Scripted, meter: Meter | None = None, request: ModelRequest = ASKED) -> list[Single]:
    """All that a run is told by its agent, durations aside, and why the answer has ended.

    Raises:
        AssertionError: it has failed.
    """
    kept = Store()
    life = life_of(meter, kept)
    with anyio.fail_after(WAIT_SECONDS):
        await life.live(made.answer, asking(request))
    (ending,) = kept.ends
    assert isinstance(ending, Done), ending
    return [*told(life), Finished(ending.finish_reason)]


def asking(request: ModelRequest = ASKED) -> Callable[[RunContext], Any]:
    async def ask(_: RunContext) -> ModelRequest:
        return request

    return ask


def told(life: Life) -> list[Step]:
    """What a run was told so far, as it was told."""
    log = life.log
    assert isinstance(log, MemoryLog)
    events = [decode(each.data) for each in kept(log)]
    return [still(replace(each, run_id="", seq=0)) for each in events if isinstance(each, Step)]


def sent(request: ModelRequest) -> list[dict[str, Any]]:
    """What a model is told, as Chat Completions has it."""
    return messages_of(request.messages)


def shown(emit: Emit) -> Emit:
    """Is told what readers are: of what is told for the next request alone, the request itself is looked at."""
    return lambda step: None if isinstance(step, TurnOrigin) else emit(step)


def still(step: Step) -> Step:
    return replace(step, duration_ms=0) if isinstance(step, ToolResult) else step


def called(call_id: str, name: str, **args: Any) -> ToolCall:
    return ToolCall(call_id=call_id, tool=name, args=args)


def gave(call_id: str, name: str, result: Any) -> ToolResult:
    return ToolResult(call_id=call_id, tool=name, result=result, is_error=False, truncated=False, duration_ms=0)


def results_of(steps: Sequence[Single]) -> list[ToolResult]:
    return [step for step in steps if isinstance(step, ToolResult)]
