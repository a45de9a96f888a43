"""Samples: JSON of a wanted form, with which the demo model answers. Of a schema it knows the simple keywords."""

from collections.abc import Iterator
from typing import Any

import msgspec

SIZE = 300
"""Values in a sample: a schema may refer to itself."""

OPTIONAL_LEVELS = 8
"""Below so many schemas in schemas, a sample has only what is required."""

_SIMPLE: dict[str, Any] = {"string": "demo", "integer": 1, "number": 1.5, "boolean": True, "null": None, "array": []}


def sample(response_format: dict[str, Any] | None) -> str | None:
    """JSON text of the form; None: any text will do."""
    match response_format:
        case {"type": "json_object"}:
            value: Any = {"answer": "demo"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            value = _of(schema, schema, iter(range(SIZE)), OPTIONAL_LEVELS)
        case _:
            return None
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _of(schema: Any, root: dict[str, Any], room: Iterator[int], levels: int) -> Any:
    value: Any = {}
    match schema if next(room, None) is not None else {"type": "null"}:
        case {"const": known} | {"enum": [known, *_]} | {"default": known}:
            value = known
        case {"$ref": str(reference)}:
            value = _of(_at(root, reference), root, room, levels - 1)
        case {"anyOf": [first, *_]} | {"oneOf": [first, *_]} | {"allOf": [first, *_]}:
            value = _of(first, root, room, levels - 1)
        case {"properties": dict(properties)}:
            required = properties if levels > 0 else schema.get("required", ())
            value = {name: _of(each, root, room, levels - 1) for name, each in properties.items() if name in required}
        case {"type": "array", "items": items, "minItems": int(count)} if count > 0:
            value = [_of(items, root, room, levels - 1)]
        case {"type": str(kind)} | {"type": [str(kind), *_]}:
            value = _SIMPLE.get(kind, {})
    return value


def _at(root: Any, reference: str) -> Any:
    for name in reference.removeprefix("#").strip("/").split("/"):
        root = root.get(name, {}) if isinstance(root, dict) and name else root
    return root
