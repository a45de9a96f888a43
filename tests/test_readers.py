"""However many read a run, whenever they come and whoever cancels it: all see the same, and it ends once."""

import itertools
import json
import socket
from collections.abc import AsyncIterator
from random import Random

import anyio
import pytest

from tests.clients import (
    SSE,
    TRANSPORTS,
    WS,
    NdjsonReader,
    SseReader,
    Transport,
    WsReader,
    cancel,
    documents_of,
    is_terminal,
)
from tests.conftest import Scale
from tests.merging import first_seq_of, unmerged
from tests.proving import (
    PATIENCE_SECONDS,
    Stage,
    cancelled_from,
    check_once,
    check_rest,
    check_same,
    check_silence,
    check_whole,
    each_transport,
    seeded,
    staged,
    turns,
)

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


# ---- ten readers ----------------------------------------------------------------------------------------------------


async def readers_agree(stage: Stage, rng: Random, *, cancels: bool, count: int = 10) -> None:
    """Readers come at random moments, from random cursors, beside one who is always there; one of them may cancel."""
    story, whole = stage.story(), list[bytes]()
    moments = [anyio.Event() for _ in range(story.last)]
    found: list[tuple[int, list[bytes]]] = []
    run = await rng.choice(TRANSPORTS).start(stage.server, story.body)

    async def read(transport: Transport, moment: int, after: int, delay: int) -> None:
        await moments[moment].wait()
        await turns(delay)
        after = min(after, len(whole) - 1)
        found.append((after, await documents_of(await transport.attach(stage.server, run.run_id, after))))

    async def read_and_cancel(transport: Transport, moment: int) -> None:
        await moments[moment].wait()
        found.append((0, await _cancelled_by_reader(stage, transport, run.run_id)))

    with anyio.fail_after(PATIENCE_SECONDS):
        async with run, anyio.create_task_group() as readers:
            for _ in range(count - 1 - cancels):
                moment = rng.randrange(1, story.last)
                readers.start_soon(read, rng.choice(TRANSPORTS), moment, rng.randrange(moment + 1), rng.randrange(60))
            if cancels:
                readers.start_soon(read_and_cancel, rng.choice(TRANSPORTS), rng.randrange(story.last - 1))
            for seq in range(1, story.last + (not cancels)):
                story.tell(seq)
                whole += filter(None, [await run.next()])
                moments[seq - 1].set()
            whole += [document async for document in run]
            moments[-1].set()
    check_once(whole)
    assert json.loads(whole[-1])["finish_reason"] == ("cancelled" if cancels else "stop")
    assert len(found) == count - 1
    for after, documents in found:
        check_rest(documents, after, whole)
    await stage.check_stored(whole)


async def _cancelled_by_reader(stage: Stage, transport: Transport, run_id: str) -> list[bytes]:
    """What a reader sees who cancels the run, on a WebSocket over its own connection."""
    if transport is not WS:
        async with await transport.attach(stage.server, run_id) as reading:
            first = await reading.take(1)
            assert (await cancel(stage.server, run_id)).status == 202
            return first + await documents_of(reading)
    async with await WsReader.connect(stage.server) as reader:
        await reader.attach(run_id)
        await reader.cancel(run_id)
        await _read_to_end(reader, run_id)
        return list(reader.documents)


async def _read_to_end(reader: WsReader, *run_ids: str) -> None:
    """Read until these runs are over, and see that they are."""
    while not all(documents and is_terminal(documents[-1]) for documents in map(reader.documents_of, run_ids)):
        await reader.frame()
    reader.pass_over()  # A run may end before its cancel is answered.
    await check_silence(reader)


@pytest.mark.parametrize("cancels", [True, False], ids=["one-cancels", "nobody-cancels"])
async def test_ten_readers_see_the_same_and_one_end(stage: Stage, cancels: bool, scale: Scale) -> None:
    rng = seeded()
    for _ in range(scale(12, 200)):
        await readers_agree(stage, rng, cancels=cancels)


