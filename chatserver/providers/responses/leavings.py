"""What a turn leaves that only its server understands, and wants back with it: the items of its output, in order.

A reasoning item goes back as it came, with its `encrypted_content`; OpenAI answers 400 where the item that it led to
does not follow. Of a message and a call only what the dialogue does not have is kept: ids, and the `phase`, which newer
models want back. Their text and arguments are put in again, so that nothing is stored or counted twice.
"""

from collections.abc import Iterator
from typing import Any

from chatserver.dialogue import AssistantTurn, TurnCall
from chatserver.providers.api import LEAVINGS_BYTES_LIMIT, function_of, size_of

SPAN = "span"
"""Where the text of a message begins and ends in the text of its turn; the name of no field of the API."""

PUT_IN_AGAIN = frozenset({"content", "name", "arguments", "call_id"})
REASONING, MESSAGE, CALL = "reasoning", "message", "function_call"


class OutputItems:
    """The items of a turn's output, as they are done."""

    __slots__ = "_bytes", "_items"

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, item: dict[str, Any], span: tuple[int, int]) -> None:
        """An item that is done; ``span``: where its text stands, if it is a message with any."""
        fields = {name: value for name, value in item.items() if value is not None}
        match item.get("type"):
            case "reasoning" if fields.get("encrypted_content") or fields.get("content"):
                pass
            case "message" if span[0] < span[1]:
                fields = _without_told(fields) | {SPAN: span, "refused": _is_refusal(item)}
            case "function_call":
                fields = _without_told(fields)
            case _:
                return
        self._bytes += size_of(fields)
        if self._bytes <= LEAVINGS_BYTES_LIMIT:
            self._items.append(fields)

    def left(self, *, with_calls: bool) -> list[dict[str, Any]]:
        """What goes back; empty: nothing that the dialogue does not have.

        Reasoning in plain words goes back only with calls, as over Chat Completions.
        """
        kept = [item for item in self._items if _is_kept(item, with_calls)]
        while kept and kept[-1]["type"] == REASONING:
            kept.pop()
        has_more = any(item["type"] == REASONING or "phase" in item for item in kept)
        return kept if has_more and self._bytes <= LEAVINGS_BYTES_LIMIT else []


def own_items(turn: AssistantTurn, left: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The output of a turn as it was; None: what the turn has left is not of these texts and calls."""
    ends = [item[SPAN][1] for item in left if item["type"] == MESSAGE]
    if (ends[-1] if ends else 0) != len(turn.text) or sum(item["type"] == CALL for item in left) != len(turn.calls):
        return None
    return list(_whole(turn, left))


def message(text: str, *, refused: bool = False) -> dict[str, Any]:
    """What the model said, in the form that each server takes from the assistant: llama.cpp takes no other."""
    part = {"type": "refusal", "refusal": text} if refused else {"type": "output_text", "text": text, "annotations": []}
    return {"type": MESSAGE, "role": "assistant", "content": [part]}


def call_of(call: TurnCall) -> dict[str, Any]:
    """A call that the model made."""
    return {"type": CALL, "call_id": call.own_id, **function_of(call)}


def _whole(turn: AssistantTurn, left: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    calls = iter(turn.calls)
    for item in left:
        match item:
            case {"type": "message", "span": (begin, end), "refused": refused, **fields}:
                yield fields | message(turn.text[begin:end], refused=refused)
            case {"type": "function_call"}:
                yield item | call_of(next(calls))
            case _:
                yield item


def _is_kept(item: dict[str, Any], with_calls: bool) -> bool:
    match item["type"]:
        case "reasoning":
            return with_calls or "encrypted_content" in item
        case "function_call":
            return with_calls
        case _:
            return True


def _without_told(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in PUT_IN_AGAIN}


def _is_refusal(item: dict[str, Any]) -> bool:
    match item.get("content"):
        case [{"type": "refusal"}, *_]:
            return True
        case _:
            return False
