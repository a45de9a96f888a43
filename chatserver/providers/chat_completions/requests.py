"""What is asked, as Chat Completions has it: the items of a dialogue as its messages."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from chatserver.dialogue import AssistantTurn, Dialogue, Item, SystemText, ToolOutput, TurnCall, UserText

TOOL_NAME_CHARS = 64
_NO_NAME = re.compile("[^A-Za-z0-9_-]")


def messages_of(dialogue: Dialogue, maker: str) -> list[dict[str, Any]]:
    """The messages; of what turns have left, ``maker``'s own goes with them."""
    return [_message(item, maker) for item in dialogue]


def _message(item: Item, maker: str) -> dict[str, Any]:
    match item:
        case UserText():
            return {"role": "user", "content": item.text}
        case AssistantTurn():
            return _turn(item, maker)
        case ToolOutput():
            return {"role": "tool", "tool_call_id": item.call_id, "content": item.text}
        case SystemText():
            return {"role": "system", "content": item.text}


def _turn(turn: AssistantTurn, maker: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    calls = [_call(call) for call in turn.calls]
    if turn.leavings is not None and turn.leavings.maker == maker:
        message |= turn.leavings.items["message"]
        fields: Sequence[dict[str, Any]] = turn.leavings.items["calls"]
        calls = [call | left for call, left in zip(calls, fields, strict=True)]
    return message | ({"tool_calls": calls} if calls else {})


def _call(call: TurnCall) -> dict[str, Any]:
    """A call. A name that a model made up may be one that its own server then refuses."""
    name = _NO_NAME.sub("_", call.name)[:TOOL_NAME_CHARS] or "_"
    arguments = msgspec.json.encode(call.args).decode()
    return {"id": call.call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
