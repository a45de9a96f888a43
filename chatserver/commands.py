"""Commands: what a client asks for, and the rules of its fields. HTTP bodies and WebSocket frames share the Structs."""

import re
import secrets
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from chatserver.errors import BadCursor, BadRequest, NoCommand, NotFound, TooLarge
from chatserver.media import checked_parts
from chatserver.parts import TextPart, UserParts
from chatserver.strict_json import convert, plain_text, texts_of
from chatserver.structured import ResponseFormat, SchemaFormat, check_format

SYSTEM_BYTES_LIMIT = 32 * 1024
NAME_CHARS_LIMIT = 256
"""Models, titles, references and idempotency keys: short texts that people or programs choose."""
OUTPUT_TOKENS_LIMIT = 1_000_000
MESSAGE_PARTS_LIMIT = 32
"""Each has its bytes, and each is looked at: more images than models take."""
CURSOR_DIGITS_LIMIT = 18

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CURSOR = re.compile(rf"[0-9]{{1,{CURSOR_DIGITS_LIMIT}}}")

Message: TypeAlias = str | Annotated[UserParts, Meta(min_length=1, max_length=MESSAGE_PARTS_LIMIT)]
Json: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None
Reference = Annotated[str, Meta(max_length=NAME_CHARS_LIMIT)]


class ClientTool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tool that the client itself runs; ``parameters`` is the JSON Schema of the arguments, an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any]


class ChatRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start a run: answer ``message`` in a session, or answer an older message again (``regenerate``).

    ``message`` follows the answer ``parent_id``, or else the newest message of the session.
    """

    message: Message | None = None
    session_id: str | None = None
    idempotency_key: str | None = None
    model: str | None = None
    system: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    regenerate: str | None = None
    parent_id: str | None = None
    response_format: ResponseFormat | None = None
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    tools: tuple[ClientTool, ...] | None = None

    def schemas(self) -> dict[str, dict[str, Any]]:
        """Each JSON Schema of the request, by its pointer."""
        found = {f"/tools/{place}/parameters": each.parameters for place, each in enumerate(self.tools or ())}
        if isinstance(self.response_format, SchemaFormat):
            found["/response_format/json_schema/schema"] = self.response_format.json_schema.schema
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"  # No user's text may get into a log, not even in a traceback.


class CallAnswer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answer a tool call that waits: ``approve`` it, or give the ``result`` of a tool that the client has run."""

    approve: bool | None = None
    args: dict[str, Any] | None = None
    reason: str | None = None
    result: Json | UnsetType = UNSET
    is_error: bool | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"


class Rename(Struct, frozen=True, forbid_unknown_fields=True):
    """Give a session another title."""

    title: str


class Send(ChatRequest, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="send"):
    """Start a run and attach to it."""

    ref: Reference | None = None

    def request(self) -> ChatRequest:
        return ChatRequest(**{name: getattr(self, name) for name in ChatRequest.__struct_fields__})


class Attach(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="attach"):
    """Read a run from a cursor. On a connection that reads the run already: move the cursor."""

    run_id: str
    after: Any = 0
    ref: Reference | None = None

    def __post_init__(self) -> None:
        parse_cursor(self.after)


class Detach(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="detach"):
    """Stop reading a run; the same as a disconnect for that run."""

    run_id: str
    ref: Reference | None = None


class Cancel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="cancel"):
    """End a run."""

    run_id: str
    ref: Reference | None = None


class AnswerCall(CallAnswer, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="answer"):
    """Answer a tool call of a run, attached or not."""

    run_id: str
    call_id: str
    ref: Reference | None = None

    def answer(self) -> CallAnswer:
        return CallAnswer(**{name: getattr(self, name) for name in CallAnswer.__struct_fields__})


class Ping(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="ping"):
    """Ask whether the server is there; answered by `pong`."""


Command: TypeAlias = Send | Attach | Detach | Cancel | AnswerCall | Ping
COMMAND_TYPES: tuple[type[Command], ...] = (Send, Attach, Detach, Cancel, AnswerCall, Ping)
_KINDS = {str(each.__struct_config__.tag): each for each in COMMAND_TYPES}
COMMAND_TAGS = frozenset(_KINDS)


class _Named(Struct):
    """The fields that name a command in the answer to it."""

    type: str
    ref: str
    run_id: str


def new_id() -> str:
    """An id of 128 random bits in 22 characters that URLs and file names can hold."""
    while (id := secrets.token_urlsafe(16))[0] in "-_":  # Most programs take a leading `-` for an option.
        pass
    return id


