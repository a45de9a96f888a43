"""What the model of a run is asked: the dialogue of its session, and where the run has waited, what it has said."""

from msgspec.structs import replace

from chatserver.commands import ChatRequest
from chatserver.context import RunContext
from chatserver.dialogue import BYTES_PER_TOKEN, PastMessage, dialogue, told_answer
from chatserver.providers import ModelRequest
from chatserver.runs.life import Life
from chatserver.sessions import Parked, Sessions
from chatserver.settings import Settings


def context_bytes(settings: Settings) -> int:
    """How many bytes of a session go upstream at most."""
    return BYTES_PER_TOKEN * settings.max_context_tokens


class Asking:
    """Builds the requests to models."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions

    async def first(self, past: list[PastMessage], life: Life, context: RunContext) -> ModelRequest:
        """The request of a run that begins. ``past`` is emptied: the task of the run keeps it."""
        messages = past.copy()
        past.clear()
        return self._request(life.request, messages, life)

    async def again(self, parked: Parked, life: Life, context: RunContext) -> ModelRequest:
        """The request of a run that has waited, when its calls are completed: it ends with their outputs."""
        await context.calls.resume(life.run.said(), parked.wait.calls, parked.answers)
        messages = await self._sessions.context(parked.user_message_id, context_bytes(self._settings))
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
