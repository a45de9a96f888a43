"""Which models a request may name, and which one answers where it names none."""

import json
from typing import Any

import anyio
import pytest

from chatserver.settings import Settings, load
from tests.clients import SSE, WS, Transport, WsReader, documents_of, request
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.users import guarded_server, of

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
OFFERED: dict[str, Any] = {"model": "default", "models": ("big", "default", "small")}


async def answered_by(server: LiveServer, upstream: FakeUpstream, transport: Transport, **body: Any) -> str:
    """The model that the upstream was asked for, which is the one that `start` names."""
    with anyio.fail_after(WAIT_SECONDS):
        documents = await documents_of(await transport.start(server, {"message": "x"} | body))
    model: str = json.loads(documents[0])["model"]
    assert upstream.requests[-1].json["model"] == model
    return model


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
