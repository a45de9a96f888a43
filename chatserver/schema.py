"""The contract as documents that programs read: JSON Schema and TypeScript of the events, AsyncAPI of the WebSocket."""

from collections.abc import Iterator
from typing import Any

import msgspec

from chatserver import __version__
from chatserver.commands import COMMAND_TYPES
from chatserver.events import EVENT_TYPES, schema

CLOSE_CODES = {
    1000: "done",
    1002: "broken framing",
    1003: "binary frame",
    1007: "invalid UTF-8",
    1009: "frame too big",
    1011: "bug",
    1012: "going down: come back at once",
    1013: "overloaded",
    4400: "frames that are no commands",
    4401: "not authenticated",
    4408: "idle too long",
    4429: "too many connections or commands",
}


def events() -> dict[str, Any]:
    """JSON Schema (2020-12) of every event."""
    return schema()


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 of `/chat/ws`."""
    commands, definitions = msgspec.json.schema_components(COMMAND_TYPES, ref_template=_REFERENCE)
    found = schema(_REFERENCE)
    answers = {
        "accepted": _answer("accepted", run_id="string", ref="string", ended="boolean"),
        "rejected": _answer(
            "rejected", **_PROBLEM, ref="string", run_id="string", retry_after="integer", errors="array"
        ),
        "pong": _answer("pong"),
        "ping": _answer("ping"),
    }
    received = [str(each.__struct_config__.tag) for each in COMMAND_TYPES]
    sent = [str(each.__struct_config__.tag) for each in EVENT_TYPES]
    messages = {f"{name}_command": {"payload": ref} for name, ref in zip(received, commands, strict=True)}
    messages |= {
        name: {"payload": {"$ref": _REFERENCE.format(name=each.__name__)}}
        for name, each in zip(sent, EVENT_TYPES, strict=True)
    }
    messages |= {name: {"payload": payload} for name, payload in answers.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "chatserver", "version": __version__, "description": _closing()},
        "channels": {"chat": {"address": "/chat/ws", "messages": messages}},
        "operations": {
            "command": _operation("receive", [f"{name}_command" for name in received]),
            "event": _operation("send", [*sent, *answers]),
        },
        "components": {"schemas": definitions | found["$defs"]},
    }


def typescript() -> str:
    """The events as TypeScript: an interface each, and `ChatEvent`, the union that `type` tells apart."""
    document = schema()
    names = {each["$ref"].rpartition("/")[2] for each in document["anyOf"]}

    def kind(node: dict[str, Any]) -> str:
        match node:
            case {"$ref": reference}:
                name = reference.rpartition("/")[2]
                return f"{name}Event" if name in names else str(name)
            case {"anyOf": choices}:
                return " | ".join(map(kind, choices))
            case {"enum": values}:
                return " | ".join(msgspec.json.encode(value).decode() for value in values)
            case {"type": "array", "items": item}:
                return f"{kind(item)}[]"
            case {"type": name}:
                return _TYPESCRIPT[name]
            case _:
                return "unknown"

    def lines() -> Iterator[str]:
        yield "// Written by `chatserver schema` from the server's events.\n"
        for name, definition in document["$defs"].items():
            yield f"/** {definition['description'].replace('``', '`')} */"
            yield f"export interface {kind({'$ref': name})} {{"
            yield from (f"  {field}: {kind(node)};" for field, node in definition["properties"].items())
            yield "}\n"
        yield f"export type ChatEvent = {' | '.join(map(kind, document['anyOf']))};"

    return "\n".join(lines()) + "\n"


_TYPESCRIPT = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "Record<string, unknown>",
}
_PROBLEM = {"status": "integer", "code": "string", "message": "string"}
_REFERENCE = "#/components/schemas/{name}"


def _answer(tag: str, **fields: str) -> dict[str, Any]:
    properties = {"type": {"const": tag}} | {name: {"type": kind} for name, kind in fields.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": ["type", *(name for name in _PROBLEM if name in fields)],
    }


def _operation(action: str, names: list[str]) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/chat/messages/{name}"} for name in names]
    return {"action": action, "channel": {"$ref": "#/channels/chat"}, "messages": messages}


def _closing() -> str:
    return "Subprotocol chatserver.v1. Close codes: " + "; ".join(f"{code} {why}" for code, why in CLOSE_CODES.items())
