"""Who may come in, asked over all nodes: exact when all ask at once, whatever dies, is lost, or goes and comes back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import pytest

from chatserver.errors import TooMany, Unavailable
from chatserver.limits import EVERYBODY, RateLimiter
from chatserver.nodes import open_counts
from chatserver.nodes.address import Address
from chatserver.nodes.admissions import SharedAdmissions
from chatserver.nodes.keys import NODES, open_key, requests_key
from chatserver.nodes.link import Link, open_link
from chatserver.nodes.open_counts import OpenCounts
from chatserver.nodes.places import SharedPlaces
from chatserver.runs.places import LocalDays, LocalPlaces, Place
from chatserver.settings import Settings
from chatserver.transports.admission import Admission, LocalAdmissions
from tests.redis_process import RedisProcess

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
NODE_COUNT = 3
LIMIT = 5
PER_MINUTE = 6
SETTINGS = Settings(auth="jwt", jwt_secret="x" * 32, max_runs=7, max_runs_per_user=LIMIT)


@dataclass(frozen=True)
class Node:
    """What a node counts with."""

    name: str
    link: Link
    counts: OpenCounts
    local: LocalAdmissions
    admissions: SharedAdmissions
    places: SharedPlaces

    @classmethod
    def on(cls, link: Link, number: int, per_minute: int | None) -> "Node":
        counts = OpenCounts(link, name := f"node{number}")
        local = LocalAdmissions(RateLimiter(per_minute), LIMIT)
        places = LocalPlaces(SETTINGS, LocalDays(None, _nothing))
        return cls(name, link, counts, local, SharedAdmissions(counts, local), SharedPlaces(counts, places))


async def _nothing(user: str, day: str) -> int:
    return 0


@pytest.fixture
async def make_nodes(redis_server: RedisProcess) -> AsyncIterator[Callable[..., Awaitable[list[Node]]]]:
    async with AsyncExitStack() as stack:

        async def make(per_minute: int | None = None) -> list[Node]:
            links = [await stack.enter_async_context(open_link(Address(redis_server.url))) for _ in range(NODE_COUNT)]
            nodes = [Node.on(link, number, per_minute) for number, link in enumerate(links)]
            await links[0].command("SADD", NODES, *(node.name for node in nodes))
            return nodes

        yield make


@pytest.fixture
async def nodes(make_nodes: Callable[..., Awaitable[list[Node]]]) -> list[Node]:
    return await make_nodes()


async def outcomes(calls: list[Awaitable[Any]]) -> list[Any]:
    """What all come to that are asked at once: a result each, or a refusal."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, Admission | Place | TooMany | None) for each in results), results
    return [each for each in results if not isinstance(each, TooMany)]


async def until_admitted(verb: Callable[[], Awaitable[Any]]) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while True:
            try:
                await verb()
            except TooMany:
                await anyio.sleep(0.01)
            else:
                return


async def counts_of(node: Node) -> dict[str, int]:
    """What Redis has of a node, when all that the node has said has come."""
    await anyio.wait_all_tasks_blocked()
    found = await node.link.command("HGETALL", open_key(node.name))
    return {field.decode(): int(count) for field, count in found.items()}


# ---- what is open ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["admit", "admit_request"])
async def test_a_user_has_so_many_over_all_nodes_when_all_ask_at_once(nodes: list[Node], verb: str) -> None:
    asked = [(node, user) for _ in range(LIMIT + 1) for node in nodes for user in ("ann", "ben")]
    admitted = await outcomes([getattr(node.admissions, verb)(user) for node, user in asked])
    assert Counter(each._user for each in admitted) == {"ann": LIMIT, "ben": LIMIT}
    for each in [each for each in admitted if each._user == "ann"][:2]:
        await each.release()
    for node in nodes:
        await counts_of(node)
    again = await outcomes([getattr(node.admissions, verb)("ann") for node in nodes])
    assert len(again) == 2


async def test_streams_and_requests_are_counted_apart(nodes: list[Node]) -> None:
    for _ in range(LIMIT):
        await nodes[0].admissions.admit("ann")
    with pytest.raises(TooMany, match=f"at most {LIMIT} connections at a time"):
        await nodes[1].admissions.admit("ann")
    await nodes[1].admissions.admit_request("ann")