def parse_command(text: str) -> Command:
    """A JSON document as the command that its `type` names.

    Raises:
        NoCommand: `type` is missing or unknown.
        BadRequest: a field is wrong.
    """
    kind = _KINDS.get(texts_of(text, _Named).get("type", ""))
    if kind is None:
        raise NoCommand(f"a command is an object whose `type` is one of {', '.join(sorted(COMMAND_TAGS))}", "/type")
    return convert(text, kind)


def names_in(text: str) -> dict[str, str]:
    """The `ref` and `run_id` of a JSON document, for the answer, however wrong the document is as a command."""
    return {name: value for name, value in texts_of(text, _Named).items() if name != "type"}


def checked_request(request: ChatRequest, message_limit: int, inline_limit: int) -> ChatRequest:
    """The request, with every rule of its fields held.

    ``message_limit``: bytes of the message's text; ``inline_limit``: bytes of the images and files that are in it.

    Raises:
        BadRequest, TooLarge, NotFound: a rule is broken; a malformed id is an id that nobody has.
    """
    if request.message is None and request.regenerate is None:
        raise BadRequest("`message` is required unless `regenerate` names one", "/message")
    if request.message is not None:
        checked_parts(parts_of(request.message), message_limit, inline_limit)
    if request.system is not None and len(request.system.encode()) > SYSTEM_BYTES_LIMIT:
        raise TooLarge(f"`system` is over {SYSTEM_BYTES_LIMIT} bytes")
    for name in ("model", "idempotency_key"):
        value = getattr(request, name)
        if value is not None and not (value.strip() and len(value) <= NAME_CHARS_LIMIT and value.isprintable()):
            raise BadRequest(f"`{name}` is 1 to {NAME_CHARS_LIMIT} printable characters", f"/{name}")
    if request.temperature is not None and not 0 <= request.temperature <= 2:
        raise BadRequest("`temperature` is from 0 to 2", "/temperature")
    if request.max_output_tokens is not None and not 1 <= request.max_output_tokens <= OUTPUT_TOKENS_LIMIT:
        raise BadRequest(f"`max_output_tokens` is from 1 to {OUTPUT_TOKENS_LIMIT}", "/max_output_tokens")
    if request.response_format is not None:
        check_format(request.response_format)
    if None not in (request.parent_id, request.regenerate):
        raise BadRequest("`parent_id` is for a new message, `regenerate` for an old one", "/parent_id")
    for id in (request.session_id, request.regenerate, request.parent_id):
        if id is not None:
            checked_id(id)
    return request


def parts_of(message: Message) -> UserParts:
    """A message as it is stored: in parts."""
    return (TextPart(message),) if isinstance(message, str) else message


def checked_model(request: ChatRequest, models: Collection[str]) -> ChatRequest:
    """The request, if its model is one of ``models``, or not named.

    Raises:
        BadRequest: the request names another model.
    """
    if request.model is not None and request.model not in models:
        raise BadRequest("`model` is none that this server offers", "/model")
    return request


def checked_title(rename: Rename) -> str:
    """The new title, trimmed.

    Raises:
        BadRequest: the title is blank or too long.
    """
    title = " ".join(rename.title.split())
    if not title or len(title) > NAME_CHARS_LIMIT:
        raise BadRequest(f"`title` is 1 to {NAME_CHARS_LIMIT} characters", "/title")
    return title


def checked_search(text: str) -> str:
    """The text that titles are searched for, with its spaces collapsed as in titles.

    Raises:
        BadRequest: the text is too long, or holds control characters.
    """
    words = " ".join(plain_text(text, "/search").split())
    if len(words) > NAME_CHARS_LIMIT:
        raise BadRequest(f"`search` is at most {NAME_CHARS_LIMIT} characters", "/search")
    return words


def checked_id(id: str) -> str:
    """The id, if it has the form of an id.

    Raises:
        NotFound: it has not, so nothing can have this id.
    """
    if not is_id(id):
        raise NotFound
    return id


def is_id(text: str) -> bool:
    """1 to 64 of letters, digits, `_` and `-`."""
    return _ID.fullmatch(text) is not None


def parse_cursor(after: object) -> int:
    """A cursor from a header, a query or a frame.

    Raises:
        BadCursor: ``after`` is no number from 0 on.
    """
    if isinstance(after, int) and not isinstance(after, bool) and after >= 0:
        return after
    if isinstance(after, str) and _CURSOR.fullmatch(after):
        return int(after)
    raise BadCursor("`after` is the seq of the last event handled, or 0")
