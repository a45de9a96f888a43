"""What is asked, as Responses has it: the items of a dialogue as its input items."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from chatserver.content import data_url
from chatserver.dialogue import AssistantTurn, Dialogue, Item, SystemText, ToolOutput, ToolSpecification, UserMessage
from chatserver.parts import FilePart, ImagePart, TextPart, UserPart
from chatserver.providers.responses.leavings import call_of, message, own_items
from chatserver.structured import JsonFormat, ResponseFormat, SchemaFormat


def instructions_of(dialogue: Dialogue) -> str | None:
    """The system text. As input it would need a role that the chat templates of some models do not know."""
    return "\n\n".join(item.text for item in dialogue if isinstance(item, SystemText)) or None


def input_of(dialogue: Dialogue, *, is_left_out: bool) -> list[dict[str, Any]]:
    """The input items. What a turn has left goes back with it, unless it ``is_left_out``."""
    return [each for item in dialogue for each in _items(item, is_left_out)]


def has_left(dialogue: Dialogue) -> bool:
    """Whether a turn has left anything."""
    return any(_left_by(item) for item in dialogue if isinstance(item, AssistantTurn))


def tools_of(tools: Sequence[ToolSpecification]) -> list[dict[str, Any]]:
    """The tools on offer. With `strict`, the default here, a schema may have no parameter that can be left out."""
    return [
        {
            "type": "function",
            "name": each.name,
            "description": each.description,
            "parameters": each.parameters,
            "strict": False,
        }
        for each in tools
    ]


def _items(item: Item, is_left_out: bool) -> Iterator[dict[str, Any]]:
    match item:
        case UserMessage():
            yield {"role": "user", "content": [_part(each) for each in item.parts] if item.has_media else item.content}
        case ToolOutput():
            yield {"type": "function_call_output", "call_id": item.own_id, "output": item.text}
        case AssistantTurn():
            left = [] if is_left_out else _left_by(item)
            yield from (left and own_items(item, left)) or _told(item)
        case SystemText():
            return


def _part(part: UserPart) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "input_text", "text": part.text}
        case ImagePart():
            return {"type": "input_image", "image_url": data_url(part), "detail": "auto"}
        case FilePart(url=str(url)):
            return {"type": "input_file", "file_url": url}
        case FilePart():
            return {"type": "input_file", "filename": part.name, "file_data": data_url(part)}


def _left_by(turn: AssistantTurn) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = turn.leavings.items if turn.leavings is not None else []
    return items


def _told(turn: AssistantTurn) -> list[dict[str, Any]]:
    return [*([message(turn.text)] if turn.text else []), *map(call_of, turn.calls)]


def form_of(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """The form of the answer, as the API has it in `text`."""
    match wanted:
        case SchemaFormat():
            return {"format": {"type": "json_schema"} | msgspec.to_builtins(wanted.json_schema)}
        case JsonFormat():
            return {"format": {"type": "json_object"}}
        case _:
            return None
