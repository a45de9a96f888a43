"""What an agent is handed beside the dialogue."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from chatserver.context import RunContext
from chatserver.dialogue import Dialogue, ToolSpecification
from chatserver.errors import ToolError
from chatserver.events import Reasoning, Token
from chatserver.function_agent.hop import Hop
from chatserver.function_agent.replay import Replay
from chatserver.function_agent.work import Work
from chatserver.function_agent.yielded import TurnEnd
from chatserver.providers import Delta, Finish, ModelRequest, Provider


class AgentContext:
    """One run, as its agent sees it. All methods are for the agent's own event loop.

    Cancelling the run cancels what is awaited here.
    """

    def __init__(self, work: Work, request: ModelRequest, run: RunContext, replay: Replay, provider: Provider) -> None:
        self._work, self._request, self._run, self._replay, self._provider = work, request, run, replay, provider

    @property
    def user(self) -> str:
        """Whose run it is; `local` where the server has no users."""
        return self._run.user

    @property
    def session_id(self) -> str:
        """The dialogue that the run belongs to."""
        return self._run.session_id

    @property
    def run_id(self) -> str:
        """The run; the same after a restart of the server."""
        return self._run.run_id

    @property
    def is_resumed(self) -> bool:
        """Whether the run has waited for somebody, and this is not the first call of its agent.

        The agent gets the same dialogue as before, and may say and call all of it again: text is not told again as long
        as it is what was told. Other text before a call that was made before is dropped, since readers have what was
        said there. Text that differs behind the last such call is new. What differs where no such call follows is told
        when the agent makes another call, or ends.
        """
        return self._run.is_resumed

    @property
    def model(self) -> str:
        """The model that the request names, or else the default one."""
        return self._request.model

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The form that the request wants the answer in, as the request has it; None: any text.

        The text behind the last call of a tool must have this form, else the run ends with `error`.
        """
        wanted = self._request.response_format
        return None if wanted is None else to_builtins(wanted)

    @property
    def tools(self) -> Sequence[ToolSpecification]:
        """The tools that ``call`` can call: name, description and JSON Schema of the arguments."""
        return self._run.calls.specifications()

    async def call(self, name: str, args: dict[str, Any]) -> Any:
        """Call a tool of the server; the result, as JSON has it. The run tells of the call and of its result.

        A call that needs an approval, or that the client makes, waits for that. If the server is restarted meanwhile,
        the agent is called anew: then a call with a tool and arguments of before gives the recorded result.

        Raises:
            ToolError: the tool has failed, there is none of that name, or no more calls may be made.
            TypeError, ValueError: JSON has no form for the arguments.
        """
        result = await self._work.ask(self._replay.call(name, args))
        if result.is_error:
            raise ToolError(name, result.result)
        return result.result

    async def complete(self, dialogue: Dialogue) -> AsyncIterator[str | Reasoning]:
        """Ask the model that the request names, without tools: its text as it comes, and its reasoning.

        What is yielded here is not told to anybody unless the agent yields it too.

        Raises:
            UpstreamError: the model has failed. An agent that does not catch this ends as the built-in one.
        """
        arrived: asyncio.Queue[Delta | None] = asyncio.Queue()
        hop: Hop[Delta | None] = Hop(asyncio.get_running_loop(), arrived.put_nowait)
        turn = asyncio.ensure_future(self._work.ask(self._turn(dialogue, hop)))
        try:
            while (delta := await arrived.get()) is not None:
                match delta:
                    case Token():
                        yield delta.content
                    case Reasoning():
                        yield delta
            self._work.tell(TurnEnd(await turn))
        finally:
            turn.cancel()

    async def _turn(self, dialogue: Dialogue, hop: Hop[Delta | None]) -> Finish:
        """In the server's loop: one turn of the model."""
        request = replace(self._request, messages=dialogue, tools=())
        try:
            self._run.meter.begin_turn(request)
            return await self._provider.stream(request, hop.send)
        finally:
            hop.send(None)