async def cancel_closes_the_upstream(stage: Stage, transport: Transport) -> None:
    """The upstream sees its request closed when its run is cancelled, and no other one."""
    other, story = stage.story(told=7), stage.story(told=40)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            await SSE.start(stage.server, other.body) as bystander,
            await transport.start(stage.server, story.body) as reading,
        ):
            await bystander.take(7)
            await reading.take(40)
            cuts = len(stage.upstream.cuts)
            await cancelled_from(stage.server, transport, reading.run_id)
            await stage.upstream.closed(cuts + 1)
            documents = await documents_of(reading)
            assert json.loads(documents[-1])["finish_reason"] == "cancelled"
            other.tell(other.last)
            await documents_of(bystander)
    assert len(stage.upstream.cuts) == cuts + 1


@each_transport
async def test_a_cancel_closes_the_upstream(stage: Stage, transport: Transport) -> None:
    await cancel_closes_the_upstream(stage, transport)


async def stores_before_it_says(stage: Stage, transport: Transport) -> None:
    """Who has seen `done` finds the answer stored."""
    story = stage.story(told=60)
    with anyio.fail_after(PATIENCE_SECONDS):
        documents = await documents_of(await transport.start(stage.server, story.body))
        await stage.check_stored(documents)
    check_whole(documents, story)


@each_transport
async def test_the_answer_is_stored_before_done(stage: Stage, transport: Transport) -> None:
    await stores_before_it_says(stage, transport)


# ---- one WebSocket --------------------------------------------------------------------------------------------------


async def moves_its_cursor(stage: Stage, moves: int, rng: Random) -> None:
    """Each further attach on one connection moves the cursor: what follows it comes, and nothing of before."""
    story, cursors, whole = stage.story(), list[int](), list[bytes]()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with (
            await SSE.start(stage.server, story.body) as starter,
            await WsReader.connect(stage.server) as reader,
        ):
            for stand in sorted(rng.randrange(1, story.last) for _ in range(moves)):
                stands = story.tell(stand)
                whole += await starter.take(stands - len(whole))
                cursors.append(rng.randrange(stands + 1))
                reader.send({"type": "attach", "run_id": starter.run_id, "after": cursors[-1]})
            for _ in cursors:
                assert (await reader.answer())["type"] == "accepted"
            story.tell(story.last)
            await _read_to_end(reader, starter.run_id)
            whole += await documents_of(starter)
    moved, after = iter(cursors), -1
    for frame in reader.frames:
        if frame.is_answer:
            after = next(moved)
        elif frame.is_event:
            assert first_seq_of(frame.raw) == after + 1, f"{frame.raw!r} follows {after}"
            seq = frame.message["seq"]
            assert unmerged([frame.raw], whole) == whole[after:seq]
            after = seq
    assert after == len(whole)


async def test_attaching_again_moves_the_cursor(stage: Stage, scale: Scale) -> None:
    rng = seeded()
    for _ in range(scale(10, 200)):
        await moves_its_cursor(stage, 8, rng)


async def detaches(stage: Stage) -> None:
    """Once a detach is accepted nothing of the run comes, on this connection; attached again, it goes on from there."""
    story = stage.story(told=10)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await WsReader.connect(stage.server) as reader:
            run_id = await reader.run(story.body)
            taken = [(await reader.frame()).raw for _ in range(10)]
            await reader.detach(run_id)
            async with await SSE.attach(stage.server, run_id, 10) as other:
                story.tell(20)
                await other.take(10)
            reader.send({"type": "ping"})
            assert (await reader.frame()).type == "pong", "an event comes after a detach"
            await reader.attach(run_id, 10)
            story.tell(story.last)
            await _read_to_end(reader, run_id)
    check_whole(reader.documents_of(run_id), story)
    check_same(reader.documents_of(run_id)[:10], taken)


