"""Dialogue: what goes upstream of a session, within a token budget, in words that belong to no API.

A provider writes the items of a dialogue as its API has them, and reads of a turn what nobody else understands.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from chatserver.parts import Part, Parts, TextPart, ToolCallPart, text_of

BYTES_PER_TOKEN = 4
"""A rule of thumb for English and code; used for budgets, and for usage that an upstream does not tell."""

INTERRUPTED_TEXT = "[The answer was interrupted here.]"
"""Told in place of the words that should follow a tool's results: a strict template takes no user's message there."""

INTERRUPTED_CALL = "[The tool was interrupted: whether the call had an effect is not known.]"
"""Told in place of a result that never came: every call must have one, and a tool may have changed the world."""

MESSAGE_BYTES = 16
"""What a message takes upstream at least, beside what it says."""


class Leavings(Struct, frozen=True):
    """What only a provider understands of a turn that it has streamed: JSON that it wants back with that turn.

    ``maker`` names the provider and the model; to any other, the items are foreign and are left out.
    """

    maker: str
    items: Any


class TurnOrigin(Struct, frozen=True, omit_defaults=True):
    """A turn of an answer beside its parts, kept privately: its calls' own ids at the provider, and its leavings.

    ``call_ids``: the id of each call of the turn, in order, and what its provider calls it. Of a turn without calls,
    which is the last one of its answer, there are none.
    """

    call_ids: dict[str, str] = {}
    leavings: Leavings | None = None


NO_ORIGIN = TurnOrigin()


class SystemText(Struct, frozen=True, tag="system"):
    """What the model is told to be."""

    text: str


class UserText(Struct, frozen=True, tag="user"):
    """What the user says."""

    text: str


class TurnCall(Struct, frozen=True):
    """A tool call of a turn, under the id that its provider gave it."""

    call_id: str
    name: str
    args: dict[str, Any]


class AssistantTurn(Struct, frozen=True, tag="assistant"):
    """What the model said in one turn, and all the tools that it called then."""

    text: str
    calls: tuple[TurnCall, ...] = ()
    leavings: Leavings | None = None


class ToolOutput(Struct, frozen=True, tag="tool"):
    """What a call of the turn before has come to, as the model reads it."""

    call_id: str
    name: str
    text: str


Item: TypeAlias = SystemText | UserText | AssistantTurn | ToolOutput
Dialogue: TypeAlias = Sequence[Item]
"""The user and the model alternate, where the outputs of all its calls stand behind each turn that has any."""


class ToolSpecification(Struct, frozen=True):
    """A tool as a model is told of it; ``parameters`` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


class PastMessage(Struct, frozen=True):
    """A message of a session, as far as a dialogue needs it."""

    is_of_user: bool
    parts: Parts
    transcript: tuple[TurnOrigin, ...]
    is_growing: bool = False
    """Its run has not ended on disk."""


def text_bytes(text: str) -> int:
    """How long a text is in UTF-8, without encoding one of ASCII for it."""
    return len(text) if text.isascii() else len(text.encode())


def json_bytes(value: object) -> int:
    """How long the JSON of a value is."""
    return len(msgspec.json.encode(value))


def estimated_tokens(value: object) -> int:
    """About how many tokens a text, or anything that becomes JSON, takes."""
    return -(-(text_bytes(value) if isinstance(value, str) else json_bytes(value)) // BYTES_PER_TOKEN)


def told_bytes(parts: Parts, transcript: Sequence[TurnOrigin] = ()) -> int:
    """About how much of a message goes upstream: its reasoning does not."""
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    texts = sum(text_bytes(part.text) for part in parts if isinstance(part, TextPart))
    return MESSAGE_BYTES + texts + (json_bytes(calls) if calls else 0) + (json_bytes(transcript) if transcript else 0)


def dialogue(messages: Sequence[PastMessage], system: str | None, tokens_limit: int) -> Dialogue:
    """The newest messages that fit, oldest first, behind the system message; the last one is always there.

    The dialogue begins with a message of the user, and the user's and the model's alternate, since many models refuse
    any other: two messages of the user, with an answer between them that failed or was empty, are told as one.
    """
    kept: list[list[Item]] = []
    left = tokens_limit - (estimated_tokens(system) if system else 0)
    for message in reversed(messages):
        items = _told(message)
        left -= estimated_tokens(items)
        if kept and left < 0:
            break
        kept.append(items)
    kept.reverse()
    first = next(index for index, each in enumerate(kept) if each and isinstance(each[0], UserText))
    return [*([SystemText(system)] if system else []), *_alternating(chain(*kept[first:]))]


def _alternating(items: Iterable[Item]) -> Iterator[Item]:
    for is_of_user, together in groupby(items, lambda each: isinstance(each, UserText)):
        if is_of_user:
            yield UserText("\n\n".join([each.text for each in together if isinstance(each, UserText)]))
        else:
            yield from together


def _told(message: PastMessage) -> list[Item]:
    """What a user said; or an answer's turns, each with the outputs of its calls: behind the last ones, a sentence."""
    if message.is_of_user:
        return [UserText(text_of(message.parts))]
    origins = {call_id: origin for origin in message.transcript for call_id in origin.call_ids}
    items: list[Item] = []
    lacks_words = False
    for parts in _turns(message.parts, origins):
        if isinstance(call := parts[-1], ToolCallPart):
            lacks_words = True
            items += told_turn(parts, origins.get(call.call_id, NO_ORIGIN))
        elif text_of(parts).strip():
            lacks_words = False
            last = message.transcript[-1] if message.transcript else NO_ORIGIN
            items += told_turn(parts, NO_ORIGIN if last.call_ids else last)
    if lacks_words:
        items.append(AssistantTurn(INTERRUPTED_TEXT))
    return items


def _turns(parts: Parts, origins: Mapping[str, TurnOrigin]) -> Iterator[list[Part]]:
    """The parts of an answer by turns. A turn's calls are its last parts; those of one turn have one origin."""
    turn: list[Part] = []
    for part in parts:
        last = turn[-1] if turn else None
        if isinstance(last, ToolCallPart):
            is_same = isinstance(part, ToolCallPart) and origins.get(part.call_id) is origins.get(last.call_id)
            if not is_same:
                yield turn
                turn = []
        turn.append(part)
    if turn:
        yield turn


def told_turn(parts: Sequence[Part], origin: TurnOrigin) -> list[Item]:
    """One turn, and what its calls have come to."""
    made: list[TurnCall] = []
    outputs: list[Item] = []
    for part in parts:
        if isinstance(part, ToolCallPart):
            own_id = origin.call_ids.get(part.call_id, part.call_id)
            made.append(TurnCall(own_id, part.tool, part.args))
            output = INTERRUPTED_CALL if part.is_error is None else as_text(part.result)
            outputs.append(ToolOutput(own_id, part.tool, output))
    return [AssistantTurn(text_of(parts), tuple(made), origin.leavings), *outputs]


def as_text(result: Any) -> str:
    """A tool's result as the text that a model reads."""
    return result if isinstance(result, str) else msgspec.json.encode(result).decode()
