"""Nodes that die, freeze or are cut off from Redis: their runs come to one end, and every reader is told the same."""

import json
from collections.abc import AsyncIterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.log import SEQ_LIMIT
from chatserver.nodes import follower, membership
from chatserver.nodes.keys import node_key, owner_key, run_key
from chatserver.nodes.membership import Membership
from chatserver.sessions import leases
from chatserver.sessions.leases import Lease
from tests.clients import (
    TRANSPORTS,
    Reading,
    RefusedError,
    Transport,
    cancel,
    documents_of,
    get_run,
    request,
    text_of,
    when_available,
)
from tests.cluster import Cluster, LiveNode, cluster, live_cluster
from tests.fake_upstream import Done, FakeUpstream, Gate, Hang, Step, finish, role, say, token
from tests.life import in_time
from tests.program import until
from tests.proving import held
from tests.redis_server import RedisServer
from tests.scrapes import scrape

pytestmark = pytest.mark.anyio

PUBLISHED = 20
"""Tokens that were sent before the owner dies, within its first checkpoint: the database has none of them."""


SECONDS = 100
"""How long a test may take that starts processes, on a machine that does much else."""


@pytest.fixture
async def redis() -> AsyncIterator[RedisServer]:
    async with RedisServer() as redis:
        yield redis


def tokens() -> list[Step]:
    return [role(), *(token(f"{number} ") for number in range(PUBLISHED))]


TEXT = "".join(f"{number} " for number in range(PUBLISHED))


class Story:
    """A run that has said a part, with a reader at its owner, ``nodes[0]``, and one that has come to ``nodes[1]``."""

    def __init__(self, transport: Transport, here: Reading, there: Reading) -> None:
        self.transport = transport
        self.here = here
        self.there = there
        self.run_id = here.run_id
        self.path = f"/chat/sessions/{transport}"

    async def said(self, node: Any) -> str:
        """What is stored of the answer."""
        return str((await request(node, "GET", self.path)).json["messages"][-1]["content"])

    async def is_stored(self, node: Any) -> None:
        """It is stored once, with all that was published, and its session is free."""
        run = await get_run(node, self.run_id)
        assert (run["status"], run["error"]["code"]) == ("failed", "interrupted")
        assert run["last_seq"] == SEQ_LIMIT + 2
        rest = await documents_of(await self.transport.attach(node, self.run_id, SEQ_LIMIT + 1))
        assert [json.loads(each)["type"] for each in rest] == ["error"]
        session = (await request(node, "GET", self.path)).json
        assert session["active_run_id"] is None
        (asked, answer) = session["messages"]
        assert (asked["content"], answer["status"]) == ("Hi", "partial")
        assert answer["content"].startswith(TEXT)
        await ends_as_lost(await self.transport.attach(node, self.run_id, 5))


async def begun(nodes: Cluster[Any], *steps: Step) -> list[Story]:
    """A run for each transport."""
    stories = []
    for transport in TRANSPORTS:
        nodes.upstream.script(*tokens(), *steps)
        here = await transport.start(nodes[0], asked(transport))
        documents = await here.take(1 + PUBLISHED)
        assert text_of(documents) == TEXT, documents
        there = await transport.attach(nodes[1], here.run_id, 1 + PUBLISHED)
        stories.append(Story(transport, here, there))
    return stories


def asked(transport: Transport) -> dict[str, str]:
    return {"message": "Hi", "session_id": str(transport), "on_disconnect": "continue"}


async def ends_as_lost(reading: Reading) -> None:
    """A reader that has seen what was published is told of it once more, as one snapshot, and of the end.

    The snapshot may hold more: what the owner had stored already, and had not published.
    """
    documents = await documents_of(reading)
    events = [json.loads(each) for each in documents]
    assert [each["type"] for each in events] == ["snapshot", "error"], events
    assert [each["seq"] for each in events] == [SEQ_LIMIT + 1, SEQ_LIMIT + 2]
    assert events[-1]["code"] == "interrupted"
    assert text_of(documents).startswith(TEXT)


