"""Calls that wait: whose they are, what they take of a user's limits, and answers at odd moments."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from sqlalchemy import Connection, select

from chatserver import AgentContext, Dialogue, Yielded, create_app
from chatserver.errors import Unavailable
from chatserver.sessions.schema import runs
from chatserver.sessions.waits import Waits
from chatserver.waiting import UNAPPROVED, Wait
from tests.approved_tools import REFERENCE
from tests.clients import SSE, Transport, WsReader, cancel, documents_of, get_run, request, types_of
from tests.fake_upstream import FakeUpstream
from tests.live import LiveServer, live_server
from tests.program import until
from tests.proving import answer_of, check_once, held
from tests.test_waiting import answered, calling, done_by, each_of_both, events_of, is_waiting, serving, waiting
from tests.users import guarded_server, of

pytestmark = pytest.mark.anyio

SECONDS = 60.0


@asynccontextmanager
async def guarded(upstream: FakeUpstream, directory: Path, **settings: Any) -> AsyncIterator[LiveServer]:
    with anyio.fail_after(SECONDS):
        async with guarded_server(upstream.url, directory=directory, tools=REFERENCE, **settings) as server:
            yield server


async def answered_by(user: str, server: LiveServer, run_id: str, **answer: Any) -> tuple[int, Any]:
    response = await request(server, "POST", f"/chat/runs/{run_id}/tool_calls/c0", answer, headers=of(user))
    return response.status, response.json.get("code")


async def status_of(user: str, server: LiveServer, run_id: str) -> str:
    return str((await request(server, "GET", f"/chat/runs/{run_id}", headers=of(user))).json["status"])


async def begun(user: str, server: LiveServer) -> str:
    """A run of the user that waits; nobody reads it."""
    response = await request(server, "POST", "/chat/runs", {"message": "Book"}, headers=of(user))
    assert response.status == 202, response
    run_id = str(response.json["run_id"])

    async def waits() -> bool:
        return await status_of(user, server, run_id) == "waiting"

    await until(waits)
    return run_id


async def ended(user: str, server: LiveServer, run_id: str) -> None:
    async def is_over() -> bool:
        return await status_of(user, server, run_id) == "completed"

    await until(is_over)


async def test_another_user_cannot_answer(upstream: FakeUpstream, ledger: Path, tmp_path: Path) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with guarded(upstream, tmp_path) as server:
        run_id = await begun("ann", server)
        assert await answered_by("bob", server, run_id, approve=True) == (404, "not_found")
        assert done_by(ledger) == [] and await status_of("ann", server, run_id) == "waiting"
        assert (await answered_by("ann", server, run_id, approve=True))[0] == 202
        await ended("ann", server, run_id)
        assert await answered_by("bob", server, run_id, approve=True) == (404, "not_found")


async def test_a_run_that_waits_leaves_its_place_to_others_and_goes_on_when_there_is_one(
    upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with guarded(upstream, tmp_path, max_runs_per_user=1) as server:
        places = server.runs._places
        first, second = await begun("ann", server), await begun("ann", server)
        await until(lambda: is_empty(places))  # Just behind the commit that shows that it waits.
        place = await places.acquire("ann")
        assert await answered_by("ann", server, first, approve=True) == (429, "too_many")
        assert await answered_by("ann", server, first, result=1) == (400, "bad_request"), "what is wrong is told first"
        assert done_by(ledger) == []
        await place.release()
        for run_id in (first, second):
            assert (await answered_by("ann", server, run_id, approve=True))[0] == 202
            await ended("ann", server, run_id)
        await until(lambda: is_empty(places))
        assert done_by(ledger) == ["book 4"] * 2


async def is_empty(places: Any) -> bool:
    return bool(places.held["ann"] == 0)


async def test_a_call_that_would_wait_beside_too_many_is_refused_in_words(
    upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with guarded(upstream, tmp_path, max_waiting_runs_per_user=1) as server:
        first = await begun("ann", server)
        response = await request(server, "POST", "/chat/runs", {"message": "Book"}, headers=of("ann"))
        await ended("ann", server, response.json["run_id"])
        assert await status_of("ann", server, first) == "waiting" and done_by(ledger) == []
        assert (await answered_by("ann", server, first, approve=True))[0] == 202
        await ended("ann", server, first)
    assert any("the most at a time" in str(each.json["messages"][-1]["content"]) for each in upstream.requests)


# ---- stored before it is shown --------------------------------------------------------------------------------------


@each_of_both
@pytest.mark.parametrize("is_committed", [False, True])
async def test_no_reader_is_shown_a_call_before_it_is_stored_that_it_waits(
    is_committed: bool, transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """Also none of the calls beside it: the events of a turn keep their order."""
    upstream.always(calling(("look", {"at": "flowers"}), ("book", {"table": 4}), ("look", {"at": "trees"})))
    async with serving(upstream, tmp_path) as server:
        with held(Waits, "store", done=is_committed) as hold:
            reading = await transport.start(server, {"message": "Book", "session_id": "s"})
            await reading.take(1)
            await hold.come.wait()
            assert (await get_run(server, reading.run_id))["last_seq"] == 1
            assert (await request(server, "GET", "/chat/sessions/s")).json["messages"][-1]["parts"] == []
            if is_committed:
                (stored,) = server.runs._lives.holds._held.values()
                assert list((await _kept(server, reading.run_id)).calls) == ["c1"] and stored.asking == 1
            hold.let.set()
        documents = [*reading.documents, *await reading.take(5)]
        kinds = ["start", *["tool_call"] * 3, *["tool_result"] * 2]
        assert types_of(documents) == kinds
        assert [each["call_id"] for each in events_of(documents, "tool_call")] == ["c0", "c1", "c2"]
        assert await answered(server, reading.run_id, "c1", transport, approve=True) == 202
        documents += await documents_of(reading)
        check_once(documents)
        assert types_of(documents) == [*kinds, "tool_result", "token", "done"] and done_by(ledger) == ["book 4"]


async def _kept(server: LiveServer, run_id: str) -> Wait:
    """What the database has of a run that waits."""

    def work(connection: Connection) -> Any:
        return connection.scalar(select(runs.c.wait).where(runs.c.run_id == run_id))

    kept: Wait = await server.runs._sessions.waits._database.read(work)
    return kept


@each_of_both
async def test_a_run_that_is_cancelled_while_its_call_is_stored_makes_no_call(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        with held(Waits, "store", done=False) as hold:
            reading = await transport.start(server, {"message": "Book"})
            await reading.take(1)
            await hold.come.wait()
            assert (await cancel(server, reading.run_id)).status == 202
            documents = [*reading.documents, *await documents_of(reading)]
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_result", "done"]
        assert events_of(documents, "tool_result")[0]["result"] == UNAPPROVED
        assert events_of(documents, "done")[0]["finish_reason"] == "cancelled"
        assert server.runs._lives.holds._held == {} and done_by(ledger) == []
        assert await answered(server, reading.run_id, "c0", transport, approve=True) == (409, "already_answered")


@each_of_both
@pytest.mark.parametrize(
    ("error", "words"), [(Unavailable("away", retry_after=1), "could not be stored"), (KeyError("bug"), "failed")]
)
async def test_a_run_whose_call_cannot_be_stored_ends_in_words(
    error: Exception, words: str, transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    async def refuse(*_: object) -> None:
        raise error

    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        with patch.object(Waits, "store", refuse):
            reading = await transport.start(server, {"message": "Book", "session_id": "s"})
            documents = await documents_of(reading)
        check_once(documents)
        assert types_of(documents) == ["start", "tool_call", "tool_result", "error"]
        assert events_of(documents, "tool_result")[0]["result"] == UNAPPROVED
        assert words in events_of(documents, "error")[0]["message"] and done_by(ledger) == []
        message = (await request(server, "GET", "/chat/sessions/s")).json["messages"][-1]
        assert (message["status"], message["parts"]) == ("partial", answer_of(documents)["parts"])
        documents = await _booked(server, transport, {"message": "Again", "session_id": "s"})
        assert types_of(documents)[-1] == "done" and done_by(ledger) == ["book 4"]


async def _booked(server: LiveServer, transport: Transport, body: dict[str, Any]) -> list[bytes]:
    reading = await transport.start(server, body)
    assert await answered(server, await waiting(reading), "c0", transport, approve=True) == 202
    return await documents_of(reading)


@each_of_both
async def test_what_an_agent_says_while_its_calls_are_stored_comes_behind_them(
    transport: Transport, ledger: Path, tmp_path: Path
) -> None:
    """Two calls of an agent at once, and words beside them: each keeps its place, and none is shown unstored."""
    said, goes_on = threading.Event(), threading.Event()

    async def agent(_: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
        first = asyncio.ensure_future(context.call("book", {"table": 1}))
        await asyncio.to_thread(said.wait)
        yield "one "
        second = asyncio.ensure_future(context.call("book", {"table": 2}))
        await asyncio.to_thread(goes_on.wait)
        yield "two"
        yield f" {await first} {await second}"

    async with live_server(
        None, directory=tmp_path, tools=REFERENCE, make_app=lambda each: create_app(each, agent=agent)
    ) as server:
        with held(Waits, "store", done=False) as hold:
            reading = await transport.start(server, {"message": "Book"})
            await reading.take(1)
            await hold.come.wait()
            said.set()
            await until(lambda: _asks_twice(server))
            assert (await get_run(server, reading.run_id))["last_seq"] == 1
            hold.let.set()
        documents = [*reading.documents, *await reading.take(3)]
        goes_on.set()
        documents += await reading.take(1)
        for call in events_of(documents, "tool_call"):
            assert await answered(server, reading.run_id, call["call_id"], transport, approve=True) == 202
        documents += await documents_of(reading)
    check_once(documents)
    assert types_of(documents)[:4] == ["start", "tool_call", "token", "tool_call"]
    assert [each["args"] for each in events_of(documents, "tool_call")] == [{"table": 1}, {"table": 2}]
    assert answer_of(documents)["content"] == "one two table 1 is booked table 2 is booked"


async def _asks_twice(server: LiveServer) -> bool:
    return [each.asking for each in server.runs._lives.holds._held.values()] == [2]


async def test_a_server_that_drains_takes_no_answers(upstream: FakeUpstream, ledger: Path, tmp_path: Path) -> None:
    """Over HTTP, and over a WebSocket that is open already: a new one is refused."""
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server, await WsReader.connect(server) as device:
        reading = await SSE.start(server, {"message": "Book"})
        run_id = await waiting(reading)
        await is_waiting(server, run_id)
        server.runs.is_draining = True
        assert await answered(server, run_id, "c0", approve=True) == (503, "draining")
        rejected = await device.command(type="answer", run_id=run_id, call_id="c0", approve=True)
        assert (rejected["type"], rejected["status"], rejected["code"]) == ("rejected", 503, "draining")
        server.runs.is_draining = False
        accepted = await device.command(type="answer", run_id=run_id, call_id="c0", approve=True)
        assert accepted["type"] == "accepted"
        await documents_of(reading)
