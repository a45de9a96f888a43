"""Turns of a provider in tests: asked, and read to their ends, whatever the API."""

from collections.abc import Iterable
from typing import TypeAlias, get_args

import anyio

from chatserver.dialogue import UserMessage
from chatserver.errors import UpstreamError
from chatserver.events import ErrorCode, Reasoning, Token
from chatserver.providers import Delta, Finish, ModelRequest, ToolCallRequest
from chatserver.providers.provider import OpenAIProvider

KEY = "sk-test-canary"
LEAK = "upstream-text-canary"
"""In every text that the fake upstream refuses with: none of it may come out."""

ASK = ModelRequest(model="test-model", messages=[UserMessage("Hi")])
Said: TypeAlias = Delta | Finish

IDLE_SECONDS = 4.0
"""How long a hasty provider waits. Pauses take so long there, by a clock that leaps, and no answer of this machine."""

PATIENCE_SECONDS = 50.0


async def ask(provider: OpenAIProvider, request: ModelRequest = ASK) -> list[Said]:
    """All deltas of a turn that succeeds, and its finish."""
    found: list[Said] = []
    with anyio.fail_after(PATIENCE_SECONDS):
        finish = await provider.stream(request, found.append)
    return [*found, finish]


async def fail(provider: OpenAIProvider, request: ModelRequest = ASK) -> tuple[list[Said], UpstreamError]:
    """The deltas of a turn that fails, and how it did."""
    found: list[Said] = []
    error = None
    with anyio.fail_after(PATIENCE_SECONDS):
        try:
            found.append(await provider.stream(request, found.append))
        except UpstreamError as failure:
            error = failure
    assert error is not None, f"the turn succeeded: {found}"
    assert error.code in get_args(ErrorCode)
    assert error.message
    for secret in (KEY, LEAK, "127.0.0.1", "localhost", "://", "httpx", "Traceback"):
        assert secret not in f"{error.message} {error} {error!r}"
    return found, error


def text_of(deltas: Iterable[Said]) -> str:
    return "".join(delta.content for delta in deltas if isinstance(delta, Token))


def thoughts_of(deltas: Iterable[Said]) -> str:
    return "".join(delta.content for delta in deltas if isinstance(delta, Reasoning))


def calls_of(deltas: Iterable[Said]) -> list[ToolCallRequest]:
    return [delta for delta in deltas if isinstance(delta, ToolCallRequest)]
