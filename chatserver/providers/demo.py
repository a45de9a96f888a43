"""The built-in demo model: a script that speaks Chat Completions, so that a server without a key can show what it does.

The demo model is an upstream like any other, asked by a transport that does not leave this process.
"""

import re
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from chatserver.providers.demo_script import LONG_WORDS_LIMIT, PromptMessage, Script, script_for
from chatserver.providers.samples import sample

TOKEN_SECONDS = 0.02
"""Pace of the demo: 50 tokens a second, what a good hosted model gives."""

STALL_SECONDS = 3600.0

_WORDS = re.compile(r"\s*\S+|\s+$")


class Offer(Struct, frozen=True, gc=False):
    name: str


class ToolOffer(Struct, frozen=True, gc=False):
    function: Offer


class CompletionRequest(Struct, frozen=True):
    """What the demo reads of a Chat Completions request."""

    messages: list[PromptMessage] | None = None
    model: str = "demo"
    tools: list[ToolOffer] | None = None
    max_tokens: int | None = None
    response_format: dict[str, Any] | None = None


class Refusal(Struct, frozen=True):
    """An HTTP answer of the demo that is no stream."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = {}


def completion(request: CompletionRequest) -> Refusal | AsyncIterator[bytes]:
    """The demo's answer: a refusal, or the bytes of a stream."""
    if (text := sample(request.response_format)) is not None:
        return _stream(Script(text=text), request.model, request.max_tokens)
    script = script_for(request.messages or [], {each.function.name for each in request.tools or ()})
    return _refusal(script.fault) or _stream(script, request.model, request.max_tokens)


def _refusal(fault: str | None) -> Refusal | None:
    match fault:
        case "429":
            error = {"message": "demo: slow down", "type": "rate_limit", "code": "rate_limit_exceeded"}
            return Refusal(429, {"error": error}, {"Retry-After": "7"})
        case "quota":
            return Refusal(429, {"error": {"message": "demo: no quota", "code": "insufficient_quota"}})
        case "401":
            return Refusal(401, {"error": {"message": "demo: wrong key", "code": "invalid_api_key"}})
        case "context":
            return Refusal(400, {"error": {"message": "demo: too long", "code": "context_length_exceeded"}})
        case "500":
            return Refusal(500, {"error": {"message": "demo: out of order"}})
        case _:
            return None


async def _stream(script: Script, model: str, tokens_limit: int | None) -> AsyncIterator[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": word} for word in _words(script.reasoning)]
    words = _words(script.text)
    is_cut = tokens_limit is not None and len(words) > tokens_limit
    deltas += [{"content": word} for word in words[: tokens_limit if is_cut else None]]
    calls = () if is_cut else script.calls
    for index, (name, args) in enumerate(calls):
        deltas += _fragments(index, name, msgspec.json.encode(args).decode())
    for delta in deltas:
        yield _chunk(model, delta)
        await anyio.sleep(TOKEN_SECONDS)
    match script.fault:
        case "truncate":
            return
        case "garbage":
            yield b"data: {this is no JSON}\n\n"
            return
        case "stall":
            await anyio.sleep(STALL_SECONDS)
    yield _chunk(model, {}, "length" if is_cut else "tool_calls" if calls else "stop")
    usage = {"prompt_tokens": 12, "completion_tokens": len(deltas) - 1, "total_tokens": 11 + len(deltas)}
    yield _event({"object": "chat.completion.chunk", "model": model, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _words(text: str) -> list[str]:
    return [word[0] for word in islice(_WORDS.finditer(text), LONG_WORDS_LIMIT)]


def _fragments(index: int, name: str, arguments: str) -> Iterator[dict[str, Any]]:
    """A tool call as models send it: the name first, then the arguments bit by bit."""
    function: dict[str, Any] = {"name": name, "arguments": ""}
    yield {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}
    for start in range(0, len(arguments), 8):
        yield {"tool_calls": [{"index": index, "function": {"arguments": arguments[start : start + 8]}}]}


def _chunk(model: str, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _event({"id": "demo", "object": "chat.completion.chunk", "model": model, "choices": [choice]})


def _event(document: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(document)
