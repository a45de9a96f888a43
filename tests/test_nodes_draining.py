"""A node drains whose readers read runs of another node: it lets these runs end, and tells whoever is left."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from chatserver.runs import leaving
from chatserver.sessions.waits import Waits
from tests.clients import SSE, TRANSPORTS, Reading, get_run, text_of
from tests.cluster import Cluster, LiveNode, live_cluster
from tests.redis_server import RedisServer
from tests.test_shutdown import ENDS, HANGS, all_told, answers, is_sent_away
from tests.test_waiting import calling, waiting

pytestmark = [pytest.mark.anyio, pytest.mark.proof, pytest.mark.timeout(180)]

WAIT_SECONDS = 60.0
NEVER_SECONDS = 3600.0
CLIENT_TOOL = {"name": "pick", "description": "Pick one", "parameters": {"type": "object"}}


@asynccontextmanager
async def two_nodes(directory: Path, drain_seconds: float) -> AsyncIterator[Cluster[LiveNode]]:
    with anyio.fail_after(WAIT_SECONDS):
        async with (
            RedisServer() as redis,
            live_cluster(directory, 2, redis, drain_seconds=drain_seconds) as nodes,
        ):
            yield nodes


async def readers_of(node: LiveNode, run_id: str) -> list[Reading]:
    """A reader of the run over each transport, which has had its first two events."""
    readings = [await transport.attach(node, run_id, 0) for transport in TRANSPORTS]
    for reading in readings:
        await reading.take(2)
    return readings


async def has_drained(node: LiveNode) -> None:
    await node.server.server.main_loop()


@contextmanager
def looks() -> Iterator[list[anyio.Event]]:
    """Events for the first looks of the nodes that drain at the runs that are read there."""
    events, original, count = [anyio.Event() for _ in range(3)], Waits.waiting, iter(range(1_000_000))

    async def looked(*args: Any) -> set[str]:
        if (number := next(count)) < len(events):
            events[number].set()
        return await original(*args)

    with patch.object(Waits, "waiting", looked):
        yield events


async def test_a_run_of_another_node_ends_in_front_of_its_readers(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, NEVER_SECONDS) as nodes:
        nodes.upstream.always(answers(gate := anyio.Event()))
        async with await SSE.start(nodes[0], {"message": ENDS}) as first:
            await first.take(2)
            readings = await readers_of(nodes[1], first.run_id)
            with looks() as looked:
                nodes[1].server.begin_drain()
                await looked[-1].wait()
            gate.set()
            await all_told(readings)
            assert {text_of(reading.documents) for reading in readings} == {"so far so good"}
            await has_drained(nodes[1])


async def test_readers_of_a_run_that_outlasts_the_drain_are_told_to_come_back(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, 0.1) as nodes:
        nodes.upstream.always(answers(anyio.Event()))
        async with await SSE.start(nodes[0], {"message": HANGS}) as first:
            await first.take(2)
            readings = await readers_of(nodes[1], first.run_id)
            nodes[1].server.begin_drain()
            for reading in readings:
                await is_sent_away(reading)
            await has_drained(nodes[1])
            assert (await get_run(nodes[0], first.run_id))["status"] == "running"


async def test_where_both_nodes_drain_readers_at_both_hear_that_the_run_was_interrupted(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, 0.1) as nodes:
        nodes.upstream.always(answers(anyio.Event()))
        first = await SSE.start(nodes[0], {"message": HANGS})
        await first.take(2)
        readings = [first, *await readers_of(nodes[1], first.run_id)]
        with patch.object(leaving, "LAST_EVENTS_SECONDS", WAIT_SECONDS):
            for node in nodes:
                node.server.begin_drain()
            await all_told(readings)


async def test_a_run_that_waits_at_another_node_does_not_hold_the_drain(tmp_path: Path) -> None:
    async with two_nodes(tmp_path, NEVER_SECONDS) as nodes:
        nodes.upstream.always(calling(("pick", {})))
        async with await SSE.start(nodes[0], {"message": "Pick", "tools": [CLIENT_TOOL]}) as first:
            run_id = await waiting(first)
            readings = await readers_of(nodes[1], run_id)
            nodes[1].server.begin_drain()
            for reading in readings:
                await is_sent_away(reading)
            await has_drained(nodes[1])
            assert (await get_run(nodes[0], run_id))["status"] == "waiting"
