"""Redis or the database in trouble in mid answer: nothing is skipped, new runs are refused in words, all heals."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from tests.audience import STOOD, Audience, answers_again, everywhere, refuses_new_runs_and_shows_sessions
from tests.clients import TRANSPORTS, BrokenError, RefusedError, request
from tests.cluster import Cluster, Node, cluster
from tests.conftest import IS_FULL, Postgres, psql
from tests.gateway import Gateway
from tests.redis_server import RedisServer, Sentinel

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.proof,
    pytest.mark.timeout(600),
]

SECONDS = 60.0
"""How long anything may take before it counts as a hang, on a machine that does much else."""

SHORT_STALL_SECONDS, LONG_STALL_SECONDS = 5.0, 30.0
"""Before and after a node ends its runs that cannot reach Redis."""

Trouble: TypeAlias = Callable[[RedisServer], AbstractAsyncContextManager[None]]


@pytest.fixture(scope="module")
async def redis(anyio_backend: str) -> AsyncIterator[RedisServer]:
    async with RedisServer() as redis:
        yield redis


@pytest.fixture(scope="module")
async def nodes(
    redis: RedisServer, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster[Node]]:
    psql(f"{postgres.url}/postgres", "CREATE DATABASE nodes")
    database = f"{postgres.url}/nodes"
    async with cluster(tmp_path_factory.mktemp("nodes"), 2, redis, database_url=database) as nodes:
        yield nodes
        assert "Traceback" not in "".join(each.output for each in nodes)


@pytest.fixture(autouse=True)
async def healthy(nodes: Cluster[Node]) -> None:
    """What an earlier test has done is over, and no node has its first answer before it, for which it imports much."""
    await answers_again(nodes)


# ---- Redis ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def restarted_with_its_data(redis: RedisServer) -> AsyncIterator[None]:
    await redis.stop(keep=True)
    try:
        yield
    finally:
        await redis.start()


@asynccontextmanager
async def restarted_without_its_data(redis: RedisServer) -> AsyncIterator[None]:
    await redis.stop(keep=False)
    try:
        yield
    finally:
        await redis.start()


@asynccontextmanager
async def full(redis: RedisServer) -> AsyncIterator[None]:
    await redis.call("CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        await redis.call("CONFIG", "SET", "maxmemory", 0)


LASTING: tuple[Trouble, ...] = (restarted_with_its_data, restarted_without_its_data, full)


@pytest.mark.parametrize("trouble", LASTING)
async def test_while_redis_is_away_new_runs_are_refused_and_a_run_goes_on_when_it_is_back(
    nodes: Cluster[Node], redis: RedisServer, trouble: Trouble
) -> None:
    with anyio.fail_after(SECONDS):
        async with everywhere(nodes) as audience:
            async with trouble(redis):
                audience.goes_on(40)
                await refuses_new_runs_and_shows_sessions(nodes)
            await audience.hears_the_end()
        await answers_again(nodes)


async def test_a_flushed_redis_skips_nothing(nodes: Cluster[Node], redis: RedisServer) -> None:
    with anyio.fail_after(SECONDS):
        async with everywhere(nodes) as audience:
            for seq in range(STOOD + 5, 60, 8):
                await redis.call("FLUSHALL")
                await audience.hears(seq)
            await redis.call("FLUSHALL")
            await audience.hears_the_end()
        await answers_again(nodes)


@pytest.mark.parametrize("seconds", [SHORT_STALL_SECONDS, LONG_STALL_SECONDS] if IS_FULL else [SHORT_STALL_SECONDS])
async def test_a_redis_that_stalls_holds_a_run_up_or_ends_it_and_skips_nothing(
    nodes: Cluster[Node], redis: RedisServer, seconds: float
) -> None:
    with anyio.fail_after(SECONDS + seconds):
        async with everywhere(nodes) as audience:
            redis.freeze()
            try:
                audience.goes_on(40)
                await anyio.sleep(seconds)
                if seconds == LONG_STALL_SECONDS:
                    await refuses_new_runs_and_shows_sessions(nodes)
            finally:
                redis.thaw()
            if seconds == LONG_STALL_SECONDS:
                await audience.hears_that_it_was_interrupted()
            else:
                await audience.hears_the_end()
        await answers_again(nodes)


@pytest.mark.parametrize("trouble", [Gateway.cut, Gateway.stall])
async def test_a_node_that_starts_without_redis_serves_sessions_and_joins_when_redis_is_there(
    nodes: Cluster[Node], trouble: Callable[[Gateway], None]
) -> None:
    node = nodes[0]
    with anyio.fail_after(SECONDS):
        node.kill()
        await node.wait()
        trouble(node.redis)
        await node.start()
        await node.said("Redis is not reached, what needs it is refused: ")
        for transport in TRANSPORTS:
            with pytest.raises(RefusedError) as refused:
                await transport.start(node, {"message": "x"})
            assert (refused.value.status, refused.value.code) == (503, "unavailable")
        assert (await request(node, "GET", "/chat/sessions")).status == 200
        ready = await request(node, "GET", "/readyz")
        assert (ready.status, ready.json["redis"]) == (200, "down")
        node.redis.heal()
        await answers_again(nodes)
        assert (await request(node, "GET", "/readyz")).json["redis"] == "ready"


# ---- failover -------------------------------------------------------------------------------------------------------


async def fills_what_a_replica_lacks(nodes: Cluster[Any], redis: RedisServer) -> None:
    """A replica without the last 50 events takes over; who reads only then gets them all."""
    async with RedisServer(replica_of=redis) as replica, Audience(nodes, told=5) as audience:
        await replica.follows()
        await audience.hears(5)
        await redis.call("WAIT", 1, 0)
        await redis.leave_replicas_behind()
        await audience.hears(55)
        await replica.call("REPLICAOF", "NO", "ONE")
        leads(replica, nodes)
        try:
            await audience.hears(56)
            await audience.grows()
            await audience.hears(58)
            await audience.hears_the_end()
        finally:
            leads(redis, nodes)


def leads(redis: RedisServer, nodes: Cluster[Any]) -> None:
    """From now on this is the Redis of all nodes."""
    for node in nodes:
        node.redis.targets = [redis]
        node.redis.reset()


async def test_a_promoted_replica_that_lacks_the_last_50_events_skips_nothing(tmp_path: Path) -> None:
    """With nodes of its own: what a stall of Redis leaves behind is not to end the run before the failover."""
    async with RedisServer() as redis, cluster(tmp_path, 2, redis) as nodes:
        await answers_again(nodes)
        with anyio.fail_after(SECONDS):
            try:
                await fills_what_a_replica_lacks(nodes, redis)
            except BrokenError as error:
                raise AssertionError([each.output for each in nodes]) from error
            await answers_again(nodes)


async def test_sentinels_find_the_replica_that_takes_over(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        replica = await stack.enter_async_context(RedisServer(replica_of=redis))
        await replica.follows()
        sentinel = await stack.enter_async_context(Sentinel(redis, down_seconds=3.0))  # Nodes that start hold it up.
        nodes = await stack.enter_async_context(cluster(tmp_path, 2, sentinel))
        with anyio.fail_after(SECONDS):
            await sentinel.watches(replica, as_master=False)
            await answers_again(nodes)
            async with Audience(nodes, told=5) as audience:
                await audience.hears(5)
                await redis.call("WAIT", 1, 0)
                await redis.leave_replicas_behind()
                await audience.hears(55)
                redis.kill()
                await audience.hears(56)
                await audience.grows()
                await audience.hears_the_end()
            await answers_again(nodes)
        assert "Traceback" not in "".join(each.output for each in nodes)


# ---- PostgreSQL -----------------------------------------------------------------------------------------------------


async def test_a_run_outlives_a_restart_of_its_database(nodes: Cluster[Node], postgres: Postgres) -> None:
    with anyio.fail_after(SECONDS):
        async with everywhere(nodes) as audience:
            await anyio.to_thread.run_sync(postgres.stop)
            await audience.hears(STOOD + 1)
            await anyio.to_thread.run_sync(postgres.start)
            await audience.hears_the_end()
        await answers_again(nodes)
