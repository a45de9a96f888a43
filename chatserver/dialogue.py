"""Dialogue: what goes upstream of a session, within a token budget, in words that belong to no API.

A provider writes the items of a dialogue as its API has them. Leavings are the part of a turn that only the provider
understands.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any, TypeAlias, TypeGuard

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chatserver.content import part_bytes, told_content
from chatserver.parts import AnyPart, TextPart, ToolCallPart, UserParts, is_user_part, text_bytes, text_of

BYTES_PER_TOKEN = 4
"""A rule of thumb for English and code; used for budgets, and for usage that an upstream does not tell."""

INTERRUPTED_TEXT = "[The answer was interrupted here.]"
"""Stands for the words that should follow a tool's results: strict chat templates refuse a user's message there."""

INTERRUPTED_CALL = "[The tool was interrupted: whether the call had an effect is not known.]"
"""Stands for a result that never came: every call must have a result, and the tool may have changed the world."""

QUESTION = "ask_user"
"""The name of a call by which a tool asks the user. No model is told of it, and no tool may have the name."""

RESERVED = "this name is reserved for the questions of tools to the user"

MESSAGE_BYTES = 16
"""What each message takes upstream, beside its content."""


class Leavings(Struct, frozen=True):
    """JSON of a turn that only the turn's provider understands, and wants back with the turn.

    ``maker`` names the API, the address of the model server and the model. To any other maker the turn is foreign, see
    ``told_to``.
    """

    maker: str
    items: Any


class TurnOrigin(Struct, frozen=True, omit_defaults=True):
    """What the provider wants back of a turn beside the turn's parts. No client sees it.

    ``call_ids``: for each call of the turn, in order, its id in the run and its id at the provider. A turn without
    calls is the last one of its answer.
    """

    call_ids: dict[str, str] = {}
    leavings: Leavings | None = None


NO_ORIGIN = TurnOrigin()


class SystemText(Struct, frozen=True, tag="system"):
    """The system message."""

    text: str


class UserMessage(Struct, frozen=True, tag="user"):
    """A message of the user: its text, or its parts where images or files are among them.

    ``earlier`` are the parts of messages just before it, where images or files are among them: messages without answer.
    """

    content: str | UserParts
    earlier: UserParts = ()

    @property
    def has_media(self) -> bool:
        return not isinstance(self.content, str) or bool(self.earlier)

    @property
    def parts(self) -> UserParts:
        """All that the user says here, as parts."""
        return self.earlier + ((TextPart(self.content),) if isinstance(self.content, str) else self.content)

    @property
    def text(self) -> str:
        return text_of(self.parts)


class TurnCall(Struct, frozen=True):
    """A tool call of a turn. ``own_id`` is the id that its provider gave it."""

    call_id: str
    name: str
    args: dict[str, Any]
    own_id: str


class AssistantTurn(Struct, frozen=True, tag="assistant"):
    """What the model said in one turn, and all tool calls of the turn."""

    text: str
    calls: tuple[TurnCall, ...] = ()
    leavings: Leavings | None = None


class ToolOutput(Struct, frozen=True, tag="tool"):
    """The result of a call of the turn before, as the model reads it. Its ids are those of the call."""

    call_id: str
    name: str
    text: str
    own_id: str


Item: TypeAlias = SystemText | UserMessage | AssistantTurn | ToolOutput
Dialogue: TypeAlias = Sequence[Item]
"""Users and model alternate. Behind a turn with calls stand the outputs of all these calls."""


class ToolSpecification(Struct, frozen=True):
    """A tool as a model is told of it; ``parameters`` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


class PastMessage(Struct, frozen=True):
    """A message of a session, as far as a dialogue needs it."""

    is_of_user: bool
    parts: tuple[AnyPart, ...]
    transcript: tuple[TurnOrigin, ...]


def json_bytes(value: object) -> int:
    """The length of a value as JSON."""
    return len(msgspec.json.encode(value))


