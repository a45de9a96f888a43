"""Any node serves any run: what a client asks one node about a run of another."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from unittest.mock import patch

import pytest

from chatserver.log import EventLog, journal
from chatserver.log.journal import catch_up
from chatserver.nodes import follower as following
from chatserver.nodes.keys import owner_key
from chatserver.runs import runs
from tests.clients import (
    SSE,
    TRANSPORTS,
    Reading,
    RefusedError,
    Transport,
    WsReader,
    documents_of,
    get_run,
    request,
    types_of,
)
from tests.cluster import Cluster, LiveNode, live_cluster
from tests.life import GRACE_SECONDS, HEARTBEAT_SECONDS, answer_in, begun, end_of, in_time, is_cut
from tests.program import until
from tests.proving import Stage, cancelled_from, check_rest, check_whole, each_pair, each_transport, long_story
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def nodes(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster[LiveNode]]:
    directory, settings = tmp_path_factory.mktemp("elsewhere"), {"heartbeat_seconds": HEARTBEAT_SECONDS}
    async with (
        RedisServer() as redis,
        live_cluster(directory, 2, redis, grace_seconds=GRACE_SECONDS, **settings) as nodes,
    ):
        yield nodes


@pytest.fixture
def stage(nodes: Cluster[LiveNode]) -> Stage:
    """The node that owns the runs."""
    stage = Stage(nodes[0].server, nodes.upstream)
    nodes.upstream.always(stage.answer)
    return stage


@pytest.fixture
def other(nodes: Cluster[LiveNode], stage: Stage) -> Stage:
    """The node that is asked about them."""
    return replace(stage, server=nodes[1].server)


@each_pair
@in_time
async def test_a_run_is_read_on_another_node_from_any_cursor_and_to_its_end(
    stage: Stage, other: Stage, first: Transport, second: Transport
) -> None:
    story = stage.story(make=long_story)
    reading = await first.start(stage.server, story.body)
    documents = await reading.take(1)
    readings = list[tuple[int, Reading]]()
    for seq in range(1, story.last):
        documents += await reading.take(story.tell(seq) - len(documents))
        if seq % 7 == 0:
            after = len(documents) if seq % 2 else len(documents) // 2
            readings.append((after, await second.attach(other.server, reading.run_id, after)))
    story.tell(story.last)
    documents += await documents_of(reading)
    check_whole(documents, story)
    for after, there in readings:
        check_rest(await documents_of(there), after, documents)
    for each in (stage, other):
        await each.check_stored(documents)
        check_rest(await documents_of(await second.attach(each.server, reading.run_id, 3)), 3, documents)


@each_transport
@in_time
async def test_a_run_is_cancelled_on_another_node(stage: Stage, other: Stage, transport: Transport) -> None:
    story, reading = await begun(stage, transport)
    there = await transport.attach(other.server, reading.run_id)
    await cancelled_from(other.server, transport, reading.run_id)
    documents = await documents_of(reading)
    assert json.loads(documents[-1])["finish_reason"] == "cancelled"
    assert (await documents_of(there))[-1] == documents[-1]
    await is_cut(stage, story)
    assert (await get_run(other.server, reading.run_id))["status"] == "cancelled"


@each_transport
@in_time
async def test_another_node_shows_how_far_a_run_has_come(stage: Stage, other: Stage, transport: Transport) -> None:
    _, reading = await begun(stage, transport)
    run = await get_run(other.server, reading.run_id)
    assert (run["status"], run["last_seq"]) == ("running", 3)
    message = await answer_in(other, reading.run_id)
    assert (message["status"], message["content"]) == ("streaming", "one two ")
    reading.cut()


@each_transport
@in_time
async def test_a_cursor_past_the_end_is_wrong_on_another_node_too(
    stage: Stage, other: Stage, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "CATCH_UP_SECONDS", 0.2)
    _, reading = await begun(stage, transport)
    with pytest.raises(RefusedError) as refusal:
        await transport.attach(other.server, reading.run_id, 4)
    assert (refusal.value.status, refusal.value.code) == (400, "bad_cursor")
    reading.cut()


@each_transport
@in_time
async def test_a_reader_may_be_ahead_of_what_the_node_has_heard(
    nodes: Cluster[LiveNode], stage: Stage, other: Stage, transport: Transport
) -> None:
    """Over HTTP, and where requests are counted, Redis is asked first: then its messages have come, too."""
    waits = asyncio.Event()

    async def watched(log: EventLog, seq: int) -> None:
        waits.set()
        await catch_up(log, seq)

    story, reading = await begun(stage, transport)
    async with (
        await SSE.attach(other.server, reading.run_id) as follower,
        await WsReader.connect(other.server) as there,
    ):
        await follower.take(3)
        there.send({"type": "attach", "run_id": "none", "after": 0})
        assert (await there.answer())["code"] == "not_found"  # So it was let in, for which Redis was asked.
        nodes[1].redis.stall("replies")
        story.tell(4)
        await reading.take(1)
        with patch.object(runs, "catch_up", watched):
            there.send({"type": "attach", "run_id": reading.run_id, "after": 4})
            await waits.wait()
            nodes[1].redis.heal()
            assert (await there.answer())["type"] == "accepted"
        story.tell(story.last)
        documents = await documents_of(reading)
        await there.until("done")
        assert there.documents_of(reading.run_id) == documents


@each_transport
@in_time
async def test_a_request_that_is_repeated_at_another_node_starts_nothing(
    stage: Stage, other: Stage, transport: Transport
) -> None:
    story, reading = await begun(stage, transport, idempotency_key=f"key-{transport}")
    again = await transport.start(other.server, story.body | {"idempotency_key": f"key-{transport}"})
    assert again.run_id == reading.run_id
    documents = reading.documents[:3]
    story.tell(story.last)
    documents += await documents_of(reading)
    check_rest(await documents_of(again), 0, documents)
    asked = [each for each in stage.upstream.requests if each.json["messages"][-1]["content"] == story.body["message"]]
    assert len(asked) == 1


@each_transport
@in_time
async def test_a_session_takes_one_run_at_a_time_over_all_nodes(
    nodes: Cluster[LiveNode], stage: Stage, other: Stage, transport: Transport
) -> None:
    (redis,) = nodes[0].redis.targets
    assert isinstance(redis, RedisServer)
    _, reading = await begun(stage, transport, session_id=f"busy-{transport}")
    owned = set(await redis.call("KEYS", owner_key("*")))

    async def nothing_stays_of_what_was_refused() -> bool:
        return set(await redis.call("KEYS", owner_key("*"))) <= owned

    with pytest.raises(RefusedError) as refusal:
        await transport.start(other.server, {"message": "And?", "session_id": f"busy-{transport}"})
    assert (refusal.value.status, refusal.value.code) == (409, "run_active")
    await until(nothing_stays_of_what_was_refused)
    reading.cut()


@each_transport
@in_time
async def test_a_session_is_deleted_at_another_node_with_its_active_run_and_those_that_are_over(
    stage: Stage, other: Stage, transport: Transport
) -> None:
    session_id = f"deleted-{transport}"
    story, old = await begun(stage, transport, session_id=session_id)
    story.tell(story.last)
    await documents_of(old)
    story, reading = await begun(stage, transport, session_id=session_id)
    assert (await request(other.server, "DELETE", f"/chat/sessions/{session_id}")).status == 204
    documents = await documents_of(reading)
    assert json.loads(documents[-1])["finish_reason"] == "cancelled"
    await is_cut(stage, story)
    for each in (stage, other):
        assert (await request(each.server, "GET", f"/chat/sessions/{session_id}")).status == 404
        for run_id in (old.run_id, reading.run_id):
            assert (await request(each.server, "GET", f"/chat/runs/{run_id}")).status == 404
            for way in TRANSPORTS:
                with pytest.raises(RefusedError) as refusal:
                    await way.attach(each.server, run_id)
                assert refusal.value.status == 404


@each_transport
@in_time
async def test_an_owner_that_was_replaced_ends_its_run_as_after_a_crash(
    nodes: Cluster[LiveNode], stage: Stage, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SILENT_SECONDS", 0.1)  # No new owner is here to say that the run has ended.
    story, reading = await begun(stage, transport)
    (redis,) = nodes[0].redis.targets
    assert isinstance(redis, RedisServer)
    await redis.call("HSET", owner_key(reading.run_id), "node", "another")
    story.tell(4)
    await is_cut(stage, story)
    documents = await documents_of(reading)
    assert (types_of(documents), json.loads(documents[-1])["code"]) == (["snapshot", "error"], "interrupted")
    assert (await get_run(stage.server, reading.run_id))["status"] == "failed"


# Readers


async def passes_grace(stage: Stage) -> None:
    """Wait for as long as an abandoned run is kept."""
    _, reading = await begun(stage, SSE)
    reading.cut()
    assert (await end_of(stage, reading.run_id))["finish_reason"] == "cancelled"


@each_pair
@in_time
async def test_a_reader_at_another_node_keeps_a_run_going_until_it_leaves(
    stage: Stage, other: Stage, first: Transport, second: Transport
) -> None:
    story, reading = await begun(stage, first)
    there = await second.attach(other.server, reading.run_id)
    await there.take(3)
    reading.cut()
    await passes_grace(stage)
    story.tell(4)
    assert types_of(await there.take(1)) == ["token"]
    there.cut()
    assert (await end_of(other, reading.run_id))["finish_reason"] == "cancelled"
    await is_cut(stage, story)


@each_transport
@in_time
async def test_a_run_goes_on_whose_last_reader_comes_back_at_another_node(
    stage: Stage, other: Stage, transport: Transport
) -> None:
    story, reading = await begun(stage, transport)
    documents = reading.documents
    for node in (other, stage, other):
        reading.cut()
        reading = await transport.attach(node.server, reading.run_id, 3)
        await passes_grace(stage)
    story.tell(story.last)
    check_whole([*documents, *await documents_of(reading)], story)