async def takes_runs(node: Any, upstream: FakeUpstream) -> None:
    """A node takes new runs, now or soon."""
    for transport in TRANSPORTS:
        upstream.script(*say("Next"))
        reading = await when_available(partial(transport.start, node, asked(transport)))
        assert text_of(await documents_of(reading)) == "Next"


PATIENCE = ("-m", "tests.odd_node", "patience")


async def lease_runs_out(redis: RedisServer, run_id: str) -> None:
    """Spare the wait for the lease of a run's owner, which renews it no more: that part is up to Redis alone."""
    owner = await redis.call("HGET", owner_key(run_id), "node")
    assert await redis.call("PEXPIRE", node_key(owner), 1) == 1


async def test_the_runs_of_a_node_that_dies_end_on_another_with_all_that_was_published(
    tmp_path: Path, redis: RedisServer, url: str
) -> None:
    with anyio.fail_after(SECONDS):
        async with cluster(tmp_path, 3, redis, database_url=url, start=PATIENCE) as nodes:
            stories = await begun(nodes, Hang())
            nodes[0].kill()
            await nodes[0].wait()
            await lease_runs_out(redis, stories[0].run_id)
            for story in stories:
                await ends_as_lost(story.there)
                story.here.cut()
                for node in nodes.nodes[1:]:
                    await story.is_stored(node)
            await takes_runs(nodes[2], nodes.upstream)
            assert "Traceback" not in nodes[1].output + nodes[2].output


async def test_a_node_that_was_frozen_says_nothing_more_of_runs_that_were_taken(
    tmp_path: Path, redis: RedisServer
) -> None:
    gate = anyio.Event()
    with anyio.fail_after(SECONDS):
        async with cluster(tmp_path, 2, redis, start=PATIENCE) as nodes:
            stories = await begun(nodes, Gate(gate), token("never"), Hang())
            nodes[0].freeze()
            await lease_runs_out(redis, stories[0].run_id)
            for story in stories:
                await ends_as_lost(story.there)
            gate.set()
            nodes[0].thaw()
            for story in stories:
                await ends_as_lost(story.here)
                for node in nodes:
                    await story.is_stored(node)
            await nodes.upstream.closed(len(stories))
            for node in nodes:
                await takes_runs(node, nodes.upstream)
            assert "Traceback" not in nodes[0].output + nodes[1].output


# Nodes in this loop