def estimated_tokens(value: object) -> int:
    """About how many tokens a text, or anything that becomes JSON, takes."""
    return -(-(text_bytes(value) if isinstance(value, str) else json_bytes(value)) // BYTES_PER_TOKEN)


def asked_tokens(items: Iterable[Item | ToolSpecification]) -> int:
    """About how many tokens a model takes for these."""
    items, media = list(items), 0
    for place, item in enumerate(items):
        if isinstance(item, UserMessage) and item.has_media:
            items[place] = UserMessage(item.text)
            media += sum(map(part_bytes, item.parts)) - text_bytes(item.text)
    return -(-(json_bytes(items) + media) // BYTES_PER_TOKEN)


def told_bytes(parts: Sequence[AnyPart], transcript: Sequence[TurnOrigin] = ()) -> int:
    """About how many bytes of a message go upstream. Its reasoning does not."""
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    rest = sum([part_bytes(part) for part in parts if is_user_part(part)])
    return MESSAGE_BYTES + rest + (json_bytes(calls) if calls else 0) + (json_bytes(transcript) if transcript else 0)


def dialogue(messages: Sequence[PastMessage], system: str | None, tokens_limit: int) -> Dialogue:
    """The newest messages that fit, oldest first, behind the system message; the last one is always there.

    The dialogue begins with the user, and users and model alternate, since many models refuse any other order. Two
    messages of the user with a failed or empty answer between them become one.
    """
    kept: list[list[Item]] = []
    left = tokens_limit - (estimated_tokens(system) if system else 0)
    for message in reversed(messages):
        items = _told(message)
        left -= asked_tokens(items)
        if kept and left < 0:
            break
        kept.append(items)
    kept.reverse()
    first = next(index for index, each in enumerate(kept) if each and isinstance(each[0], UserMessage))
    return [*([SystemText(system)] if system else []), *_alternating(chain(*kept[first:]))]


def _alternating(items: Iterable[Item]) -> Iterator[Item]:
    for kind, together in groupby(items, type):
        if kind is UserMessage:
            yield _joined([each for each in together if isinstance(each, UserMessage)])
        else:
            yield from together


def _joined(messages: Sequence[UserMessage]) -> UserMessage:
    if len(messages) == 1:
        return messages[0]
    if not any(each.has_media for each in messages):
        return UserMessage("\n\n".join([each.text for each in messages]))
    *before, last = messages
    return UserMessage(last.content, tuple([part for each in before for part in each.parts]))


def _told(message: PastMessage) -> list[Item]:
    """The items of one message: the user's text, or the turns of an answer, each with the outputs of its calls.

    Where no words follow the last outputs, a sentence stands for the words.
    """
    if message.is_of_user:
        return [UserMessage(told_content(message.parts))]
    items = told_answer(message.parts, message.transcript)
    if items and isinstance(items[-1], ToolOutput):
        items.append(AssistantTurn(INTERRUPTED_TEXT))
    return items


def told_answer(answer: Sequence[AnyPart], transcript: Sequence[TurnOrigin]) -> list[Item]:
    """The turns of an answer, each with the outputs of its calls."""
    if ToolCallPart not in set(map(type, answer)):  # Most answers, in a third of the time.
        return _told_words(answer, transcript)
    origins = _origins(transcript)
    items: list[Item] = []
    for parts in _turns([part for part in answer if not is_question(part)], origins):
        if isinstance(call := parts[-1], ToolCallPart):
            items += told_turn(parts, origins.get(call.call_id, NO_ORIGIN))
        else:
            items += _told_words(parts, transcript)
    return items


def _told_words(parts: Sequence[AnyPart], transcript: Sequence[TurnOrigin]) -> list[Item]:
    """The last turn of an answer, which has no calls; none where it says nothing."""
    text, last = text_of(parts), transcript[-1] if transcript else NO_ORIGIN
    return [AssistantTurn(text, (), None if last.call_ids else last.leavings)] if text.strip() else []


def _origins(transcript: Sequence[TurnOrigin]) -> dict[str, TurnOrigin]:
    return {call_id: origin for origin in transcript for call_id in origin.call_ids}


def is_question(part: AnyPart) -> TypeGuard[ToolCallPart]:
    """Whether a tool has asked this; a model may make up the name, for a call that no client is asked to make."""
    return isinstance(part, ToolCallPart) and part.tool == QUESTION and part.executor == "client"


def _turns(parts: Sequence[AnyPart], origins: Mapping[str, TurnOrigin]) -> Iterator[list[AnyPart]]:
    """The parts of an answer by turns. The calls of a turn are its last parts, and have one origin."""
    turn: list[AnyPart] = []
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


def told_turn(parts: Sequence[AnyPart], origin: TurnOrigin) -> list[Item]:
    """One turn, and the outputs of its calls."""
    made: list[TurnCall] = []
    outputs: list[Item] = []
    for part in parts:
        if isinstance(part, ToolCallPart):
            own_id = origin.call_ids.get(part.call_id, part.call_id)
            made.append(TurnCall(part.call_id, part.tool, part.args, own_id))
            output = INTERRUPTED_CALL if part.is_error is None else as_text(part.result)
            outputs.append(ToolOutput(part.call_id, part.tool, output, own_id))
    return [AssistantTurn(text_of(parts), tuple(made), origin.leavings), *outputs]


def told_to(maker: str, dialogue: Dialogue) -> Dialogue:
    """The dialogue without what is foreign to ``maker``: leavings of other makers, and ids that they gave to calls.

    Such an id may be one that ``maker`` refuses. The call goes under its id in the run.
    """
    told: list[Item] = []
    is_own = True
    for item in dialogue:
        if isinstance(item, AssistantTurn):
            is_own = item.leavings is not None and item.leavings.maker == maker
        told.append(item if is_own else _foreign(item))
    return told


def _foreign(item: Item) -> Item:
    match item:
        case AssistantTurn(calls=(), leavings=None):
            return item
        case AssistantTurn(calls=calls):
            return replace(item, calls=tuple([replace(call, own_id=call.call_id) for call in calls]), leavings=None)
        case ToolOutput():
            return replace(item, own_id=item.call_id)
        case _:
            return item


def as_text(result: Any) -> str:
    """A tool's result as the text that a model reads."""
    return result if isinstance(result, str) else msgspec.json.encode(result).decode()
