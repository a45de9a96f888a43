"""JSON Schemas of clients, tools and servers: what is none is refused where it is first seen, at a bounded cost."""

from typing import Any

import msgspec
import pytest

from chatserver.errors import BadRequest, SettingsError, TooLarge
from chatserver.json_schema import CHECK_STEPS_LIMIT, SCHEMA_BYTES_LIMIT, check_schemas, mistake_in, mistake_in_schema
from chatserver.questions import check_form
from chatserver.tools.loading import tools_by_name
from chatserver.tools.results import ToolFailed
from tests.clients import BOTH, RefusedError, Transport
from tests.counting import calls_of
from tests.fake_upstream import FakeUpstream
from tests.live import live_server

pytestmark = pytest.mark.anyio

NOWHERE: Any = {"properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"properties": {"child": {"$ref": "#"}}},
        {"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        {"$dynamicAnchor": "node", "properties": {"child": {"$dynamicRef": "#node"}}},
        {"$id": "https://example.org/a", "items": {"$ref": "#c"}, "$defs": {"x": {"$anchor": "c"}}},
        {"definitions": {"a": {"type": "string"}}, "items": {"$ref": "#/definitions/a"}},
        {"a/b": {"c%d": {}}, "$ref": "#/a~1b/c%25d"},
        {"allOf": [{}], "$defs": {"a": {"$ref": "#/allOf/0"}}},
        {"$defs": {"a": {"$id": "https://example.org/b", "$ref": "#/$defs/c", "$defs": {"c": {}}}}},
        {"$schema": DRAFT_7, "items": {"$schema": DRAFT_7}},
        {"properties": {"$ref": {"type": "string"}, "$dynamicRef": True}, "required": ["$ref"]},
        {name: {"$ref": "https://example.org/"} for name in ("const", "default", "x-own")},
        {name: [{"$ref": "#/nowhere"}] for name in ("enum", "examples")},
        {"dependentRequired": {"$ref": ["a"]}},
    ],
    ids=str,
)
def test_a_schema_may_refer_to_itself_and_hold_values_that_look_like_references(schema: Any) -> None:
    assert mistake_in_schema(schema) is None
    assert mistake_in(schema, None) in (None, "at $ it breaks `const`", "at $ it breaks `enum`")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "city"}, "at $.type it breaks"),
        ({"items": [{}]}, "at $.items it breaks"),
        ({"type": "object", "properties": []}, "at $.properties it breaks"),
        ({"type": "object", "required": {}}, "at $.required it breaks"),
        ({"$ref": "#/nowhere"}, '`{"$ref":"#/nowhere"}` leads to no schema'),
        (NOWHERE, "leads to no schema"),
        ({"$ref": "#anchor"}, "leads to no schema"),
        ({"$dynamicRef": "#anchor"}, '`{"$dynamicRef":"#anchor"}` leads to no schema'),
        *(({"if": {keyword: {"$ref": "#/a"}}}, "leads to no schema") for keyword in ("not", "contentSchema", "items")),
        *(({keyword: {"a": {"$ref": "#/a"}}}, "leads to no schema") for keyword in ("$defs", "patternProperties")),
        ({"prefixItems": [{"$ref": "#/a"}]}, "leads to no schema"),
        ({"$defs": {"a": {"$id": "https://example.org/b", "$ref": "#/$defs/a"}}}, "leads to no schema"),
        ({"$schema": DRAFT_7, "items": {"$schema": DRAFT_7, "$ref": "#/a"}}, "leads to no schema"),
        ({"$ref": "https://example.org/a"}, "leads to no schema"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "leads to no schema"),
        ({"$id": "https://example.org/a", "$ref": "b"}, "leads to no schema"),
        ({"title": "a", "$ref": "#/title"}, "leads to no schema"),
        ({"title": "a", "$ref": "#/title/0"}, "leads to no schema"),
        ({"minimum": 1, "$ref": "#/minimum/a"}, "leads to no schema"),
        ({"allOf": [{}], "$ref": "#/allOf/a"}, "leads to no schema"),
        ({"$ref": "#/a", "a": {"type": "city"}}, "at $.type it breaks"),
        ({"$ref": "#/a", "a": {"items": {"$ref": "#/b"}}}, "leads to no schema"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {"$ref": "#"}}}}, "refers to itself without end"),
        ({"dependentSchemas": {"a": {"$dynamicRef": "#a"}}, "$dynamicAnchor": "a"}, "refers to itself without end"),
        ({"$id": "http://[", "items": {}}, "cannot be followed"),
        ({"allOf": [{}] * CHECK_STEPS_LIMIT}, "takes too long"),
        ({"default": ...}, "no JSON"),
        (None, "at $ it breaks `type`"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_schema_is_told(schema: Any, words: str) -> None:
    assert words in str(mistake_in_schema(schema))


def test_a_long_reference_is_told_in_part() -> None:
    assert len(str(mistake_in_schema({"$ref": "#/" + "é" * 5000}))) < 300


def test_a_schema_nested_in_itself_as_a_value_of_python_is_none() -> None:
    schema: dict[str, Any] = {}
    schema["not"] = schema
    assert mistake_in_schema(schema) == "it is no JSON"


def test_schemas_of_a_request_have_a_size_each() -> None:
    check_schemas({f"/{number}": {"title": "x" * (SCHEMA_BYTES_LIMIT - 12)} for number in range(3)})
    with pytest.raises(TooLarge, match="/b"):
        check_schemas({"/a": {}, "/b": {"title": "x" * (SCHEMA_BYTES_LIMIT - 11)}})


def test_an_anchor_is_found_without_a_walk_through_the_whole_schema() -> None:
    def cost(definitions: int, items: int) -> int:
        others: dict[str, Any] = {f"x{number}": {} for number in range(definitions)}
        schema = {"items": {"$ref": "#a"}, "$defs": others | {"a": {"$anchor": "a"}}}
        return calls_of(lambda: mistake_in(schema, [None] * items))

    cost(1, 1)  # What is imported then is not counted.
    assert cost(500, 40) - cost(500, 20) <= 2 * (cost(1, 40) - cost(1, 20))


def test_a_schema_that_is_known_is_not_checked_again() -> None:
    schema = {"properties": {f"a{number}": {"type": "string"} for number in range(40)}}
    mistake_in_schema(schema)
    assert calls_of(lambda: mistake_in_schema(schema)) < 10


class Fetching:
    name, description = "fetch", ""
    parameters = msgspec.json.decode(b'{"type": "object", "properties": {"a": {"$ref": "https://example.org/a"}}}')

    async def call(self, args: dict[str, Any], context: Any) -> None:
        """Nothing."""


def test_a_tool_whose_schema_leads_nowhere_does_not_start() -> None:
    with pytest.raises(SettingsError, match=r"tool `fetch`.*leads to no schema"):
        tools_by_name([Fetching()])


def test_a_question_whose_form_leads_nowhere_is_refused_to_its_tool() -> None:
    with pytest.raises(ToolFailed, match="leads to no schema"):
        check_form({"type": "object", "allOf": [{"$ref": "#/$defs/a"}]})


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_a_request_with_what_is_no_schema_begins_no_run(transport: Transport) -> None:
    wrong = [NOWHERE, {"$ref": "https://example.org/a"}, {"properties": {"a": {"type": 5}}}]
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        for each in wrong:
            schema = {"type": "object"} | each
            tools = [{"name": "a", "parameters": {"type": "object"}}, {"name": "b", "parameters": schema}]
            wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            for fields, pointer in (
                ({"tools": tools}, "/tools/1/parameters"),
                ({"response_format": wanted}, "/response_format/json_schema/schema"),
            ):
                with pytest.raises(RefusedError) as refused:
                    await transport.start(server, {"message": "x", "session_id": "s"} | fields)
                assert (refused.value.status, refused.value.code) == (400, "bad_request")
                (problem,) = refused.value.problem["errors"]
                assert problem["pointer"] == pointer and problem["detail"].startswith("the schema is none: ")
        assert upstream.requests == []


def test_the_first_mistake_of_a_request_is_pointed_at() -> None:
    with pytest.raises(BadRequest) as refused:
        check_schemas({"/a": {}, "/b": {"$ref": "#/x"}, "/c": {"type": 1}})
    assert refused.value.pointer == "/b"
