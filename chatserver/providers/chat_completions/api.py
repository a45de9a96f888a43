"""The parameters of a Chat Completions request, and which of them a server may do without."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from chatserver.providers import ModelRequest, OnDelta
from chatserver.providers.api import OMITTABLE_EVERYWHERE
from chatserver.providers.chat_completions.requests import fields_sent_back, messages_of, tools_of
from chatserver.providers.chat_completions.turn_decoder import TurnDecoder

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")
"""The two names of one parameter. OpenAI's newer models refuse the old name, other servers may not know the new one."""


COMPLETIONS_NAMES = {
    "stream_options": re.compile(r"stream_options|include_usage"),
    "max_completion_tokens": re.compile(r"max_completion_tokens"),
    "max_tokens": re.compile(r"max_tokens"),
    **OMITTABLE_EVERYWHERE,
    "reasoning_content": re.compile(r"reasoning_content"),
    "reasoning": re.compile(r"\breasoning\b"),
    "reasoning_details": re.compile(r"reasoning_details"),
    "extra_content": re.compile(r"extra_content"),
}


class ChatCompletions:
    """The ``Api``. Of ``OUTPUT_LIMITS`` the first is sent, to foreign servers the second.

    Where one of the two names is left out, the other one is sent.
    """

    name = "chat_completions"
    path = "chat/completions"
    omittable: Mapping[str, re.Pattern[str]] = COMPLETIONS_NAMES
    remembered = frozenset(COMPLETIONS_NAMES)

    def __init__(self, *, is_foreign: bool) -> None:
        self._limits = OUTPUT_LIMITS[::-1] if is_foreign else OUTPUT_LIMITS

    def body(self, request: ModelRequest, refused: frozenset[str]) -> bytes:
        messages = messages_of(request.messages, refused)
        body = {"model": request.model, "messages": messages, "stream": "stream" not in refused}
        return msgspec.json.encode(body | self._optional(request, refused))

    def sent(self, request: ModelRequest, refused: frozenset[str]) -> set[str]:
        return {*self._optional(request, refused), "stream", *fields_sent_back(request.messages)} - refused

    def decoder(self, on_delta: OnDelta, maker: str) -> TurnDecoder:
        return TurnDecoder(on_delta, maker)

    def _optional(self, request: ModelRequest, refused: frozenset[str]) -> dict[str, Any]:
        limit = next((name for name in self._limits if name not in refused), "max_tokens")
        optional: dict[str, Any] = {
            "stream_options": None if "stream" in refused else {"include_usage": True},
            "tools": tools_of(request.tools) or None,
            "temperature": request.temperature,
            "response_format": request.response_format,
            limit: request.max_output_tokens,
        }
        return {name: value for name, value in optional.items() if value is not None and name not in refused}
