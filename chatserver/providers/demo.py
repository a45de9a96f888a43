"""The built-in demo model: a script that speaks Chat Completions, so that a server without a key can show what it does.

The demo model is an upstream like any other: the openai SDK asks it, by a transport that does not leave this process.
"""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from chatserver.providers.samples import sample

TOKEN_SECONDS = 0.02
"""Pace of the demo: 50 tokens a second, what a good hosted model gives."""

STALL_SECONDS = 3600.0
LONG_WORDS_LIMIT = 20_000
ASKED_CHARS_LIMIT = 1000
"""How much of the newest message the demo looks at."""

HELP = """I am the demo model that is built into chatserver: no key, no network, a script. \
This answer comes to you as numbered events over Server-Sent Events or WebSocket. \
Leave at any event and come back on either transport with `after` set to the last `seq` you saw: \
nothing is lost and nothing comes twice.

Try one of these:

- **What time is it in Tokyo?** I call the `clock` tool.
- **What is 17 * 23?** I call the `calculator` tool.
- **Think about rivers.** I reason before I answer.
- **Count to 500.** A long answer, for cutting and resuming.
- **Fail with 429.** Any of {faults}: each ends in the `error` event that a real model server would cause.

Set `OPENAI_API_KEY` or `OPENAI_BASE_URL` and the same server streams from OpenAI, vLLM, Ollama or llama.cpp."""

FAULTS = ("429", "quota", "401", "context", "500", "stall", "truncate", "garbage")

ZONES = {
    "tokyo": "Asia/Tokyo",
    "berlin": "Europe/Berlin",
    "london": "Europe/London",
    "paris": "Europe/Paris",
    "new york": "America/New_York",
    "san francisco": "America/Los_Angeles",
    "delhi": "Asia/Kolkata",
    "sydney": "Australia/Sydney",
}

# Linear patterns: possessive quantifiers never backtrack, and no match begins in the middle of a number.
_NUMBER = r"\(*+-?\d[\d.]*+\)*+"
_OPERATOR = r"(?:\s*+(?:\*\*|//|[+*%x×÷])\s*+|\s++[-/]\s++)"  # 2026-11-22 is a date, and 1/2 may be one too.
_BEGIN = r"(?:(?<!\()(?=\()|(?<![\d.])\.++(?=\d)|(?<![\d.(]))"
_SUM = re.compile(rf"{_BEGIN}(?P<sum>{_NUMBER}(?:{_OPERATOR}{_NUMBER})++)")
_FAULT = re.compile(rf"(?:^\W*(?:please )?fail\b|\bfail with\b)(?:.*?\b(?P<fault>{'|'.join(FAULTS)}))?", re.IGNORECASE)
_COUNT = re.compile(r"\bcount\b", re.IGNORECASE)
_DIGITS = re.compile(r"\d{1,6}")
_THINK = re.compile(r"\b(?:think|reason|ponder)\w*\b", re.IGNORECASE)
_TIME = re.compile(r"\b(?:time|clock|date|day)\b", re.IGNORECASE)
_WORDS = re.compile(r"\s*\S+|\s+$")


class PromptMessage(Struct, frozen=True, gc=False):
    """A message of a request, its content undecoded: only the content of the newest messages is read."""

    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b'""')

    @property
    def text(self) -> str:
        """The content; one of several parts is read as its JSON."""
        content = bytes(self.content)
        return msgspec.json.decode(content, type=str) if content[:1] == b'"' else content.decode()


class Function(Struct, frozen=True, gc=False):
    name: str


class ToolOffer(Struct, frozen=True, gc=False):
    function: Function


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


class Script(Struct, frozen=True):
    """What the demo says in one turn, and the fault it ends with."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    fault: str | None = None


def completion(request: CompletionRequest) -> Refusal | AsyncIterator[bytes]:
    """The demo's answer: a refusal, or the bytes of a stream."""
    if (text := sample(request.response_format)) is not None:
        return _stream(Script(text=text), request.model, request.max_tokens)
    script = _script(request.messages or [], {each.function.name for each in request.tools or ()})
    return _refusal(script.fault) or _stream(script, request.model, request.max_tokens)


def _script(messages: Sequence[PromptMessage], tools: set[str]) -> Script:
    """Decide what to say to the newest message."""
    since = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"), 0)
    asked = messages[since].text[:ASKED_CHARS_LIMIT] if messages else ""
    results = [each.text for each in messages[since:] if each.role == "tool"]
    if results:
        return Script(text=f"The tools answered: {', '.join(f'**{result}**' for result in results)}.")
    if fault := _FAULT.search(asked):
        kind = (fault["fault"] or "truncate").lower()
        return Script(text="I was told to fail, and so I stop in the middle of this", fault=kind)
    if (count := _COUNT.search(asked)) and (last := _DIGITS.search(asked, count.end())):
        return Script(text=" ".join(str(n) for n in range(1, min(int(last[0]), LONG_WORDS_LIMIT) + 1)))
    calls = tuple(_calls(asked, tools))
    thoughts = _thoughts(asked) if _THINK.search(asked) else ""
    if calls:
        return Script(text="Let me look that up. ", reasoning=thoughts, calls=calls)
    if thoughts:
        return Script(
            text="I have thought about it: it depends, and now you have seen my reasoning.", reasoning=thoughts
        )
    return Script(text=HELP.format(faults=", ".join(FAULTS)))


def _calls(asked: str, tools: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "clock" in tools and _TIME.search(asked):
        zones = [zone for city, zone in ZONES.items() if city in asked.lower()]
        for zone in zones or ["UTC"]:
            yield "clock", {"timezone": zone}
    if "calculator" in tools:
        for found in _SUM.finditer(asked):
            expression = found["sum"].replace("x", "*").replace("×", "*").replace("÷", "/")
            yield "calculator", {"expression": expression}


def _thoughts(asked: str) -> str:
    return (
        f"The user says {asked[:200]!r}. I am a script, so I cannot really think; but I can show how reasoning comes: "
        "first the question, then what is known, then what follows from it."
    )


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
