"""What a request says beside its model and its messages, as far as the model's server takes it."""

import re
from collections import OrderedDict
from typing import Any

import msgspec

from chatserver.providers import ModelRequest
from chatserver.providers.chat_completions.requests import fields_sent_back, messages_of, tools_of

MODELS_LIMIT = 1000
"""How many models are remembered by what they refuse; past it, the one that was asked least lately is forgotten."""

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")
"""The two names of one parameter. OpenAI's newer models refuse the old name, other servers may not know the new one."""

NAMES: dict[str, re.Pattern[str]] = {
    "stream_options": re.compile(r"stream_options|include_usage"),
    "max_completion_tokens": re.compile(r"max_completion_tokens"),
    "max_tokens": re.compile(r"max_tokens"),
    "temperature": re.compile(r"temperature"),
    "tools": re.compile(r"\btools?\b|tool[_ -](use|call|choice)|function[_ ]call"),
    "stream": re.compile(r"\bstream(ing)?\b"),
    "reasoning_content": re.compile(r"reasoning_content"),
    "reasoning": re.compile(r"\breasoning\b"),
    "reasoning_details": re.compile(r"reasoning_details"),
    "extra_content": re.compile(r"extra_content"),
}
"""What can be left out, and how a refusal of it is known; the first that was sent and fits."""

REFUSED = re.compile(
    r"unsupported|not[_ ](currently )?support|n't support|no endpoints found|only the default|not (permitted|allowed)"
    r"|extra[_ ](inputs?|fields?|forbidden)|forbidden_extra|unrecogni[sz]ed|unknown (parameter|argument|field|name)"
    r"|unexpected (keyword|parameter|argument|field|property)|additional propert|not (enabled|available|implemented)"
    r"|disabled|deprecated|requires? --|must be verified|cannot be (used|set)|only (be )?(allowed|set|available)"
    r"|invalid parameter"
)


class Parameters:
    """Which parameters each model's server takes: what it refused is left out from then on.

    ``omitted`` are left out for all models. Of ``OUTPUT_LIMITS`` the first is sent, or the second, if
    ``is_foreign``: the server is not OpenAI's own; and the other one where one is left out.
    """

    def __init__(self, omitted: frozenset[str], *, is_foreign: bool) -> None:
        self._omitted = omitted
        self._limits = OUTPUT_LIMITS[::-1] if is_foreign else OUTPUT_LIMITS
        self._refused: OrderedDict[str, frozenset[str]] = OrderedDict()

    def refused_by(self, model: str) -> frozenset[str]:
        """What is left out of a request to a model."""
        if model not in self._refused:
            return self._omitted
        self._refused.move_to_end(model)
        return self._omitted | self._refused[model]

    def remember(self, model: str, refused: frozenset[str]) -> None:
        """The model has answered a request without these."""
        self._refused[model] = refused
        self._refused.move_to_end(model)
        if len(self._refused) > MODELS_LIMIT:
            self._refused.popitem(last=False)

    def body(self, request: ModelRequest, refused: frozenset[str], maker: str) -> bytes:
        """The request's JSON, encoded once: given a dict, the SDK would walk through every message of the session."""
        messages = messages_of(request.messages, maker, refused)
        body = {"model": request.model, "messages": messages, "stream": "stream" not in refused}
        return msgspec.json.encode(body | self._optional(request, refused))

    def in_words(self, request: ModelRequest, refused: frozenset[str], maker: str, words: str) -> str | None:
        """The parameter of a request, or the field of its messages, that a refusal in these words is about.

        None: the refusal is about none of them.
        """
        words = words.lower()
        if not REFUSED.search(words):
            return None
        sent = {*self._optional(request, refused), "stream", *fields_sent_back(request.messages, maker)} - refused
        return next((name for name, pattern in NAMES.items() if name in sent and pattern.search(words)), None)

    def _optional(self, request: ModelRequest, refused: frozenset[str]) -> dict[str, Any]:
        limit = next((name for name in self._limits if name not in refused), "max_tokens")
        optional: dict[str, Any] = {
            "stream_options": None if "stream" in refused else {"include_usage": True},
            "tools": tools_of(request.tools) or None,
            "temperature": request.temperature,
            limit: request.max_output_tokens,
        }
        return {name: value for name, value in optional.items() if value is not None and name not in refused}
