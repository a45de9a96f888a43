"""Images and files over the wire: stored once, told again with the session, over both transports and both databases."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.commands import parts_of
from chatserver.parts import ImagePart, TextPart
from chatserver.sessions import Sessions
from chatserver.sessions.database import Database
from tests.clients import BOTH, SSE, RefusedError, Transport, documents_of, request
from tests.databases import answered, ask, ended
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.pictures import GIF, at, attached, inline, shown, text, told
from tests.test_quotas import counted, looked_up

pytestmark = pytest.mark.anyio

SECONDS = 30.0
each_transport = pytest.mark.parametrize("transport", BOTH, ids=str)
MESSAGE = [text("What is it?"), inline(), attached(), at("https://example.org/a.png")]
TOLD = [told(part) for part in MESSAGE]
SHOWN = [shown(part) for part in MESSAGE]


async def answer(server: LiveServer, transport: Transport, body: dict[str, Any]) -> dict[str, Any]:
    """The run's first event, once the run is over."""
    with anyio.fail_after(SECONDS):
        first, *_, last = map(json.loads, await documents_of(await transport.start(server, body)))
    assert last["type"] == "done"
    found: dict[str, Any] = first
    return found


def users(upstream: FakeUpstream) -> list[Any]:
    """What the newest request tells of the user."""
    return [each["content"] for each in upstream.requests[-1].json["messages"] if each["role"] == "user"]


async def messages(server: LiveServer, session_id: str, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await request(server, "GET", f"/chat/sessions/{session_id}{query}")).json["messages"]
    return found


@each_transport
async def test_parts_are_stored_and_told_again(transport: Transport, tmp_path: Path) -> None:
    """In later messages, edited, answered again, on another branch, and after a restart."""
    async with FakeUpstream() as upstream:
        for _ in range(5):
            upstream.script(*say("It is a pixel."))
        async with live_server(upstream.url, directory=tmp_path) as server:
            first = await answer(server, transport, {"message": MESSAGE, "session_id": "s"})
            assert users(upstream) == [TOLD]
            await answer(server, transport, {"message": "And its color?", "session_id": "s"})
            assert users(upstream) == [TOLD, "And its color?"]
        async with live_server(upstream.url, directory=tmp_path) as server:
            question, _, second, _ = await messages(server, "s")
            assert (question["content"], question["parts"]) == ("What is it?", SHOWN)
            assert second["parts"] == [text("And its color?")]
            await answer(server, transport, {"regenerate": first["user_message_id"]})
            assert users(upstream) == [TOLD]
            edited = [text("Draw it anew."), *MESSAGE[1:2]]
            await answer(server, transport, {"message": edited, "regenerate": first["user_message_id"]})
            assert users(upstream) == [[told(part) for part in edited]]
            await answer(server, transport, {"message": "Go on", "parent_id": first["message_id"]})
            assert users(upstream) == [TOLD, "Go on"]
            everything = await messages(server, "s", "?branches=all")
            assert [each["parts"] for each in everything if each["role"] == "user"] == [
                SHOWN,
                [text("And its color?")],
                [shown(part) for part in edited],
                [text("Go on")],
            ]


@each_transport
async def test_bad_parts_are_refused_and_start_nothing(transport: Transport) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, max_inline_bytes=1000) as server:
        for message, status, pointer in (
            ([], 400, "/message"),
            ([inline() | {"data": "x"}], 400, "/message/0/data"),
            ([text("x"), at("file:///etc/passwd")], 400, "/message/1/url"),
            ([inline("image/png", 1002)], 413, None),
        ):
            with pytest.raises(RefusedError) as refused:
                await transport.start(server, {"message": message, "session_id": "s"})
            assert refused.value.status == status
            if pointer is not None:
                assert [each["pointer"] for each in refused.value.problem["errors"]] == [pointer]
        assert (await request(server, "GET", "/chat/sessions")).json["sessions"] == []
        assert upstream.requests == []


async def test_a_key_knows_its_parts_again() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        upstream.script(*say("Hi"))
        body = {"message": MESSAGE, "idempotency_key": "k"}
        first = await answer(server, SSE, body)
        assert (await answer(server, BOTH[1], body))["run_id"] == first["run_id"]
        with pytest.raises(RefusedError) as refused:
            await SSE.start(server, body | {"message": MESSAGE[:-1]})
        assert refused.value.status == 422


async def test_a_message_as_large_as_allowed_comes_back_whole_and_pages_stay_bounded() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        large = [inline("image/png", 500_000)]
        for _ in range(4):
            upstream.script(*say("Hi"))
            await answer(server, SSE, {"message": large, "session_id": "s"})
        page = await request(server, "GET", "/chat/sessions/s")
        assert len(page.body) < 1024 * 1024 + 700_000 + 10_000
        found = page.json["messages"]
        assert page.json["cursor"] == found[0]["message_id"]
        whole = [shown(part) for part in large]
        assert [each["parts"] for each in found if each["role"] == "user"] == [whole] * (len(found) // 2)


async def test_the_title_of_a_message_without_text_is_what_it_shows() -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        asked = {"a": [inline()], "b": [attached(name="terms.pdf")], "c": [inline(), text("\n Hi ")]}
        for session_id, message in asked.items():
            upstream.script(*say("Hi"))
            await answer(server, SSE, {"message": message, "session_id": session_id})
        sessions = (await request(server, "GET", "/chat/sessions")).json["sessions"]
        assert {each["session_id"]: each["title"] for each in sessions} == {"a": "Image", "b": "terms.pdf", "c": "Hi"}


# ---- in the store ---------------------------------------------------------------------------------------------------


async def test_inline_data_counts_as_stored_bytes(sessions: Sessions, database: Database) -> None:
    image = ImagePart(data=GIF * 100, media_type="image/gif")
    begun = await ended(sessions, await ask(sessions, (TextPart("Look"), image), session_id="s"))  # type: ignore[arg-type]
    await answered(sessions, session_id="s")
    now = await database.read(counted)
    assert now == await database.read(looked_up)
    assert now["ann"][1] > len(GIF) * 100
    assert [each.parts for each in begun.past] == [(TextPart("Look"), image)]
    (old, *_) = await sessions.context(begun.user_message_id, 10**9)
    assert old.parts == (TextPart("Look"), image)
    assert parts_of("x") == (TextPart("x"),)
