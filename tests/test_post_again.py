"""Clients that ask again with `Last-Event-ID`: stock readers of SSE repeat their whole request, a POST too."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from tests.clients import HttpReader, SseReader, get_run, request
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import LiveServer, live_server

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
KEYED = {"message": "x", "idempotency_key": "once"}


@dataclass(frozen=True)
class Place:
    server: LiveServer
    upstream: FakeUpstream

    async def post(self, body: dict[str, Any], last: str | None) -> SseReader:
        return await SseReader.post(self.server, "/chat/stream", body, {"Last-Event-ID": last})

    async def refusal(self, body: dict[str, Any], last: str) -> tuple[int, str]:
        answer = await request(self.server, "POST", "/chat/stream", body, {"Last-Event-ID": last})
        return answer.status, answer.json["code"]


@pytest.fixture
async def place(anyio_backend: str) -> AsyncIterator[Place]:
    async with FakeUpstream() as upstream, live_server(upstream.url) as server:
        yield Place(server, upstream)


async def ids(reader: SseReader) -> list[str | None]:
    with anyio.fail_after(WAIT_SECONDS):
        while await reader.next_event():
            pass
    return [event.id for event in reader.events]


async def test_the_run_of_the_key_is_read_on(place: Place) -> None:
    gate = anyio.Event()
    place.upstream.script(token("A"), Gate(gate), *say("nswer", 2))
    with anyio.fail_after(WAIT_SECONDS):
        async with await place.post(KEYED, None) as first:
            await first.next_event()
            await first.next_event()
        again = await place.post(KEYED, "1")
        assert (event := await again.next_event()) and event.id == "2"
    gate.set()
    assert await ids(again) == ["2", "3", "4", "5"]
    for last in ("3", " 3 ", "\t3"):  # When the run is over too.
        assert await ids(await place.post(KEYED, last)) == ["4", "5"]
    async with await HttpReader.post(place.server, "/chat/stream", KEYED, {"Last-Event-ID": "5"}) as reader:
        assert reader.status == 204
    assert len(place.upstream.requests) == 1


@pytest.mark.parametrize("last", ["", " ", "0"])
async def test_who_has_read_nothing_starts_a_run(place: Place, last: str) -> None:
    place.upstream.script(*say("x"))
    assert await ids(await place.post({"message": "x"}, last)) == ["1", "2", "3"]


async def test_without_a_key_nothing_is_started(place: Place) -> None:
    assert await place.refusal({"message": "x"}, "2") == (400, "bad_request")
    answer = await request(place.server, "POST", "/chat/stream", {"message": "x"}, {"Last-Event-ID": "2"})
    assert answer.json["errors"][0]["pointer"] == "/idempotency_key"
    assert place.upstream.requests == []


async def test_a_key_that_has_started_nothing_starts_nothing(place: Place) -> None:
    assert await place.refusal(KEYED, "2") == (400, "bad_cursor")
    assert place.upstream.requests == []


async def test_what_is_wrong_is_refused_as_ever(place: Place) -> None:
    place.upstream.script(*say("x"))
    await ids(await place.post(KEYED, None))
    assert await place.refusal(KEYED, "4") == (400, "bad_cursor")
    assert await place.refusal(KEYED, "two") == (400, "bad_cursor")
    assert await place.refusal(KEYED | {"message": "y"}, "2") == (422, "idempotency_key_reused")
    assert len(place.upstream.requests) == 1


@pytest.mark.parametrize(("header", "query"), [("", ""), (" ", ""), (None, ""), ("", None)])
async def test_an_empty_cursor_is_none(place: Place, header: str | None, query: str | None) -> None:
    place.upstream.script(*say("x"))
    reader = await place.post({"message": "x"}, None)
    await ids(reader)
    run_id = (await request(place.server, "GET", "/chat/sessions")).json["sessions"][0]
    messages = (await request(place.server, "GET", f"/chat/sessions/{run_id['session_id']}")).json["messages"]
    path = f"/chat/runs/{messages[-1]['run_id']}/events" + ("" if query is None else f"?after={query}")
    assert await ids(await SseReader.get(place.server, path, {"Last-Event-ID": header})) == ["1", "2", "3"]
    path = path.partition("?")[0] + "?after=2"
    assert await ids(await SseReader.get(place.server, path, {"Last-Event-ID": header})) == ["3"]


async def test_head_of_a_stream_reads_nothing_and_keeps_nobody() -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, live_server(upstream.url, grace_seconds=0.3) as server:
        upstream.script(Gate(gate), *say("x"))
        run = (await request(server, "POST", "/chat/runs", {"message": "x"})).json
        path = f"/chat/runs/{run['run_id']}/events"
        with anyio.fail_after(WAIT_SECONDS):
            for _ in range(200):
                answer = await request(server, "HEAD", path)
                assert (answer.status, answer.body) == (200, b"")
                assert answer.headers["content-type"] == "text/event-stream"
                if (await get_run(server, run["run_id"]))["finished_at"]:
                    break
                await anyio.sleep(0.02)
        done = await get_run(server, run["run_id"])
        assert done["status"] == "cancelled"  # Nobody has read it: its grace period was over in time.
        assert (await request(server, "HEAD", f"{path}?after={done['last_seq']}")).status == 204
        assert (await request(server, "HEAD", f"{path}?after={done['last_seq'] + 1}")).status == 400
        assert (await request(server, "HEAD", "/chat/runs/x/events")).status == 404
        assert (await request(server, "HEAD", path, None, {"Accept": "image/png"})).status == 406