async def test_nothing_follows_a_detach(stage: Stage) -> None:
    await detaches(stage)


async def test_moving_the_cursor_is_not_leaving_and_detaching_is() -> None:
    async with staged(grace_seconds=0) as stage:
        story = stage.story(told=5)
        with anyio.fail_after(PATIENCE_SECONDS):
            async with await WsReader.connect(stage.server) as reader:
                run_id = await reader.run(story.body)
                for after in (0, 1, 1, 0):
                    await reader.attach(run_id, after)
                async with await SSE.attach(stage.server, run_id) as other:
                    await reader.detach(run_id)
                    story.tell(9)
                    documents = await other.take(9)
                    await reader.attach(run_id, 9)
                    other.cut()
                story.tell(12)
                while len(documents) < 12:
                    documents += [frame.raw for frame in [await reader.frame()] if frame.message.get("seq", 0) > 9]
                cuts = len(stage.upstream.cuts)
                await reader.detach(run_id)
                await stage.upstream.closed(cuts + 1)
                documents += await documents_of(await SSE.attach(stage.server, run_id, 12))
        check_once(documents)
        assert json.loads(documents[-1])["finish_reason"] == "cancelled"


async def carries_many_runs(stage: Stage, count: int, rng: Random) -> None:
    """Runs on one connection do not know of each other: each is whole, whichever of them is cancelled."""
    stories = [stage.story() for _ in range(count)]
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await WsReader.connect(stage.server) as reader:
            for number, story in enumerate(stories):
                reader.send({"type": "send", "ref": str(number), **story.body})
            answers = [await reader.answer() for _ in stories]
            assert [answer["ref"] for answer in answers] == [str(number) for number in range(count)]
            run_ids = [str(answer["run_id"]) for answer in answers]
            told = [(number, seq) for number in range(1, count) for seq in range(2, 61)]
            rng.shuffle(told)
            for number, seq in told:
                stories[number].tell(seq)
                await turns(1)
            await reader.cancel(run_ids[0])
            await _read_to_end(reader, *run_ids)
    for run_id, story in zip(run_ids[1:], stories[1:], strict=True):
        check_whole(reader.documents_of(run_id), story)
    check_once(reader.documents_of(run_ids[0]))
    seen = [frame.message["run_id"] for frame in reader.frames if frame.is_event]
    assert sum(one != other for one, other in itertools.pairwise(seen)) > count, "the runs came one after the other"


async def test_one_connection_carries_many_runs(stage: Stage, scale: Scale) -> None:
    rng = seeded()
    for _ in range(scale(2, 20)):
        await carries_many_runs(stage, 20, rng)


# ---- promptness -----------------------------------------------------------------------------------------------------


async def test_no_event_waits_for_the_peer_to_acknowledge_the_one_before() -> None:
    async with (
        staged() as stage,
        await WsReader.connect(stage.server) as reader,
        await SSE.attach(stage.server, await reader.run(stage.story().body)),
    ):
        connections = list(stage.server.server.server_state.connections)
        sockets = [each.transport.get_extra_info("socket") for each in connections]
        assert [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets] == [1, 1]


# ---- keepalive ------------------------------------------------------------------------------------------------------


async def pings_go_on(stage: Stage, count: int) -> None:
    """A run that says nothing is kept alive on each transport, again and again."""
    story = stage.story()
    pings = {SseReader: b": ping\n", NdjsonReader: b'{"type":"ping"}\n'}
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await WsReader.connect(stage.server) as reader:
            run_id = await reader.run(story.body)
            for kind, ping in pings.items():
                async with await kind.get(stage.server, f"/chat/runs/{run_id}/events") as stream:
                    while stream.raw.count(ping) < count:
                        assert await stream.more(), "the stream ended"
            for _ in range(count):
                await reader.until("ping")


async def test_an_idle_run_is_kept_alive() -> None:
    async with staged(heartbeat_seconds=0.1) as stage:
        await pings_go_on(stage, 5)
