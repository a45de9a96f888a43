"""An API of model servers: what distinguishes it from another one. All that is not here is the same for each API."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from chatserver.dialogue import TurnCall
from chatserver.events import Usage
from chatserver.providers import Finish, ModelRequest, OnDelta

PIECES_LIMIT = 1_000_000
"""Chunks of a turn that say something: as many as a run may have events, also where they lead to no event."""

ARGUMENTS_CHARS_LIMIT = 1024 * 1024
"""How long the arguments of all calls of a turn may be together."""

LEAVINGS_BYTES_LIMIT = 512 * 1024
"""Of one turn, reasoning aside, which counts as part of the answer. Of a turn that has more, nothing is kept."""

TOKENS_BELIEVED = 10**9
"""A usage above this number is a mistake."""

OMITTABLE_EVERYWHERE = {
    "temperature": re.compile(r"temperature"),
    "tools": re.compile(r"\btools?\b|tool[_ -](use|call|choice)|function[_ ]call"),
    "stream": re.compile(r"\bstream(ing)?\b"),
}
"""The parameters that every API has, and how refusals name them."""

TOOL_NAME_CHARS = 64
_NO_NAME = re.compile("[^A-Za-z0-9_-]")


class TurnDecoder(Protocol):
    """The events of one turn to deltas, each handed on as soon as it is known.

    ``pieces``: how many events said something; ``has_finished``: the end of the answer was said; ``went_on``: more of
    the answer came behind its end; ``is_over``: nothing can follow.
    """

    pieces: int
    has_finished: bool
    went_on: bool
    is_over: bool

    def feed(self, events: Iterable[tuple[bytes, bytes]]) -> bool:
        """Read some events of the stream, each a type and its data; whether they said the end of the answer, or more.

        Raises:
            Fault: an error, or what makes no sense; not behind the end of the answer, which stays whole.
        """
        ...

    def finish(self) -> Finish:
        """The end of an answer that has ended; what was held back until now, and the collected calls, come before."""
        ...


class Api(Protocol):
    """How an API has requests and answers. What is foreign in a request's messages has been left out.

    ``path`` stands behind the base of the server's address. ``omittable``: what can be left out of a request, and how a
    refusal of it is known; the first that was sent and fits. ``remembered``: those of them that a model which refused
    one is not sent again.
    """

    name: str
    path: str
    omittable: Mapping[str, re.Pattern[str]]
    remembered: frozenset[str]

    def __init__(self, *, is_foreign: bool) -> None:
        """``is_foreign``: the server is not OpenAI's own."""
        ...

    def body(self, request: ModelRequest, refused: frozenset[str]) -> bytes:
        """The request's JSON without what is ``refused``."""
        ...

    def sent(self, request: ModelRequest, refused: frozenset[str]) -> set[str]:
        """Which of the ``omittable`` the request has."""
        ...

    def decoder(self, on_delta: OnDelta, maker: str) -> TurnDecoder:
        """A decoder of one turn; ``maker``: who is asked, as the turn's leavings name it."""
        ...


def function_of(call: TurnCall) -> dict[str, str]:
    """A call's name and arguments. A name that a model made up may be one that its own server then refuses."""
    name = _NO_NAME.sub("_", call.name)[:TOOL_NAME_CHARS] or "_"
    return {"name": name, "arguments": msgspec.json.encode(call.args).decode()}


def size_of(value: Any) -> int:
    """The bytes of a value's JSON; of what is none, such as a lone surrogate, more than there is room for."""
    try:
        return len(msgspec.json.encode(value))
    except (ValueError, RecursionError):
        return LEAVINGS_BYTES_LIMIT + 1


def tokens_in(usage: Any) -> tuple[int, int] | None:
    """The tokens read and written in a usage object, under either API's names; None: it counts none."""
    if not isinstance(usage, dict):
        return None
    read = _number(usage.get("prompt_tokens", usage.get("input_tokens")))
    return (read, _number(usage.get("completion_tokens", usage.get("output_tokens"))) or 0) if read else None


def usage_of(tokens: tuple[int, int] | None, *, has_begun: bool) -> Usage | None:
    """The usage of a turn. A server that counts no tokens at all of an answer that ``has_begun`` does not count."""
    return Usage(*tokens) if tokens is not None and (tokens[1] or not has_begun) else None


def is_believed(usage: Usage) -> bool:
    """Whether a run may have taken as many tokens in one turn."""
    return all(0 <= tokens <= TOKENS_BELIEVED for tokens in (usage.input_tokens, usage.output_tokens))


def _number(value: object) -> int | None:
    if isinstance(value, int | float) and -TOKENS_BELIEVED <= value <= TOKENS_BELIEVED:
        return max(0, round(value))
    return None