async def test_runs_have_so_many_places_over_all_nodes_when_all_ask_at_once(nodes: list[Node]) -> None:
    places = await outcomes([node.places.acquire("ann") for _ in range(LIMIT) for node in nodes])
    assert len(places) == LIMIT
    with pytest.raises(TooMany, match="5 answers are"):
        await nodes[0].places.acquire("ann")
    others = await outcomes([node.places.acquire("ben") for _ in range(LIMIT) for node in nodes])
    assert len(places + others) == SETTINGS.max_runs
    with pytest.raises(TooMany, match="7 answers are"):
        await nodes[0].places.acquire("eve")
    for each in places + others:
        await each.release()
    assert [await counts_of(node) for node in nodes] == [{}, {}, {}]


async def test_what_is_released_is_written_once_however_much_it_is(nodes: list[Node]) -> None:
    node = nodes[0]
    held = [await node.admissions.admit(f"user {number}") for number in range(50)]
    assert await counts_of(node) == {f"connections:user {number}": 1 for number in range(50)}
    before = await scripts_run(node)
    for each in held:
        await each.release()
    assert await counts_of(node) == {}
    assert await scripts_run(node) - before == 1


async def scripts_run(node: Node) -> int:
    stats = await node.link.command("INFO", "commandstats")
    lines = [line for line in stats.decode().splitlines() if line.startswith("cmdstat_eval")]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines)


async def test_what_a_dead_node_had_open_counts_no_more(nodes: list[Node]) -> None:
    dead, living, _ = nodes
    for _ in range(LIMIT):
        await dead.admissions.admit("ann")
        await dead.places.acquire("ann")
    for verb in (living.admissions.admit, living.places.acquire):
        with pytest.raises(TooMany):
            await verb("ann")
    assert 0 < await living.link.command("PTTL", open_key(dead.name)) <= open_counts.COUNTS_MS
    await living.link.command("PEXPIRE", open_key(dead.name), 1)
    for verb in (living.admissions.admit, living.places.acquire):
        await until_admitted(partial(verb, "ann"))


async def test_what_is_renewed_stands(nodes: list[Node]) -> None:
    node = nodes[0]
    await node.admissions.admit("ann")
    await node.link.command("PEXPIRE", open_key(node.name), 1000)
    node.counts.renew()
    assert await node.link.command("PTTL", open_key(node.name)) > 1000


async def test_what_redis_has_lost_is_written_again(nodes: list[Node]) -> None:
    for node in nodes:
        await node.admissions.admit("ann")
        await node.places.acquire("ben")
    await nodes[0].link.command("FLUSHALL")
    for node in nodes:
        node.counts.renew()
        assert await counts_of(node) == {"connections:ann": 1, "runs:ben": 1, f"runs:{EVERYBODY}": 1}


async def test_a_node_with_many_users_is_written_in_parts(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_counts, "FIELDS_AT_ONCE", 7)
    node = nodes[0]
    await outcomes([node.admissions.admit(f"user {number}") for number in range(40)])
    await node.link.command("HSET", open_key(node.name), "connections:nobody", 9)
    node.counts.renew()
    assert await counts_of(node) == {f"connections:user {number}": 1 for number in range(40)}


# ---- how often one asks ----------------------------------------------------------------------------------------------


async def test_a_user_asks_so_often_over_all_nodes_when_all_ask_at_once(
    make_nodes: Callable[..., Awaitable[list[Node]]],
) -> None:
    nodes = await make_nodes(PER_MINUTE)
    verbs = [node.admissions.count for node in nodes] + [node.admissions.admit for node in nodes]
    assert len(await outcomes([verb("ann") for _ in range(3) for verb in verbs])) == PER_MINUTE
    with pytest.raises(TooMany, match="at most 6 requests in a minute") as refused:
        await nodes[0].admissions.count("ann")
    assert 1 <= (refused.value.retry_after or 0) <= 60 / PER_MINUTE
    await nodes[1].admissions.count("ben")


