"""Calls that wait: whose they are, what they take of a user's limits, and answers at odd moments."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.sessions.waits import Waits
from tests.approved_tools import REFERENCE
from tests.clients import SSE, Transport, WsReader, cancel, documents_of, get_run, request, types_of
from tests.fake_upstream import FakeUpstream
from tests.live import LiveServer
from tests.program import until
from tests.proving import held
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
        await until(lambda: _is_empty(places))  # Just behind the commit that shows that it waits.
        place = await places.acquire("ann")
        assert await answered_by("ann", server, first, approve=True) == (429, "too_many")
        assert await answered_by("ann", server, first, result=1) == (400, "bad_request"), "what is wrong is told first"
        assert done_by(ledger) == []
        await place.release()
        for run_id in (first, second):
            assert (await answered_by("ann", server, run_id, approve=True))[0] == 202
            await ended("ann", server, run_id)
        await until(lambda: _is_empty(places))
        assert done_by(ledger) == ["book 4"] * 2


async def _is_empty(places: Any) -> bool:
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


@each_of_both
async def test_an_answer_that_is_faster_than_the_disk_waits_for_it(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        with held(Waits, "store", done=False) as hold:
            reading = await transport.start(server, {"message": "Book"})
            run_id = await waiting(reading)
            await hold.come.wait()
            assert (await get_run(server, run_id))["status"] == "running", "it is not stored yet"
            outcomes: list[Any] = []

            async def answer() -> None:
                outcomes.append(await answered(server, run_id, "c0", transport, approve=True))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(answer)
                assert await answered(server, run_id, "nope", approve=True) == (404, "not_found")
                assert outcomes == []
                hold.let.set()
        assert outcomes == [202]
        assert types_of(await documents_of(reading)) == ["tool_result", "token", "done"]


@each_of_both
async def test_a_cancel_and_a_failing_disk_end_no_call_twice(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is cancelled while the disk does not take what waits: nothing was made, and nothing is left over."""
    upstream.always(calling(("book", {"table": 4})))
    async with serving(upstream, tmp_path) as server:
        with held(Waits, "store", done=False) as hold:
            reading = await transport.start(server, {"message": "Book"})
            run_id = await waiting(reading)
            await hold.come.wait()
            assert (await cancel(server, run_id)).status == 202
            documents = await documents_of(reading)
        assert events_of(documents, "done")[0]["finish_reason"] == "cancelled"
        assert server.runs._lives.holds._held == {} and done_by(ledger) == []


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
