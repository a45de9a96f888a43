"""What a server lists, as tools that a model can be told of: under valid names, within limits, with valid schemas."""

import re
from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import Any

from mcp import types
from mcp.types.methods import parse_server_result
from msgspec import Struct
from pydantic import ValidationError

from chatserver.dialogue import QUESTION, RESERVED
from chatserver.events import to_json
from chatserver.json_schema import PLACE_CHARS, SCHEMA_BYTES_LIMIT, mistake_in_schema
from chatserver.providers.clean_text import cleaned
from chatserver.strict_json import NESTING_LIMIT, is_nested_too_deeply
from chatserver.tools.results import words_of

TOOLS_LIMIT = 128
"""Tools of one MCP server. OpenAI's server takes no more in a request."""

DESCRIPTION_CHARS_LIMIT = 4096
"""A tool's description. A model reads it in every turn."""

ID_CHARS = 64
DIGEST_CHARS = 6
_OTHER = re.compile(r"[^A-Za-z0-9_-]")


class Listed(Struct, frozen=True):
    """A tool of a server: ``id`` is its name here, ``name`` its name there."""

    id: str
    name: str
    description: str
    parameters: dict[str, Any]
    is_destructive: bool
    """As the specification has it: a tool that says nothing of itself may destroy."""


def sifted(page: dict[str, Any], version: str) -> list[str]:
    """Leave out of a page of a list what is no tool in this version of MCP: a sentence for the log for each.

    Because of one of them the SDK would refuse the whole page.
    """
    kept: list[Any] = []
    complaints: list[str] = []
    for tool in page["tools"][: TOOLS_LIMIT + 1]:
        try:
            parse_server_result("tools/list", version, page | {"tools": [tool]})
            kept.append(tool)
        except ValidationError as error:
            name = tool.get("name") if isinstance(tool, dict) else tool
            place = ".".join(map(str, ("tool", *error.errors()[0]["loc"][2:])))
            complaints.append(f"leaves out the tool {str(name)[:ID_CHARS]!r}: it is none, at {place[:PLACE_CHARS]}")
    page["tools"] = kept
    return complaints


def listed(tools: Iterable[types.Tool], prefix: str) -> tuple[list[Listed], list[str]]:
    """The tools that can be offered, and for each other one a sentence for the log."""
    found: dict[str, Listed] = {}
    names: set[str] = set()
    complaints: list[str] = []
    for tool in tools:
        id = _id(f"{prefix}__{tool.name}" if prefix else tool.name, found)
        problem = RESERVED if id == QUESTION else _problem(tool, names)
        if problem is None:
            description = cleaned(tool.description or "")[:DESCRIPTION_CHARS_LIMIT]
            found[id] = Listed(id, tool.name, description, tool.input_schema, _is_destructive(tool.annotations))
            names.add(tool.name)
        else:
            complaints.append(f"leaves out the tool {tool.name[:ID_CHARS]!r}: {problem}")
    return list(found.values()), complaints


def _problem(tool: types.Tool, names: Collection[str]) -> str | None:
    """Why a tool cannot be offered."""
    if len(names) >= TOOLS_LIMIT:
        return f"there are over {TOOLS_LIMIT}"
    if not tool.name or tool.name in names:
        return "it has no name of its own"
    return _problem_of_schema(tool.input_schema)


def _problem_of_schema(schema: dict[str, Any]) -> str | None:
    """Why a schema cannot be offered. A model server may refuse a request with all its tools for a wrong one."""
    try:
        encoded = to_json(schema)
        if len(encoded) > SCHEMA_BYTES_LIMIT:
            return f"its schema is over {SCHEMA_BYTES_LIMIT} bytes"
        if is_nested_too_deeply(encoded):
            return f"its schema is nested over {NESTING_LIMIT} levels"
        if mistake := mistake_in_schema(schema):
            return f"its schema is none: {mistake}"
    except (TypeError, ValueError, RecursionError) as error:
        return words_of(error)
    return None if schema.get("type") == "object" else "its schema is not that of an object"


def _id(name: str, taken: Collection[str]) -> str:
    """A valid name for a tool that no other one has. What must be changed becomes `_`, and the rest is cut off."""
    id = _OTHER.sub("_", name)
    if len(id) > ID_CHARS or id in taken:
        id = f"{id[: ID_CHARS - DIGEST_CHARS - 1]}_{sha256(name.encode(errors='replace')).hexdigest()[:DIGEST_CHARS]}"
    return id


def _is_destructive(annotations: types.ToolAnnotations | None) -> bool:
    if annotations is None:
        return True
    return not annotations.read_only_hint and annotations.destructive_hint is not False
