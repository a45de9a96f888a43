"""Structured output: passed on as it was asked for, checked at the end, at a cost that has a bound."""

import json
import re
from typing import Any

import anyio
import msgspec
import pytest

from chatserver.app import create_app
from chatserver.commands import ChatRequest, checked_request
from chatserver.dialogue import UserMessage
from chatserver.errors import BadRequest, TooLarge, UpstreamError
from chatserver.json_schema import SCHEMA_BYTES_LIMIT, check_schemas
from chatserver.providers import ModelRequest
from chatserver.providers.chat_completions.api import ChatCompletions
from chatserver.providers.responses.api import Responses
from chatserver.providers.samples import sample
from chatserver.settings import Settings
from chatserver.strict_json import convert
from chatserver.structured import ResponseFormat, check_answer
from tests.clients import BOTH, SSE, RefusedError, Transport, documents_of, request
from tests.fake_upstream import FakeUpstream, call, refuse, say
from tests.live import live_server
from tests.slow_tools import REFERENCE

pytestmark = pytest.mark.anyio

CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "twins": {"type": "array", "items": {"$ref": "#/$defs/twin"}}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"twin": {"enum": ["Oslo", "Turku"]}},
}
TREE = {"type": "object", "properties": {"name": {"type": "string"}, "child": {"$ref": "#"}}, "required": ["name"]}
EXPONENTIAL = {
    "$ref": "#/$defs/a0",
    "$defs": {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)} | {"a40": {"type": "null"}},
}
CATASTROPHE = {"pattern": "(a+)+$", "patternProperties": {"(a+)+$": {}}, "additionalProperties": False}
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def format_of(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "city", "schema": schema} | fields}


def taken(wanted: Any) -> ResponseFormat | None:
    asked = convert(json.dumps({"message": "x", "response_format": wanted}), ChatRequest)
    check_schemas(asked.schemas())
    return checked_request(asked, 100, 100).response_format


@pytest.mark.parametrize(
    "wanted", [{"type": "text"}, {"type": "json_object"}, format_of(CITY), format_of({}, strict=True, description="A")]
)
def test_a_format_goes_on_as_it_was_given(wanted: dict[str, Any]) -> None:
    assert msgspec.json.decode(msgspec.json.encode(taken(wanted))) == wanted


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ("json", "/response_format"),
        ([], "/response_format"),
        ({"type": "xml"}, "/response_format/type"),
        ({"type": "json_object", "a": 1}, "/response_format/a"),
        ({"type": "json_schema"}, "/response_format"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "/response_format/json_schema"),
        (format_of(CITY, name="a b"), "/response_format/json_schema/name"),
        (format_of(CITY, strict="yes"), "/response_format/json_schema/strict"),
        (format_of([]), "/response_format/json_schema/schema"),
        (format_of({"type": "city"}), "/response_format/json_schema/schema"),
        (format_of({"items": {"$ref": "#/$defs/nowhere"}}), "/response_format/json_schema/schema"),
    ],
    ids=str,
)
def test_a_format_that_is_none_is_pointed_at(wanted: Any, pointer: str) -> None:
    with pytest.raises(BadRequest) as refused:
        taken(wanted)
    assert refused.value.pointer == pointer


def test_a_schema_has_a_limit() -> None:
    with pytest.raises(TooLarge):
        taken(format_of({"title": "x" * SCHEMA_BYTES_LIMIT}))


