"""The harness of the tests with several nodes: its network, its Redis and its processes do what a test asks for."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import anyio
import pytest
from redis.exceptions import ConnectionError as NoRedis

from tests.clients import SSE, TRANSPORTS, WS, BrokenError, Wire, documents_of, get_run, request, text_of
from tests.cluster import Cluster, Node, cluster, live_cluster
from tests.fake_upstream import Hang, say, token
from tests.gateway import Gateway, Way
from tests.life import in_time
from tests.program import until
from tests.proving import check_rest
from tests.redis_server import RedisServer, Sentinel
from tests.tcp_server import HOST, tcp_server

pytestmark = pytest.mark.anyio


# ---- the network ----------------------------------------------------------------------------------------------------


class Echo:
    """A server that sends back what it gets, behind its own name."""

    host = HOST

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.heard = b""
        self.port = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.port = await self._stack.enter_async_context(tcp_server(self._serve))
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            self.heard += data
            writer.write(self.name + data)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with Echo(b"1") as echo:
        yield echo


@pytest.fixture
async def gateway(echo: Echo) -> AsyncIterator[Gateway]:
    async with Gateway(echo) as gateway:
        yield gateway


async def said(wire: Wire, data: bytes) -> bytes:
    wire.write(data)
    return await wire.read()


async def is_reset(wire: Wire) -> None:
    with pytest.raises(ConnectionError):
        await wire.read()
    wire.reset()


@in_time
async def test_bytes_and_ends_pass(gateway: Gateway, echo: Echo) -> None:
    wire = await Wire.open(gateway)
    assert await said(wire, b"a") == b"1a"
    assert gateway.connections == 1
    wire.writer.write_eof()
    assert await wire.read() == b""
    wire.cut()


@in_time
async def test_connections_go_to_one_target_after_the_other_and_pass_by_those_that_are_away(echo: Echo) -> None:
    async with AsyncExitStack() as stack:
        away, other = Echo(b"2"), await stack.enter_async_context(Echo(b"3"))
        async with away:
            pass
        gateway = await stack.enter_async_context(Gateway(echo, away, other))
        for name in (b"1", b"3", b"1"):
            wire = await Wire.open(gateway)
            assert await said(wire, b"a") == name + b"a"
            wire.cut()
        gateway.targets = [away]
        await is_reset(await Wire.open(gateway))


@pytest.mark.parametrize("way", ["requests", "replies"])
@in_time
async def test_what_is_stalled_passes_later_and_what_is_lost_never_does(gateway: Gateway, echo: Echo, way: Way) -> None:
    wire = await Wire.open(gateway)
    assert await said(wire, b"a") == b"1a"
    gateway.stall(way)
    wire.write(b"b")
    reading = asyncio.create_task(wire.read())
    await until_heard(echo, b"a" if way == "requests" else b"ab")
    assert not reading.done()
    gateway.heal()
    assert await reading == b"1b"

    gateway.lose(way)
    wire.write(b"c")
    await until_heard(echo, b"ab" if way == "requests" else b"abc")
    gateway.heal()
    await is_reset(wire)
    assert echo.heard == (b"ab" if way == "requests" else b"abc")


async def until_heard(echo: Echo, heard: bytes) -> None:
    """Wait until this was heard, and for what would be heard in spite of the gateway."""

    async def is_heard() -> bool:
        return echo.heard == heard

    await until(is_heard)
    await asyncio.sleep(0.02)
    assert echo.heard == heard


@in_time
async def test_what_is_cut_is_reset_and_so_is_whoever_comes_then(gateway: Gateway) -> None:
    wire = await Wire.open(gateway)
    assert await said(wire, b"a") == b"1a"
    gateway.cut()
    await is_reset(wire)
    await is_reset(await Wire.open(gateway))
    gateway.heal()
    wire = await Wire.open(gateway)
    gateway.delay_seconds, before = 0.05, time.monotonic()
    assert await said(wire, b"a") == b"1a"
    assert time.monotonic() - before >= 0.1
    wire.cut()


# ---- Redis ----------------------------------------------------------------------------------------------------------


@in_time
async def test_redis_comes_back_with_or_without_what_it_had() -> None:
    async with RedisServer() as redis:
        for keep, found in ((True, "1"), (False, None)):
            await redis.call("SET", "key", 1)
            await redis.stop(keep=keep)
            with pytest.raises(NoRedis):
                await redis.call("PING")
            await redis.start()
            assert await redis.call("GET", "key") == found


@in_time
async def test_a_replica_that_was_left_behind_is_promoted_by_its_sentinel_without_what_came_last() -> None:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        replica = await stack.enter_async_context(RedisServer(replica_of=redis))
        sentinel = await stack.enter_async_context(Sentinel(redis))
        await replica.follows()
        await redis.call("SET", "key", "first")
        await redis.call("WAIT", 1, 0)
        await sentinel.watches(replica, as_master=False)
        await redis.leave_replicas_behind()
        await redis.call("SET", "key", "last")
        redis.kill()
        await sentinel.watches(replica, as_master=True)
        assert await replica.call("GET", "key") == "first"
        assert (await replica.call("ROLE"))[0] == "master"


# ---- nodes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster[Node]]:
    async with cluster(tmp_path_factory.mktemp("cluster"), 2) as nodes:
        yield nodes


@in_time
async def test_a_run_that_is_over_is_read_on_every_node_and_through_the_balancer(nodes: Cluster[Node]) -> None:
    nodes.upstream.script(*say("Hello", 3))
    whole = await documents_of(reading := await SSE.start(nodes[0], {"message": "Hi"}))
    served = [await documents_of(await each.attach(nodes[1], reading.run_id)) for each in TRANSPORTS]
    served += [await documents_of(await WS.attach(nodes.balancer, reading.run_id)) for _ in nodes]
    for each in served:
        check_rest(each, 0, whole)


@in_time
async def test_a_frozen_node_says_nothing_and_a_killed_one_comes_back(nodes: Cluster[Node]) -> None:
    nodes.upstream.script(token("So far"), Hang())
    reading = await SSE.start(nodes[0], {"message": "Hi"})
    await reading.take(2)
    nodes[0].freeze()
    with anyio.move_on_after(0.2):
        raise AssertionError(await request(nodes[0], "GET", "/livez"))
    await nodes.heal()
    assert (await request(nodes[0], "GET", "/livez")).status == 200

    nodes[0].kill()
    with pytest.raises(BrokenError):
        await reading.take(1)
    assert await nodes[0].wait() < 0
    assert [(await request(nodes.balancer, "GET", "/livez")).status for _ in range(3)] == [200, 200, 200]
    await nodes.heal()
    assert (await get_run(nodes[0], reading.run_id))["status"] == "failed"
    assert "Traceback" not in nodes[0].output + nodes[1].output


@in_time
async def test_nodes_in_one_loop_reach_redis_each_on_its_own_way(tmp_path: Path) -> None:
    async with RedisServer() as redis, live_cluster(tmp_path, 2, redis) as nodes:
        nodes.upstream.always(*say("Hello", 3))
        for _ in nodes:
            assert text_of(await documents_of(await SSE.start(nodes.balancer, {"message": "Hi"}))) == "Hello"
        assert [each.redis.connections > 0 for each in nodes] == [True, True]
