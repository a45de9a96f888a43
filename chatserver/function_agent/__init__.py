"""Agents that people bring: async generators, called for each answer in a thread beside the server's."""

from collections.abc import AsyncIterator, Callable
from inspect import iscoroutinefunction
from typing import Any, TypeAlias

from msgspec.structs import replace

from chatserver.answer import fold
from chatserver.context import RunContext
from chatserver.dialogue import Dialogue, UserMessage
from chatserver.errors import SettingsError
from chatserver.events import FinishReason, Usage
from chatserver.function_agent.agent_threads import AgentThreads
from chatserver.function_agent.context import AgentContext
from chatserver.function_agent.replay import Replay
from chatserver.function_agent.work import Work
from chatserver.function_agent.yielded import Said, TurnEnd, Yielded
from chatserver.parts import Parts, ToolCallPart, text_of
from chatserver.providers import ModelRequest, Provider
from chatserver.settings.references import load
from chatserver.structured import check_answer

__all__ = ["AgentContext", "AgentFunction", "FunctionAgent", "Yielded", "checked_agent", "load_agent", "name_of"]

AgentFunction: TypeAlias = Callable[[Dialogue, AgentContext], AsyncIterator[Yielded]]
"""Answers a dialogue, whose last item is the user's message: ``async def agent(dialogue, context)`` with ``yield``.

It yields text of the answer, drafts of events, and the ``Usage`` of models that it has asked by itself. When it ends,
the answer is complete; when it raises, or the answer has not the form that the request wants, the run ends with
`error`. All agents of a process share one event loop, beside the server's. A run that is cancelled raises
``CancelledError`` where the agent awaits something.
"""


class FunctionAgent:
    """An ``AgentFunction`` as the agent of runs."""

    def __init__(
        self, function: AgentFunction, provider: Provider, idle_seconds: float, result_bytes_limit: int
    ) -> None:
        """``idle_seconds``: an agent that says nothing and asks for nothing for so long has failed."""
        self._function, self._provider = function, provider
        self._result_bytes_limit = result_bytes_limit
        self._threads = AgentThreads(idle_seconds)

    async def answer(self, request: ModelRequest, context: RunContext) -> FinishReason:
        """The ``Agent``. The answer has ended when this ends, whatever the agent still does."""
        await context.settled()
        if context.is_resumed:
            request = replace(request, messages=_asked(request.messages))
        replay = Replay(context.emit, context.calls, context.told() if context.is_resumed else ())
        context.meter.begin_turn(request)
        reason: FinishReason = "stop"

        def take(said: Said) -> None:
            nonlocal reason
            match said:
                case Usage():
                    context.meter.end_turn(said)
                case TurnEnd(finish=finish):
                    context.meter.end_turn(finish.usage)
                    reason = "stop" if finish.reason == "tool_calls" else finish.reason
                case _:
                    replay.say(said)

        def steps(work: Work) -> AsyncIterator[Any]:
            return self._function(request.messages, AgentContext(work, request, context, replay, self._provider))

        await self._threads.done(Work(take, steps, self._result_bytes_limit))
        replay.end()
        if reason == "stop" and request.response_format is not None:
            await check_answer(request.response_format, _last_text(fold(context.told()).parts))
        return reason

    async def close(self) -> None:
        """End the threads, and the tasks that agents have left there."""
        await self._threads.close()


def _last_text(parts: Parts) -> str:
    """The text behind the last call: what stands before a call is talk."""
    places = [place for place, part in enumerate(parts) if isinstance(part, ToolCallPart)]
    return text_of(parts[places[-1] + 1 :] if places else parts)


def _asked(dialogue: Dialogue) -> Dialogue:
    """A dialogue without what was answered behind the last message of the user."""
    last = max(place for place, item in enumerate(dialogue) if isinstance(item, UserMessage))
    return dialogue[: last + 1]


def load_agent(reference: str | None) -> AgentFunction | None:
    """The agent that ``module:attribute`` names; None: none is named.

    Raises:
        SettingsError: there is no such attribute, or it can be no agent.
    """
    return None if reference is None else load("agent", reference, checked_agent)


def name_of(agent: AgentFunction) -> str:
    """What an agent is called, in the form of ``CHATSERVER_AGENT``."""
    named = agent if hasattr(agent, "__qualname__") else type(agent)
    return f"{named.__module__}:{named.__qualname__}"


def checked_agent(function: Any) -> AgentFunction:
    """What somebody names as an agent.

    Raises:
        SettingsError: it can be none.
    """
    if not callable(function) or iscoroutinefunction(function):
        raise SettingsError("an agent is an async generator: `async def agent(dialogue, context)` with `yield`")
    return function  # type: ignore[no-any-return]
