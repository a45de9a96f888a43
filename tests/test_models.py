"""Which models a request may name, which one answers where it names none, and what if the upstream has not got it."""

import json
from typing import Any

import anyio
import pytest

from chatserver.settings import Settings
from chatserver.settings.loading import load
from tests.clients import SSE, WS, Transport, WsReader, documents_of, request
from tests.fake_upstream import JSON_BODY, Cut, FakeUpstream, Hang, Raw, Status, Step, refuse, say
from tests.live import LiveServer, live_server
from tests.users import guarded_server, of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_certificates")]

WAIT_SECONDS = 20.0
OFFERED: dict[str, Any] = {"model": "default", "models": ("big", "default", "small")}


async def answered_by(server: LiveServer, upstream: FakeUpstream, transport: Transport, **body: Any) -> str:
    """The model that the upstream was asked for, which is the one that `start` names."""
    with anyio.fail_after(WAIT_SECONDS):
        documents = await documents_of(await transport.start(server, {"message": "x"} | body))
    model: str = json.loads(documents[0])["model"]
    assert upstream.requests[-1].json["model"] == model
    return model


async def error_of(server: LiveServer, transport: Transport) -> dict[str, Any]:
    """The `error` that a run ends with."""
    with anyio.fail_after(WAIT_SECONDS):
        documents = await documents_of(await transport.start(server, {"message": "x"}))
    error: dict[str, Any] = json.loads(documents[-1])
    return error


@pytest.mark.parametrize("transport", [SSE, WS], ids=str)
async def test_a_request_may_name_the_default_model_and_those_offered(transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, **OFFERED) as server:
        upstream.always(*say("x"))
        assert await answered_by(server, upstream, transport) == "default"
        for model in ("default", "big", "small"):
            assert await answered_by(server, upstream, transport, model=model) == model


@pytest.mark.parametrize("model", ["other", "Big", "big ", "bi", "big,small", "*"])
async def test_any_other_model_is_refused_before_anything_is_asked(model: str) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, **OFFERED) as server:
        body = {"message": "x", "model": model, "session_id": "s"}
        with anyio.fail_after(WAIT_SECONDS):
            for path in ("/chat/stream", "/chat/runs"):
                refused = await request(server, "POST", path, body)
                assert (refused.status, refused.json["code"]) == (400, "bad_request")
                assert [each["pointer"] for each in refused.json["errors"]] == ["/model"]
            async with await WsReader.connect(server) as reader:
                rejected = await reader.command(type="send", **body)
                assert (rejected["type"], rejected["status"], rejected["code"]) == ("rejected", 400, "bad_request")
                assert [each["pointer"] for each in rejected["errors"]] == ["/model"]
            assert (await request(server, "GET", "/chat/sessions/s")).status == 404
        assert upstream.requests == []


async def test_where_nothing_is_said_any_model_may_be_named() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, model="default") as server:
        upstream.always(*say("x"))
        assert await answered_by(server, upstream, SSE, model="any/thing:at-all") == "any/thing:at-all"
        assert (await request(server, "GET", "/chat/models")).json == {
            "models": [{"model": "default", "is_default": True}]
        }


async def test_the_models_are_listed_for_users() -> None:
    async with guarded_server(None, **OFFERED) as server:
        assert (await request(server, "GET", "/chat/models")).status == 401
        listed = await request(server, "GET", "/chat/models", headers=of("ann"))
    assert listed.json == {
        "models": [
            {"model": "default", "is_default": True},
            {"model": "big", "is_default": False},
            {"model": "small", "is_default": False},
        ]
    }


def test_models_are_separated_by_commas() -> None:
    settings = load({"OPENAI_API_KEY": "k", "CHATSERVER_MODELS": "a/b:c , d,, a/b:c"})
    assert settings.models_offered == (Settings().model, "a/b:c", "d")


# ---- what the upstream offers ---------------------------------------------------------------------------------------


def document(tree: Any) -> list[Step]:
    body = json.dumps(tree).encode()
    return [Status(200, JSON_BODY, length=len(body)), Raw(body)]


def listed(*names: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


MANY = [f"m{number}" for number in range(25)]
LISTS = {
    "another": (listed("llama3.2", "qwen3"), "llama3.2, qwen3"),
    "many": (listed(*MANY), f"{', '.join(MANY[:10])} and 15 more"),
    "twice": (listed("a", "b", "a"), "a, b"),
    "no envelope": ([{"id": "a"}, {"id": "b"}], "a, b"),
    "by name": ({"models": [{"name": "a"}]}, "a"),
    "odd": ({"data": [None, 5, "x", {}, {"id": None}, {"id": 7}, {"id": "a"}]}, "a"),
    "hostile": (listed("a\nb\x1b[2J" + "x" * 200), "a\\nb\\x1b[2J" + "x" * 93),
}


LACKING = {"error": {"message": "The model `mine` does not exist", "code": "model_not_found"}}


@pytest.mark.parametrize(("tree", "shown"), LISTS.values(), ids=LISTS)
async def test_a_model_that_the_upstream_has_not_got_is_said_with_those_that_it_has(
    tree: Any, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(*refuse(404, LACKING))
        upstream.script(*document(tree))
        error = await error_of(server, SSE)
        asked = upstream.requests[1]
    assert (asked.method, asked.path) == ("GET", "/v1/models")
    assert asked.headers["authorization"] == upstream.requests[0].headers["authorization"]
    assert error["code"] == "llm_error" and error["message"].endswith(f"CHATSERVER_MODEL; the server offers {shown}")
    line = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][-1]
    assert line.endswith(f"the model server has no gpt-4o-mini; CHATSERVER_MODEL may be one of {shown}")


NO_LISTS: dict[str, list[Step]] = {
    "it has it": document(listed("other", "gpt-4o-mini")),
    "none": document(listed()),
    "no list": document({"data": {"id": "a"}}),
    "null": document(None),
    "no JSON": [Status(200, JSON_BODY), Raw(b"<html>")],
    "deep": [Raw(b"[" * 100_000)],
    "unknown": refuse(404),
    "refused": refuse(401),
    "broken": refuse(500),
    "cut": [Status(200, JSON_BODY), Raw(b'{"data": ['), Cut()],
    "elsewhere": [Status(307, (("Location", "http://localhost:1/v1/models"),), length=0)],
    "without end": [Raw(b" " * 65536)] * 100,
}


@pytest.mark.parametrize("steps", NO_LISTS.values(), ids=NO_LISTS)
@pytest.mark.parametrize("transport", [SSE, WS], ids=str)
async def test_where_nothing_can_be_said_nothing_is(transport: Transport, steps: list[Step]) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(*refuse(404, LACKING))
        upstream.script(*steps)
        error = await error_of(server, transport)
        assert len(upstream.requests) == 2
    assert error["code"] == "llm_error" and error["message"].endswith("check `model`, or CHATSERVER_MODEL")


async def test_a_list_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatserver.providers.models.LIST_SECONDS", 0.05)
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(*refuse(404, LACKING))
        upstream.script(Status(200, JSON_BODY), Raw(b"["), Hang())
        assert (await error_of(server, SSE))["message"].endswith("check `model`, or CHATSERVER_MODEL")
        with anyio.fail_after(WAIT_SECONDS):
            await upstream.closed()


async def test_no_model_is_looked_for_where_the_upstream_answers() -> None:
    """Many servers answer to names that they do not list."""
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.always(*say("x"))
        assert await answered_by(server, upstream, SSE) == "gpt-4o-mini"
        assert [asked.method for asked in upstream.requests] == ["POST"]
