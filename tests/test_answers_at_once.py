"""Answers to the calls of one run that come at the same time: the run takes one place for all of them."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import anyio
import pytest

from chatserver.commands import CallAnswer
from chatserver.errors import TooMany
from chatserver.runs.places import Place
from chatserver.sessions.waits import Waits
from tests.approved_tools import REFERENCE
from tests.clients import WS, Address, Transport, WsReader, request
from tests.cluster import live_cluster
from tests.fake_upstream import FakeUpstream, Gate, Reply, Step
from tests.life import in_time
from tests.live import LiveServer
from tests.program import until
from tests.proving import held
from tests.redis_server import RedisServer
from tests.test_waiting import calling, done_by, each_of_both
from tests.test_waiting_limits import begun, ended, guarded, is_empty
from tests.users import SECRET, of

pytestmark = pytest.mark.anyio

CALLS = 12


def bookings(number: int) -> Any:
    return calling(*[("book", {"table": table}) for table in range(number)])


async def statuses_of(server: Address, run_id: str, transport: Transport, call_ids: Sequence[str]) -> list[int]:
    """The statuses of approvals that are sent at once, each on a connection of its own."""
    if transport is not WS:
        paths = [f"/chat/runs/{run_id}/tool_calls/{call_id}" for call_id in call_ids]
        asking = [request(server, "POST", path, {"approve": True}, headers=of("ann")) for path in paths]
        return [each.status for each in await asyncio.gather(*asking)]
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(await WsReader.connect(server, headers=of("ann"))) for _ in call_ids]
        for device, call_id in zip(devices, call_ids, strict=True):
            device.send({"type": "answer", "run_id": run_id, "call_id": call_id, "approve": True})
        return [(await device.answer()).get("status", 202) for device in devices]


async def _are_left(server: LiveServer) -> bool:
    """Whether no place is taken, and it is no answer's turn."""
    runs: Any = server.runs
    return not runs._places.held["ann"] and not any(turn.locked() for turn in runs._answers._turns.values())


async def _are_in_line(server: LiveServer, run_id: str, number: int) -> bool:
    """Whether so many answers wait for their turn."""
    runs: Any = server.runs
    return len(runs._answers._turns[run_id]._waiters or ()) == number


@each_of_both
@pytest.mark.parametrize("number", [2, CALLS])
async def test_all_calls_of_one_run_are_answered_at_once_where_one_run_may_go_on(
    number: int, transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(bookings(number))
    async with guarded(upstream, tmp_path, max_runs_per_user=1) as server:
        run_id = await begun("ann", server)
        assert await statuses_of(server, run_id, transport, [f"c{index}" for index in range(number)]) == [202] * number
        await ended("ann", server, run_id)
        await until(lambda: _are_left(server))
    assert sorted(done_by(ledger)) == sorted(f"book {table}" for table in range(number))


@each_of_both
async def test_of_many_answers_to_one_call_at_once_the_others_are_told_that_it_is_answered(
    transport: Transport, upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    upstream.always(bookings(1))
    async with guarded(upstream, tmp_path, max_runs_per_user=1) as server:
        run_id = await begun("ann", server)
        assert sorted(await statuses_of(server, run_id, transport, ["c0"] * CALLS)) == [202, *[409] * (CALLS - 1)]
        await ended("ann", server, run_id)
        await until(lambda: _are_left(server))
    assert done_by(ledger) == ["book 0"]


async def test_an_answer_that_is_given_up_leaves_its_place_and_its_turn(
    upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """One that is being recorded, and one that waits for its turn."""
    upstream.always(bookings(2))
    async with guarded(upstream, tmp_path, max_runs_per_user=1) as server:
        run_id = await begun("ann", server)

        def answering(call_id: str) -> asyncio.Task[Any]:
            return asyncio.create_task(server.runs.answer("ann", run_id, call_id, CallAnswer(approve=True)))

        with held(Waits, "answer", done=False) as hold:
            first = answering("c0")
            await hold.come.wait()
            second, third = answering("c1"), answering("c1")
            await until(lambda: _are_in_line(server, run_id, 2))
            second.cancel()
            first.cancel()
            assert (await third).status == "running"
        assert first.cancelled() and second.cancelled()
        assert await statuses_of(server, run_id, WS, ["c0"]) == [202]
        await ended("ann", server, run_id)
        await until(lambda: _are_left(server))
    assert sorted(done_by(ledger)) == ["book 0", "book 1"]


async def test_a_run_that_comes_to_wait_while_its_next_answer_is_recorded_goes_on_with_a_place(
    upstream: FakeUpstream, ledger: Path, tmp_path: Path
) -> None:
    """The answer found the run running, so it took none."""
    gate = anyio.Event()

    def answer(reply: Reply) -> Iterable[Step]:
        if reply.request.json["messages"][-1]["role"] == "tool":
            yield Gate(gate)
        yield from bookings(2)(reply)

    upstream.always(answer)
    async with guarded(upstream, tmp_path, max_runs_per_user=1) as server:
        run_id, places = await begun("ann", server), cast(Any, server.runs)._places
        with held(Waits, "store", done=False) as stored, held(Waits, "answer", done=False) as recorded:
            recorded.is_used = True
            assert await statuses_of(server, run_id, WS, ["c0"]) == [202]
            await stored.come.wait()
            recorded.is_used = False
            second = asyncio.create_task(statuses_of(server, run_id, WS, ["c1"]))
            await recorded.come.wait()
            assert places.held["ann"] == 1
            stored.let.set()
            await until(lambda: is_empty(places))
            recorded.let.set()
            assert await second == [202]
        await until(lambda: _has_asked_twice(upstream))
        assert places.held["ann"] == 1
        gate.set()
        await ended("ann", server, run_id)
        await until(lambda: is_empty(places))


async def _has_asked_twice(upstream: FakeUpstream) -> bool:
    return len(upstream.requests) == 2


@in_time
async def test_an_answer_that_holds_the_place_at_another_node_refuses_none_of_the_same_run(
    ledger: Path, tmp_path: Path
) -> None:
    settings = {"auth": "jwt", "jwt_secret": SECRET, "max_runs_per_user": 1, "tools": REFERENCE}
    async with RedisServer() as redis, live_cluster(tmp_path, 2, redis, **settings) as nodes:
        here, there = (node.server for node in nodes)
        nodes.upstream.always(bookings(2))
        run_id = await begun("ann", here)
        places: Any = there.runs._places
        acquire, refused = places.acquire, anyio.Event()

        async def acquired(user: str) -> Place:
            try:
                place: Place = await acquire(user)
            except TooMany:
                hold.let.set()
                assert await first == [202]
                refused.set()
                raise
            return place

        with held(Waits, "answer", done=False) as hold, patch.object(places, "acquire", acquired):
            first = asyncio.create_task(statuses_of(here, run_id, WS, ["c0"]))
            await hold.come.wait()
            assert await statuses_of(there, run_id, WS, ["c1"]) == [202]
        assert refused.is_set()
        await ended("ann", here, run_id)
    assert sorted(done_by(ledger)) == ["book 0", "book 1"]
