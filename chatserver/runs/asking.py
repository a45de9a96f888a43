"""What the model of a run is asked: the dialogue of its session, and where the run has waited, what it has said."""

from functools import partial

from msgspec.structs import replace

from chatserver.commands import ChatRequest
from chatserver.context import RunContext
from chatserver.dialogue import BYTES_PER_TOKEN, PastMessage, dialogue, told_answer
from chatserver.providers import ModelRequest
from chatserver.runs.life import Life
from chatserver.sessions import Begun, Parked, Sessions
from chatserver.settings import Settings


class Asking:
    """Builds the requests to models."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions

    async def first(self, begun: Begun, life: Life, context: RunContext) -> ModelRequest:
        """The request of a run that begins."""
        request = life.request
        tokens_limit, messages = self._settings.max_context_tokens, list[PastMessage]()
        if begun.follows is not None:
            past = partial(self._sessions.context, begun.follows, BYTES_PER_TOKEN * tokens_limit)
            messages += await past()
            if messages and messages[-1].is_growing:  # It has ended in the very commit that this run waits for.
                await life.settled()
                messages = await past()
        if begun.message is not None:
            messages.append(begun.message)
        return self._request(request, messages, life)

    async def again(self, parked: Parked, life: Life, context: RunContext) -> ModelRequest:
        """The request of a run that has waited, when its calls are completed: it ends with their outputs."""
        await context.calls.resume(life.run.said(), parked.wait.calls, parked.answers)
        tokens_limit = self._settings.max_context_tokens
        messages = await self._sessions.context(parked.user_message_id, BYTES_PER_TOKEN * tokens_limit)
        request, said = self._request(life.request, messages, life), life.run.said()
        return replace(request, messages=[*request.messages, *told_answer(said.parts, said.transcript)])

    def _request(self, request: ChatRequest, messages: list[PastMessage], life: Life) -> ModelRequest:
        return ModelRequest(
            model=request.model or self._settings.model,
            messages=dialogue(messages, request.system, self._settings.max_context_tokens),
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
            response_format=request.response_format,
            run_id=life.run_id,
            observer=life.run.observer,
        )