@pytest.mark.parametrize(
    ("schema", "answer", "mistake"),
    [
        (CITY, '{"name": "Bergen", "twins": ["Turku"]}', None),
        (CITY, '{"name": 5}', "at $.name it breaks `type`"),
        (CITY, '{"name": "Bergen", "twins": ["Turku", "Rome"]}', "at $.twins[1] it breaks `enum`"),
        (CITY, '{"name": "Bergen", "more": 1}', "at $ it breaks `additionalProperties`"),
        (CITY, "Bergen", "it is no JSON"),
        (CITY, '{"name": NaN}', "it is no JSON"),
        (CITY, "", "it is no JSON"),
        ({"uniqueItems": True}, "[1, 2, 1]", "at $ it breaks `uniqueItems`"),
        (EXPONENTIAL, "null", "it takes too long to check"),
        ({"$schema": DRAFT} | EXPONENTIAL, "null", "it takes too long to check"),
        (CATASTROPHE, json.dumps("a" * 60 + "b"), None),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$schema": DRAFT} | CATASTROPHE}}, json.dumps("a" * 60 + "b"), None),
        (CATASTROPHE, json.dumps({"a" * 60 + "b": 1}), None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_an_answer_fits_or_is_told_where_it_does_not(schema: Any, answer: str, mistake: str | None) -> None:
    if mistake is None:
        return await check_answer(taken(format_of(schema)), answer)
    with pytest.raises(UpstreamError) as failed:
        await check_answer(taken(format_of(schema)), answer)
    assert (failed.value.code, failed.value.message.partition(": ")[2]) == ("llm_error", mistake)


@pytest.mark.parametrize("schema", [CITY, TREE, {"type": ["integer", "null"]}, {"items": {"$ref": "#"}}])
async def test_the_demo_model_knows_simple_schemas(schema: dict[str, Any]) -> None:
    text = sample(format_of(schema))
    assert text is not None
    await check_answer(taken(format_of(schema)), text)


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_an_answer_of_another_form_fails_its_run_and_is_kept(transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, tools=REFERENCE) as server:
        last: dict[str, Any] = {}
        for said, end in (('{"name": "Bergen"}', "done"), ('{"name": 5}', "error")):
            upstream.script(*call("add", {"a": 1, "b": 2}))
            upstream.script(*say(said))
            body = {"message": "A city", "session_id": end, "response_format": format_of(CITY, strict=True)}
            with anyio.fail_after(30):
                *_, last = map(json.loads, await documents_of(await transport.start(server, body)))
            assert last["type"] == end
            assert upstream.requests[-1].json["response_format"] == format_of(CITY, strict=True)
            *_, kept = (await request(server, "GET", f"/chat/sessions/{end}")).json["messages"]
            assert kept["content"] == said
        assert (last["code"], last["retryable"]) == ("llm_error", False)
        assert "$.name" in last["message"]
        with pytest.raises(RefusedError) as refused:
            await transport.start(server, {"message": "x", "response_format": format_of({"type": 5})})
        assert refused.value.status == 400


async def test_a_server_that_takes_no_format_is_told_of() -> None:
    words = "response_format.type `json_schema` is unavailable now"
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(*refuse(400, {"error": {"message": words}}))
        body = {"message": "A city", "response_format": format_of(CITY)}
        *_, last = map(json.loads, await documents_of(await SSE.start(server, body)))
        assert last["message"].startswith("the model server refuses `response_format`")


def test_the_schema_of_a_body_refers_to_nothing_that_is_not_there() -> None:
    document = json.dumps(create_app(Settings()).openapi_schema.to_schema(), default=str)
    there = json.loads(document)["components"]["schemas"]
    references = set(re.findall(r'"\$ref": "([^"]+)"', document))
    assert references <= {f"#/components/schemas/{name}" for name in there} and len(references) > 5


def test_each_api_has_the_form_in_its_own_words() -> None:
    wanted = taken(format_of(CITY, strict=True))
    asked = ModelRequest(model="m", messages=[UserMessage("A city")], response_format=wanted)
    body = msgspec.json.decode(Responses(is_foreign=False).body(asked, frozenset()))
    assert body["text"] == {"format": {"type": "json_schema", "name": "city", "strict": True, "schema": CITY}}
    body = msgspec.json.decode(ChatCompletions(is_foreign=False).body(asked, frozenset()))
    assert body["response_format"] == format_of(CITY, strict=True)
