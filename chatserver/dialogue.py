"""What goes upstream of a session: its messages as Chat Completions has them, within a token budget."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any

import msgspec

from chatserver.records import MessageRecord

BYTES_PER_TOKEN = 4
"""A rule of thumb for English and code; used for budgets, and for usage that an upstream does not tell."""

INTERRUPTED_TEXT = "[The answer was interrupted here.]"
"""Told in place of the words that should follow a tool's results: a strict template takes no user's message there."""

TOOL_NAME_CHARS = 64
_NO_NAME = re.compile("[^A-Za-z0-9_-]")


def text_bytes(text: str) -> int:
    """How long a text is in UTF-8, without encoding one of ASCII for it."""
    return len(text) if text.isascii() else len(text.encode())


def estimated_tokens(value: object) -> int:
    """About how many tokens a text, or anything that becomes JSON, takes."""
    size = text_bytes(value) if isinstance(value, str) else len(msgspec.json.encode(value))
    return -(-size // BYTES_PER_TOKEN)


def dialogue(messages: Sequence[MessageRecord], system: str | None, tokens_limit: int) -> list[dict[str, Any]]:
    """The newest messages that fit, oldest first, behind the system message; the last one is always there.

    The dialogue begins with a message of the user, and the user's and the model's alternate, since many models refuse
    any other: two messages of the user, with an answer between them that failed or was empty, are told as one.
    """
    kept: list[list[dict[str, Any]]] = []
    left = tokens_limit - (estimated_tokens(system) if system else 0)
    for message in reversed(messages):
        upstream = _upstream(message)
        left -= estimated_tokens(upstream)
        if kept and left < 0:
            break
        kept.append(upstream)
    kept.reverse()
    first = next(index for index, each in enumerate(kept) if each and each[0]["role"] == "user")
    return [{"role": "system", "content": system}] * bool(system) + list(_alternating(chain(*kept[first:])))


def _alternating(messages: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for is_of_user, together in groupby(messages, lambda each: each["role"] == "user"):
        if is_of_user:
            yield {"role": "user", "content": "\n\n".join(each["content"] for each in together)}
        else:
            yield from together


def _upstream(message: MessageRecord) -> list[dict[str, Any]]:
    """One message of ours as the one or more that the API has for it; calls without a result are left out."""
    if message.role == "user":
        return [{"role": "user", "content": message.content}]
    calls = [call for call in message.tool_calls if call.is_error is not None]
    result: list[dict[str, Any]] = []
    if calls:
        made = [call_upstream(call.call_id, call.tool, call.args) for call in calls]
        result.append({"role": "assistant", "content": None, "tool_calls": made})
        result += [{"role": "tool", "tool_call_id": call.call_id, "content": as_text(call.result)} for call in calls]
    if message.content.strip() or calls:
        content = message.content if message.content.strip() else INTERRUPTED_TEXT
        result.append({"role": "assistant", "content": content})
    return result


def call_upstream(call_id: str, name: str, args: dict[str, Any]) -> dict[str, Any]:
    """A tool call as the API has it. A name that a model made up may be one that its own server then refuses."""
    name = _NO_NAME.sub("_", name)[:TOOL_NAME_CHARS] or "_"
    arguments = msgspec.json.encode(args).decode()
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def as_text(result: Any) -> str:
    """A tool's result as the text that a model reads."""
    return result if isinstance(result, str) else msgspec.json.encode(result).decode()
