"""What is asked, as Chat Completions has it: the items of a dialogue as its messages."""

from collections.abc import Sequence
from typing import Any

from chatserver.content import data_url
from chatserver.dialogue import (
    AssistantTurn,
    Dialogue,
    Item,
    SystemText,
    ToolOutput,
    ToolSpecification,
    TurnCall,
    UserMessage,
)
from chatserver.parts import FilePart, ImagePart, TextPart, UserPart
from chatserver.providers.api import function_of


def messages_of(dialogue: Dialogue, refused: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """The messages. What a turn has left goes with it, but for the fields that are ``refused``."""
    return [_message(item, refused) for item in dialogue]


def fields_sent_back(dialogue: Dialogue) -> set[str]:
    """The names of all fields that turns have left."""
    found: set[str] = set()
    for item in dialogue:
        if isinstance(item, AssistantTurn) and item.leavings is not None:
            found.update(item.leavings.items["message"], *item.leavings.items["calls"])
    return found


def tools_of(tools: Sequence[ToolSpecification]) -> list[dict[str, Any]]:
    """The tools on offer."""
    return [{"type": "function", "function": each} for each in tools]


def _message(item: Item, refused: frozenset[str]) -> dict[str, Any]:
    match item:
        case UserMessage():
            return {"role": "user", "content": [_part(each) for each in item.parts] if item.has_media else item.content}
        case AssistantTurn():
            return _turn(item, refused)
        case ToolOutput():
            return {"role": "tool", "tool_call_id": item.own_id, "content": item.text}
        case SystemText():
            return {"role": "system", "content": item.text}


def _part(part: UserPart) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            return {"type": "image_url", "image_url": {"url": data_url(part)}}
        case FilePart():
            return {"type": "file", "file": {"filename": part.name, "file_data": data_url(part)}}


def _turn(turn: AssistantTurn, refused: frozenset[str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    calls = [_call(call) for call in turn.calls]
    if turn.leavings is not None:
        message |= _without(turn.leavings.items["message"], refused)
        calls = [call | _without(left, refused) for call, left in zip(calls, turn.leavings.items["calls"], strict=True)]
    if calls:
        message["tool_calls"] = calls
    return message


def _without(fields: dict[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in refused}


def _call(call: TurnCall) -> dict[str, Any]:
    return {"id": call.own_id, "type": "function", "function": function_of(call)}
