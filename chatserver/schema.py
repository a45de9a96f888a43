"""The contract as documents that programs read: JSON Schema and TypeScript of the events, AsyncAPI of the WebSocket."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from chatserver import __version__
from chatserver.commands import COMMAND_TYPES
from chatserver.events import EVENT_TYPES, schema
from chatserver.replies import REPLY_TYPES
from chatserver.transports.close_codes import PUBLISHED


def events() -> dict[str, Any]:
    """JSON Schema (2020-12) of every event."""
    return schema()


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 of `/chat/ws`."""
    documents: tuple[type[Struct], ...] = (*REPLY_TYPES, *COMMAND_TYPES)
    _, definitions = msgspec.json.schema_components(documents, ref_template=_REFERENCE)
    received = {f"{_tag(each)}_command": each for each in COMMAND_TYPES}
    sent = {_tag(each): each for each in (*EVENT_TYPES, *REPLY_TYPES)}
    payloads = {name: {"$ref": _REFERENCE.format(name=each.__name__)} for name, each in (received | sent).items()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "chatserver", "version": __version__, "description": _closing()},
        "channels": {
            "chat": {"address": "/chat/ws", "messages": {name: {"payload": ref} for name, ref in payloads.items()}}
        },
        "operations": {"command": _operation("receive", received), "event": _operation("send", sent)},
        "components": {"schemas": definitions | schema(_REFERENCE)["$defs"]},
    }


def typescript() -> str:
    """The events as TypeScript: an interface each, and `ChatEvent`, the union that `type` tells apart."""
    document = schema()
    names = {name: f"{name}Event" for each in document["anyOf"] for name in [each["$ref"].rpartition("/")[2]]}
    union = " | ".join(_kind(each, names) for each in document["anyOf"])
    lines = ["// Written by `chatserver schema` from the server's events.\n"]
    lines += [*_interfaces(document["$defs"], names), f"export type ChatEvent = {union};"]
    return "\n".join(lines) + "\n"


def typescript_of(resources: Sequence[type[Struct]]) -> str:
    """What requests are answered with as TypeScript; what the events have too is imported from theirs."""
    _, definitions = msgspec.json.schema_components(resources)
    shared = definitions.keys() & schema()["$defs"].keys()
    lines = ["// Written by `chatserver schema` from what the server's routes answer.\n"]
    lines += [f'import type {{ {", ".join(sorted(shared))} }} from "./events.js";\n']
    lines += _interfaces({name: each for name, each in definitions.items() if name not in shared}, {})
    return "\n".join(lines)


def _interfaces(definitions: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    """Each definition as an interface; a field that is neither required nor has a default may be absent."""
    for name, definition in definitions.items():
        said = " ".join(definition["description"].replace("``", "`").replace("None", "null").split())
        yield f"/** {said} */"
        yield f"export interface {names.get(name, name)} {{"
        for field, node in definition["properties"].items():
            is_there = field in definition["required"] or "default" in node
            yield f"  {field}: {_kind(node, names)};" if is_there else f"  {field}?: {_kind(node, names)} | undefined;"
        yield "}\n"


def _kind(node: dict[str, Any], names: dict[str, str]) -> str:
    """A JSON Schema as a type; ``names`` are those of definitions that have another name here."""
    match node:
        case {"$ref": reference}:
            name = str(reference).rpartition("/")[2]
            return names.get(name, name)
        case {"anyOf": choices}:
            return " | ".join(_kind(each, names) for each in choices)
        case {"enum": values}:
            return " | ".join(msgspec.json.encode(value).decode() for value in values)
        case {"type": "array", "items": item}:
            kind = _kind(item, names)
            return f"({kind})[]" if " | " in kind else f"{kind}[]"
        case {"type": name}:
            return _TYPESCRIPT[name]
        case _:
            return "unknown"


_TYPESCRIPT = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "Record<string, unknown>",
}
_REFERENCE = "#/components/schemas/{name}"


def _tag(kind: type[Struct]) -> str:
    return str(kind.__struct_config__.tag)


def _operation(action: str, names: Iterable[str]) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/chat/messages/{name}"} for name in names]
    return {"action": action, "channel": {"$ref": "#/channels/chat"}, "messages": messages}


def _closing() -> str:
    return "Subprotocol chatserver.v1. Close codes: " + "; ".join(f"{each.code} {each.meaning}" for each in PUBLISHED)
