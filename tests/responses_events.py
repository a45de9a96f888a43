"""What a server of the Responses API says, as steps for a ``FakeUpstream``."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fake_upstream import Chunk, Step, cut_in

Item = dict[str, Any]


def event(kind: str, **fields: Any) -> Chunk:
    """An event as OpenAI sends it: its type twice, in a line of its own and in the document."""
    made = Chunk({"type": kind, "sequence_number": 7, **fields})
    made.data = f"event: {kind}\n".encode() + made.data
    return made


def created() -> list[Step]:
    """What each stream begins with."""
    response: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "status": "in_progress",
        "output": [],
        "error": None,
    }
    return [event("response.created", response=response), event("response.in_progress", response=response)]


def token(text: str | None, index: int = 0) -> Chunk:
    """A piece of the answer."""
    place: dict[str, Any] = {"item_id": f"msg_{index}", "output_index": index, "content_index": 0}
    return event("response.output_text.delta", **place, delta=text, logprobs=[], obfuscation="x")


def summary(text: str, index: int = 0, part: int = 0) -> Chunk:
    """A piece of a summary of reasoning."""
    return event(
        "response.reasoning_summary_text.delta", item_id="rs", output_index=index, summary_index=part, delta=text
    )


def thought(text: str, index: int = 0) -> Chunk:
    """A piece of the reasoning of an open model."""
    return event("response.reasoning_text.delta", item_id="rs", output_index=index, content_index=0, delta=text)


def arguments(text: str, index: int = 0) -> Chunk:
    """A piece of a call's arguments."""
    return event("response.function_call_arguments.delta", item_id="fc", output_index=index, delta=text)


def added(item: Item, index: int = 0) -> Chunk:
    return event("response.output_item.added", output_index=index, item=item)


def done(item: Item, index: int = 0) -> Chunk:
    return event("response.output_item.done", output_index=index, item=item)


def reasoning_item(encrypted: str | None = "gAAA", id: str = "rs_1", **fields: Any) -> Item:
    return {"id": id, "type": "reasoning", "encrypted_content": encrypted, "summary": []} | fields


def message_item(text: str, id: str = "msg_1", **fields: Any) -> Item:
    content = [{"type": "output_text", "annotations": [], "text": text}]
    return {"id": id, "type": "message", "status": "completed", "role": "assistant", "content": content} | fields


def call_item(name: str, args: Any, call_id: str = "call_1", id: str = "fc_1") -> Item:
    text = args if isinstance(args, str) else json.dumps(args, separators=(",", ":"))
    return {
        "id": id,
        "type": "function_call",
        "status": "completed",
        "arguments": text,
        "call_id": call_id,
        "name": name,
    }


def written(item: Item, index: int = 0, pieces: int = 2) -> list[Step]:
    """All events of an item."""
    match item["type"]:
        case "message":
            (part,) = item["content"]
            text = part["text"]
            return [
                added(item | {"status": "in_progress", "content": []}, index),
                event("response.content_part.added", output_index=index, content_index=0, part=part | {"text": ""}),
                *(token(piece, index) for piece in cut_in(text, pieces)),
                event("response.output_text.done", output_index=index, content_index=0, text=text),
                event("response.content_part.done", output_index=index, content_index=0, part=part),
                done(item, index),
            ]
        case "function_call":
            return [
                added(item | {"status": "in_progress", "arguments": ""}, index),
                *(arguments(piece, index) for piece in cut_in(item["arguments"], pieces)),
                event("response.function_call_arguments.done", output_index=index, arguments=item["arguments"]),
                done(item, index),
            ]
        case _:
            parts = enumerate(each["text"] for each in item["summary"])
            return [
                added(item | {"summary": []}, index),
                *(summary(piece, index, part) for part, text in parts for piece in cut_in(text, pieces)),
                done(item, index),
            ]


def response(
    output: Sequence[Item] = (),
    status: str = "completed",
    usage: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": status, "output": output, "usage": usage, **fields}


def counted(read: Any, wrote: Any) -> dict[str, Any]:
    return {"input_tokens": read, "output_tokens": wrote, "output_tokens_details": {"reasoning_tokens": 1}}


def completed(*output: Item, usage: Mapping[str, Any] | None = None) -> Chunk:
    """The end of a whole answer."""
    return event("response.completed", response=response(output, usage=usage))


def incomplete(reason: str | None = "max_output_tokens", *output: Item) -> Chunk:
    """The end of an answer that was cut short."""
    details = None if reason is None else {"reason": reason}
    return event("response.incomplete", response=response(output, "incomplete", incomplete_details=details))


def failed(code: str, message: str = "no") -> Chunk:
    """The end of an answer that has failed."""
    return event("response.failed", response=response((), "failed", error={"code": code, "message": message}))


def answer(*items: Item, usage: Mapping[str, Any] | None = None, pieces: int = 2) -> list[Step]:
    """A whole normal turn of these items."""
    events = [each for index, item in enumerate(items) for each in written(item, index, pieces)]
    return [*created(), *events, completed(*items, usage=usage)]
