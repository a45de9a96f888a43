"""The limits of a user, and tickets, hold over all nodes."""

from collections.abc import AsyncIterator

import anyio
import pytest

from tests.clients import SSE, RefusedError, Transport, WsReader, documents_of, request
from tests.cluster import Cluster, LiveNode, live_cluster
from tests.fake_upstream import Done, Gate, finish, role, token
from tests.life import in_time
from tests.proving import each_transport
from tests.redis_server import RedisServer
from tests.users import SECRET, of

pytestmark = pytest.mark.anyio

REQUESTS = 60
TOKENS = 1000


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster[LiveNode]]:
    limits = {
        "max_runs_per_user": 2,
        "max_connections_per_user": 3,
        "max_requests_per_minute": REQUESTS,
        "max_tokens_per_day": TOKENS,
    }
    settings = {"auth": "jwt", "jwt_secret": SECRET} | limits
    async with (
        RedisServer() as redis,
        live_cluster(tmp_path_factory.mktemp("limits"), 2, redis, **settings) as nodes,
    ):
        yield nodes


async def refused(transport: Transport, node: LiveNode, user: str) -> str:
    """Why a run is refused."""
    with pytest.raises(RefusedError) as refusal:
        await transport.start(node, {"message": "Hi"}, headers=of(user))
    assert refusal.value.status == 429
    return str(refusal.value)


@each_transport
@in_time
async def test_a_user_has_so_many_runs_on_all_nodes(nodes: Cluster[LiveNode], transport: Transport) -> None:
    gate, user, body = anyio.Event(), f"runs-{transport}", {"message": "Hi"}
    nodes.upstream.always(role(), token("Hi"), Gate(gate), finish(), Done())
    readings = [await transport.start(node, body, headers=of(user)) for node in nodes]
    for node in nodes:
        assert "answers are being written" in await refused(transport, node, user)
    gate.set()
    for reading in readings:
        await documents_of(reading)
    for node in reversed(nodes.nodes):
        await documents_of(await transport.start(node, body, headers=of(user)))


async def let_in(reader: WsReader) -> WsReader:
    """Wait until the connection counts: the handshake is answered before, and of two nodes the later may be first."""
    reader.send({"type": "ping"})
    await reader.until("pong")
    return reader


@in_time
async def test_of_connections_to_two_nodes_the_first_to_be_counted_are_let_in(nodes: Cluster[LiveNode]) -> None:
    """Not those whose handshake was the first: whatever holds a node up, there are never more than the limit."""
    nodes[1].redis.stall("requests")
    late = await WsReader.connect(nodes[1], headers=of("late"))
    readers = [await let_in(await WsReader.connect(nodes[0], headers=of("late"))) for _ in range(3)]
    nodes[1].redis.heal()
    assert (await late.closing()).code == 4429
    for reader in readers:
        reader.cut()


@in_time
async def test_a_user_has_so_many_connections_on_all_nodes(nodes: Cluster[LiveNode]) -> None:
    readers = [await let_in(await WsReader.connect(node, headers=of("connections"))) for node in (*nodes, nodes[0])]
    for node in nodes:
        assert (await (await WsReader.connect(node, headers=of("connections"))).closing()).code == 4429
    for reader in readers:
        reader.cut()


@in_time
async def test_a_user_asks_so_often_on_all_nodes(nodes: Cluster[LiveNode]) -> None:
    statuses = [
        (await request(nodes[number % 2], "GET", "/chat/sessions", headers=of("often"))).status
        for number in range(2 * REQUESTS)
    ]
    assert REQUESTS <= statuses.count(200) < 1.5 * REQUESTS
    assert statuses[:REQUESTS].count(429) == 0
    assert set(statuses) == {200, 429}


@each_transport
@in_time
async def test_the_tokens_of_a_day_are_those_on_all_nodes(nodes: Cluster[LiveNode], transport: Transport) -> None:
    user, gate = f"tokens-{transport}", anyio.Event()
    gate.set()
    nodes.upstream.always(role(), token("x" * 4 * TOKENS), Gate(gate), finish(), Done())
    await documents_of(await transport.start(nodes[0], {"message": "Hi"}, headers=of(user)))
    assert "tokens in a day" in await refused(transport, nodes[1], user)


@in_time
async def test_a_ticket_is_good_on_any_node_and_once(nodes: Cluster[LiveNode]) -> None:
    issued = await request(nodes[0], "POST", "/chat/tickets", headers=of("tickets"))
    path = f"/chat/ws?ticket={issued.json['ticket']}"
    async with await WsReader.connect(nodes[1], path) as reader:
        reader.send({"type": "ping"})
        await reader.until("pong")
    for node in nodes:
        assert (await (await WsReader.connect(node, path)).closing()).code == 4401


@in_time
async def test_the_sessions_of_another_user_are_nowhere(nodes: Cluster[LiveNode]) -> None:
    gate = anyio.Event()
    nodes.upstream.always(role(), token("secret"), Gate(gate), finish(), Done())
    reading = await SSE.start(nodes[0], {"message": "Hi", "session_id": "mine"}, headers=of("ann"))
    for node in nodes:
        for method, path in (
            ("GET", f"/chat/runs/{reading.run_id}"),
            ("GET", f"/chat/runs/{reading.run_id}/events"),
            ("POST", f"/chat/runs/{reading.run_id}/cancel"),
            ("GET", "/chat/sessions/mine"),
            ("DELETE", "/chat/sessions/mine"),
        ):
            assert (await request(node, method, path, headers=of("bob"))).status == 404
    gate.set()
    await documents_of(reading)