@pytest.fixture
async def nodes(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster[LiveNode]]:
    """Nodes that are taken for gone sooner, and take themselves for cut off when a test says so."""
    monkeypatch.setattr(membership, "BETWEEN_LOOKS_SECONDS", 0.1)
    monkeypatch.setattr(membership, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(membership, "MISSED_SECONDS", 1.0)
    monkeypatch.setattr(membership, "CUT_OFF_SECONDS", inf)
    async with live_cluster(tmp_path, 2, redis) as nodes:
        yield nodes


@in_time
async def test_a_node_that_is_cut_off_from_redis_loses_its_runs_to_another(
    nodes: Cluster[LiveNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = anyio.Event()
    stories = await begun(nodes, Gate(gate), token("never"), Hang())
    nodes[0].redis.cut()
    gate.set()
    for story in stories:
        await ends_as_lost(story.there)
    monkeypatch.setattr(membership, "CUT_OFF_SECONDS", 0.5)
    for story in stories:
        await ends_as_lost(story.here)
        for node in nodes:
            await story.is_stored(node)
        with pytest.raises(RefusedError) as refusal:
            await story.transport.start(nodes[0], asked(story.transport))
        assert (refusal.value.status, refusal.value.code) == (503, "unavailable")
    await nodes.upstream.closed(len(stories))
    monkeypatch.setattr(membership, "CUT_OFF_SECONDS", inf)
    nodes[0].redis.heal()
    await takes_runs(nodes[0], nodes.upstream)
    found = [await scrape(node) for node in nodes]
    assert sum(each("chatserver_runs_ended_total", reason="interrupted") for each in found) == len(stories)


@in_time
async def test_a_cancel_that_the_owner_may_never_have_heard_ends_the_run_as_cancelled(nodes: Cluster[LiveNode]) -> None:
    stories = await begun(nodes, Hang())
    nodes[0].redis.stall()
    for story in stories:
        assert (await cancel(nodes[1], story.run_id)).status == 202
    there = [await documents_of(story.there) for story in stories]
    nodes[0].redis.heal()
    for story, documents in zip(stories, there, strict=True):
        events = [json.loads(each) for each in documents]
        assert [each["type"] for each in events] == ["snapshot", "done"]
        assert events[-1]["finish_reason"] == "cancelled"
        assert await documents_of(story.here) == documents
        run = await get_run(nodes[0], story.run_id)
        assert (run["status"], run["error"]) == ("cancelled", None)
    await nodes.upstream.closed(len(stories))
    found = [await scrape(node) for node in nodes]
    assert sum(each("chatserver_runs_ended_total", reason="cancelled") for each in found) == len(stories)


class SlowLease:
    """The lease of a node in the database, which the node renews when a test says so."""

    def __init__(self, node: LiveNode, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lease: Lease = node.server.runs._sessions._lease
        monkeypatch.setattr(leases, "GONE_SECONDS", inf)
        monkeypatch.setattr(self._lease, "_renew", anyio.sleep_forever)

    async def is_taken(self) -> bool:
        """Whether another node has taken this one for gone."""
        _, beats = await self._lease._database.read(leases._owners_and_beats)
        return self._lease.owner not in beats

    async def renew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self._lease, "_renew", partial(Lease._renew, self._lease))
        await self._lease._renew_and_tell()


@in_time
async def test_a_node_that_was_taken_for_gone_goes_on_with_what_nobody_has_taken(
    nodes: Cluster[LiveNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a stall of Redis that lasts longer for one node than for others."""
    gate, lease = anyio.Event(), SlowLease(nodes[0], monkeypatch)
    nodes[0].redis.stall()
    await until(lease.is_taken)
    nodes[0].redis.heal()
    await takes_runs(nodes[0], nodes.upstream)
    stories = await begun(nodes, Gate(gate), token("more"), finish(), Done())
    assert await lease.is_taken()
    await lease.renew(monkeypatch)
    gate.set()
    for story in stories:
        for reading in (story.here, story.there):
            documents = await documents_of(reading)
            assert (text_of(documents), json.loads(documents[-1])["type"]) == ("more", "done")


@in_time
async def test_a_node_that_was_taken_for_gone_finds_what_others_have_taken_and_not_ended_yet(
    nodes: Cluster[LiveNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that says nothing; and none of what others were told is missing from the end that it stores."""
    monkeypatch.setattr(follower, "SILENT_SECONDS", inf)
    gate = anyio.Event()
    stories, lease = await begun(nodes, Gate(gate), token("more"), Hang()), SlowLease(nodes[0], monkeypatch)
    with held(Membership, "take", done=True) as hold:
        nodes[0].redis.lose("replies")
        gate.set()
        for story in stories:
            assert text_of(await story.there.take(1)) == "more"
        nodes[0].redis.stall()
        await hold.come.wait()
        nodes[0].redis.heal()
        await lease.renew(monkeypatch)
        for story in stories:
            events = [json.loads(each) for each in await documents_of(story.here)]
            assert [each["type"] for each in events[-2:]] == ["snapshot", "error"], events
            await story.is_stored(nodes[0])
            assert (await story.said(nodes[0])).endswith(" more")
            assert [json.loads(each)["type"] for each in await documents_of(story.there)] == ["snapshot", "error"]
    await nodes.upstream.closed(len(stories))


@in_time
async def test_runs_end_stored_when_redis_is_gone_for_long_and_all_heals_by_itself(
    nodes: Cluster[LiveNode], redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = anyio.Event()
    stories = await begun(nodes, Gate(gate), token("unseen"), Hang())
    await redis.stop(keep=False)
    gate.set()
    await reaches_redis(nodes[0], "down")
    for story in stories:
        with pytest.raises(RefusedError) as refusal:
            await story.transport.start(nodes[1], {"message": "Hi"})
        assert (refusal.value.status, refusal.value.code) == (503, "unavailable")
        assert (await cancel(nodes[1], story.run_id)).status == 503
        assert (await request(nodes[1], "GET", story.path)).json["active_run_id"] == story.run_id
        assert (await get_run(nodes[1], story.run_id))["status"] == "running"
    monkeypatch.setattr(membership, "CUT_OFF_SECONDS", 0.5)
    for story in stories:
        for reading in (story.here, story.there):
            documents = await documents_of(reading)
            assert text_of(documents) == "unseen"
            assert json.loads(documents[-1])["code"] == "interrupted"
        for node in nodes:
            assert (await get_run(node, story.run_id))["error"]["code"] == "interrupted"
            documents = await documents_of(await story.transport.attach(node, story.run_id))
            assert text_of(documents) == TEXT + "unseen"
    monkeypatch.setattr(membership, "CUT_OFF_SECONDS", inf)
    await redis.start()
    for node in nodes:
        await takes_runs(node, nodes.upstream)
    await reaches_redis(nodes[0], "ready")


async def reaches_redis(node: LiveNode, state: str) -> None:
    """Wait until this is what operators are told. Load balancers keep the node: it serves what the database has."""

    async def says_so() -> bool:
        ready = await request(node, "GET", "/readyz")
        assert ready.status == 200
        return bool(ready.json["redis"] == state)

    await until(says_so)


@in_time
async def test_runs_go_on_when_redis_comes_back_in_time_without_its_data(
    nodes: Cluster[LiveNode], redis: RedisServer
) -> None:
    gate = anyio.Event()
    stories = await begun(nodes, Gate(gate), token("more"), finish(), Done())
    await redis.stop(keep=False)
    await redis.start()
    gate.set()
    for story in stories:
        rest = await documents_of(story.here)
        assert (text_of(rest), json.loads(rest[-1])["type"]) == ("more", "done")
        assert await documents_of(story.there) == rest


@in_time
@pytest.mark.parametrize("loss", ["FLUSHALL", "a failover"])
async def test_the_owner_of_a_quiet_run_is_found_again(nodes: Cluster[LiveNode], redis: RedisServer, loss: str) -> None:
    """Else nobody could cancel the run, and its readers on other nodes would not count."""
    for story in await begun(nodes, Hang()):
        if loss == "FLUSHALL":
            await redis.call(loss)
        else:  # What follows the failover: a replica that had not heard of the run.
            await redis.call("DEL", owner_key(story.run_id), run_key(story.run_id))
            nodes[0].redis.cut()
            nodes[0].redis.heal()
        await until(partial(redis.call, "EXISTS", owner_key(story.run_id)))
        await cancel(nodes[1], story.run_id)
        for reading in (story.here, story.there):
            assert json.loads((await documents_of(reading))[-1])["finish_reason"] == "cancelled"


@in_time
async def test_a_redis_that_loses_its_data_ends_no_run(nodes: Cluster[LiveNode], redis: RedisServer) -> None:
    gate = anyio.Event()
    stories = await begun(nodes, Gate(gate), token("more"), finish(), Done())
    for _ in range(2):
        await redis.call("FLUSHALL")
        await anyio.sleep(membership.LEASE_SECONDS + membership.MISSED_SECONDS)
    gate.set()
    for story in stories:
        for reading in (story.here, story.there):
            assert text_of(await documents_of(reading)) == "more"
