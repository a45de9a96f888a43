"""The parameters of a Responses request, and which of them a server may do without."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from chatserver.providers import ModelRequest, OnDelta
from chatserver.providers.api import OMITTABLE_EVERYWHERE
from chatserver.providers.responses.requests import form_of, has_left, input_of, instructions_of, tools_of
from chatserver.providers.responses.turn_decoder import ResponsesDecoder

OUTPUT_TOKENS_LEAST = 16
"""OpenAI refuses a smaller limit of the output."""

SENT_BACK = "encrypted_content"
"""What a model's own turns have left; a refusal of it is of one dialogue, and is not remembered for the model."""

RESPONSES_NAMES = {
    "include": re.compile(r"\binclude\b|encrypted content is not supported"),
    SENT_BACK: re.compile(r"encrypted[_ ]content|items are not persisted|required (following|'?reasoning'?) item"),
    "reasoning": re.compile(r"\breasoning\b|reasoning[._]summar"),
    "store": re.compile(r"\bstore\b"),
    "max_output_tokens": re.compile(r"max_output_tokens"),
    **OMITTABLE_EVERYWHERE,
}


class Responses:
    """The ``Api``. The server stores nothing; reasoning comes as a summary to show, and encrypted to be sent back."""

    name = "responses"
    path = "responses"
    omittable: Mapping[str, re.Pattern[str]] = RESPONSES_NAMES
    remembered = frozenset(RESPONSES_NAMES) - {SENT_BACK}

    def __init__(self, *, is_foreign: bool) -> None:
        pass

    def body(self, request: ModelRequest, refused: frozenset[str]) -> bytes:
        body = {
            "model": request.model,
            "input": input_of(request.messages, is_left_out=SENT_BACK in refused),
            "stream": "stream" not in refused,
        }
        if (instructions := instructions_of(request.messages)) is not None:
            body["instructions"] = instructions
        return msgspec.json.encode(body | self._optional(request, refused))

    def sent(self, request: ModelRequest, refused: frozenset[str]) -> set[str]:
        back = {SENT_BACK} if has_left(request.messages) else set()
        return {*self._optional(request, refused), "stream", *back} - refused

    def decoder(self, on_delta: OnDelta, maker: str) -> ResponsesDecoder:
        return ResponsesDecoder(on_delta, maker)

    def _optional(self, request: ModelRequest, refused: frozenset[str]) -> dict[str, Any]:
        limit = request.max_output_tokens
        optional: dict[str, Any] = {
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"summary": "auto"},
            "tools": tools_of(request.tools) or None,
            "temperature": request.temperature,
            "text": form_of(request.response_format),
            "max_output_tokens": None if limit is None else max(limit, OUTPUT_TOKENS_LEAST),
        }
        return {name: value for name, value in optional.items() if value is not None and name not in refused}
