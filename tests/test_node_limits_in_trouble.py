"""Limits over all nodes when something changes while they hold: a stream ends, a day is spent, a node or Redis dies."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import users
from tests.clients import SSE, WS, Reading, RefusedError, WsReader, documents_of, request
from tests.cluster import Cluster, LiveNode, cluster, live_cluster
from tests.fake_upstream import Gate, Pause, say, token
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30.0
GONE_SECONDS = 10.0
CONNECTIONS, RUNS, REQUESTS, DAY_TOKENS = 3, 2, 60, 2000
LIMITS: dict[str, Any] = {
    "auth": "jwt",
    "jwt_secret": users.SECRET,
    "max_connections_per_user": CONNECTIONS,
    "max_runs_per_user": RUNS,
    "max_requests_per_minute": REQUESTS,
    "max_tokens_per_day": DAY_TOKENS,
}
_names = iter(range(1_000_000))


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster[LiveNode]]:
    async with RedisServer() as redis, live_cluster(tmp_path_factory.mktemp("limits"), 2, redis, **LIMITS) as nodes:
        yield nodes


@pytest.fixture
def user() -> dict[str, str]:
    """The header of a user who has done nothing yet."""
    return users.of(f"user {next(_names)}")


def endless(nodes: Cluster[Any]) -> anyio.Event:
    """Let the model go on until the event is set."""
    gate = anyio.Event()
    nodes.upstream.always(token("a"), Gate(gate), *say("Yes"))
    return gate


async def refusal(asked: Awaitable[object]) -> tuple[int | None, str]:
    with pytest.raises(RefusedError) as refused:
        await asked
    return refused.value.status, refused.value.code


async def eventually(verb: Callable[[], Awaitable[Reading]], seconds: float = WAIT_SECONDS) -> Reading:
    """What it comes to when it is no longer refused."""
    with anyio.fail_after(seconds):
        while True:
            try:
                return await verb()
            except RefusedError:
                await anyio.sleep(0.1)


async def until_tickets(node: LiveNode, user: dict[str, str], status: int) -> None:
    """Wait until a node answers so to whoever asks for a ticket: 503 without Redis."""
    with anyio.fail_after(WAIT_SECONDS):
        while (await request(node, "POST", "/chat/tickets", headers=user)).status != status:  # noqa: ASYNC110
            await anyio.sleep(0.1)


async def test_streams_and_websockets_of_a_user_are_counted_together(
    nodes: Cluster[LiveNode], user: dict[str, str]
) -> None:
    gate = endless(nodes)
    reading = await SSE.start(nodes[0], {"message": "Hi"}, headers=user)
    await reading.take(1)
    async with await WsReader.connect(nodes[1], headers=user) as socket:
        more = await SSE.attach(nodes[1], reading.run_id, 0, headers=user)
        for node in nodes:
            assert await refusal(SSE.attach(node, reading.run_id, 0, headers=user)) == (429, "too_many")
            assert (await (await WsReader.connect(node, headers=user)).closing()).code == 4429
        socket.wire.cut()
        again = await eventually(lambda: SSE.attach(nodes[0], reading.run_id, 0, headers=user))
    gate.set()
    for each in (reading, more, again):
        assert json.loads((await documents_of(each))[-1])["type"] == "done"


async def test_a_run_ends_when_one_on_another_node_has_spent_the_day(
    nodes: Cluster[LiveNode], user: dict[str, str]
) -> None:
    nodes.upstream.script(token("a"), *[step for _ in range(300) for step in (Pause(0.1), token("a"))])
    here = await SSE.start(nodes[0], {"message": "Hi"}, headers=user)
    await here.take(2)
    nodes.upstream.script(token("x" * 5 * DAY_TOKENS), *say("Yes"))
    there = await SSE.start(nodes[1], {"message": "Hi"}, headers=user)
    ends = [json.loads((await documents_of(each))[-1]) for each in (there, here)]
    assert [(each["type"], each["finish_reason"]) for each in ends] == [("done", "length")] * 2
    for node in nodes:
        assert await refusal(SSE.start(node, {"message": "Hi"}, headers=user)) == (429, "too_many")


async def test_without_redis_a_node_counts_for_itself_and_begins_no_run(
    nodes: Cluster[LiveNode], user: dict[str, str]
) -> None:
    node, other = nodes
    endless(nodes).set()
    await documents_of(await SSE.start(node, {"message": "Hi"}, headers=user))
    node.redis.cut()
    await until_tickets(node, user, 503)
    with anyio.fail_after(WAIT_SECONDS):
        for transport in (SSE, WS):
            assert await refusal(transport.start(node, {"message": "Hi"}, headers=user)) == (503, "unavailable")
        assert (await request(node, "GET", "/chat/sessions", headers=user)).status == 200
        sockets = [await WsReader.connect(node, headers=user) for _ in range(CONNECTIONS)]
        for each in sockets:
            each.send({"type": "ping"})
            await each.until("pong")
        assert (await (await WsReader.connect(node, headers=user)).closing()).code == 4429
        await documents_of(await SSE.start(other, {"message": "Hi"}, headers=user))
    node.redis.heal()
    await until_tickets(node, user, 200)
    with anyio.fail_after(WAIT_SECONDS):
        assert (await (await WsReader.connect(other, headers=user)).closing()).code == 4429
        for each in sockets:
            each.wire.cut()
        await documents_of(await eventually(lambda: SSE.start(node, {"message": "Hi"}, headers=user)))


async def test_what_a_dead_node_had_open_counts_no_more(tmp_path: Path, user: dict[str, str]) -> None:
    async with RedisServer() as redis, cluster(tmp_path, 2, redis, **LIMITS) as nodes:
        endless(nodes)
        dead, living = nodes
        readings = [await SSE.start(dead, {"message": "Hi"}, headers=user) for _ in range(RUNS)]
        assert await refusal(SSE.start(living, {"message": "Hi"}, headers=user)) == (429, "too_many")
        dead.kill()
        readings.append(await eventually(lambda: SSE.start(living, {"message": "Hi"}, headers=user), GONE_SECONDS))
        for each in readings:
            each.cut()