async def test_the_rate_is_that_of_the_bucket_in_one_process(
    make_nodes: Callable[..., Awaitable[list[Node]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes after a time finds as many drops here as there; the time is made to pass in Redis."""
    node, *_ = await make_nodes(PER_MINUTE)
    now, alone = [0.0], RateLimiter(PER_MINUTE)
    monkeypatch.setattr("chatserver.limits.monotonic", lambda: now[0])
    for waited in (0, 5, 6, 0, 25, 1, 14, 100, 0, 35):
        now[0] += waited
        if paid := await node.link.command("GET", requests_key("ann")):
            await node.link.command("SET", requests_key("ann"), int(paid) - waited * 1_000_000, "PX", 100_000)
        for _ in range(3):
            assert await is_let(node.admissions.count, "ann") == await is_let(alone_count(alone), "ann")


def alone_count(limiter: RateLimiter) -> Callable[[str], Awaitable[None]]:
    async def count(user: str) -> None:
        limiter.count(user)

    return count


async def is_let(count: Callable[[str], Awaitable[None]], user: str) -> bool:
    try:
        await count(user)
    except TooMany:
        return False
    return True


async def test_a_clock_that_was_ahead_keeps_nobody_out_for_longer(
    make_nodes: Callable[..., Awaitable[list[Node]]],
) -> None:
    """After a failover the clock is that of another machine."""
    node, *_ = await make_nodes(PER_MINUTE)
    await node.link.command("SET", requests_key("ann"), 10**16)
    with pytest.raises(TooMany) as refused:
        await node.admissions.count("ann")
    assert refused.value.retry_after == 60 / PER_MINUTE


async def test_where_nobody_counts_requests_redis_is_not_asked(nodes: list[Node]) -> None:
    before = await scripts_run(nodes[0])
    await nodes[0].admissions.count("local")
    assert await scripts_run(nodes[0]) == before


# ---- without Redis ---------------------------------------------------------------------------------------------------


async def test_while_redis_is_away_each_node_counts_for_itself_and_then_all_together_again(
    make_nodes: Callable[..., Awaitable[list[Node]]], redis_server: RedisProcess
) -> None:
    """Also what was begun and ended meanwhile; of runs, none is begun."""
    nodes = await make_nodes()
    gone = await nodes[0].admissions.admit("ann")
    redis_server.stop()
    for node in nodes:
        node.counts.renew()  # Redis has nothing of it, and is not missed.
        held = await outcomes([node.admissions.admit("ann") for _ in range(LIMIT + 1)])
        assert len(held) + (node is nodes[0]) == LIMIT
        for each in held[2:]:
            await each.release()
        with pytest.raises(Unavailable):
            await node.places.acquire("ann")
    await gone.release()
    redis_server.start()
    await all_up(nodes)
    await nodes[0].link.command("SADD", NODES, *(node.name for node in nodes))
    assert [await counts_of(node) for node in nodes] == [{"connections:ann": 2}] * NODE_COUNT
    with pytest.raises(TooMany):
        await nodes[0].admissions.admit("ann")
    await nodes[0].places.acquire("ann")


async def test_while_redis_is_away_each_node_counts_requests_for_itself(
    make_nodes: Callable[..., Awaitable[list[Node]]], redis_server: RedisProcess
) -> None:
    nodes = await make_nodes(PER_MINUTE)
    redis_server.stop()
    try:
        for node in nodes:
            assert len(await outcomes([node.admissions.count("ann") for _ in range(9)])) == PER_MINUTE
    finally:
        redis_server.start()


async def test_a_full_redis_is_one_that_is_away(
    make_nodes: Callable[..., Awaitable[list[Node]]], redis_server: RedisProcess
) -> None:
    """It answers, and takes nothing: what it refused is written when it takes again."""
    node, other, _ = await make_nodes(PER_MINUTE)
    redis_server.cli("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(Unavailable):
            await node.places.acquire("ann")
        assert await counts_of(node) == {}
        held = [await node.admissions.admit("ann") for _ in range(LIMIT)]
        with pytest.raises(TooMany):
            await node.admissions.admit("ann")
        await held.pop().release()
        assert await counts_of(node) == {}
    finally:
        redis_server.cli("CONFIG", "SET", "maxmemory", "0")
    node.counts.renew()
    assert await counts_of(node) == {"connections:ann": LIMIT - 1}
    await other.admissions.admit("ann")
    with pytest.raises(TooMany):
        await other.admissions.admit("ann")


async def all_up(nodes: list[Node]) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        while not all(node.link.is_up for node in nodes):  # noqa: ASYNC110 - its tasks are the link's own
            await anyio.sleep(0.01)
