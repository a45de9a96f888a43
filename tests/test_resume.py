"""A reader may leave at any event or byte and come back on any transport: nothing is lost, nothing comes twice."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from unittest.mock import patch

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.log import fresh
from tests.clients import SSE, TRANSPORTS, WS, HttpReader, Reading, RefusedError, Transport, documents_of
from tests.conftest import Scale
from tests.fake_upstream import say
from tests.merging import seq_of, unmerged
from tests.proving import (
    PATIENCE_SECONDS,
    ROUTE,
    Stage,
    Told,
    answer_of,
    check_once,
    check_rest,
    check_same,
    check_whole,
    each_pair,
    each_transport,
    leave,
    seeded,
    staged,
)

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


# ---- a run that is over ---------------------------------------------------------------------------------------------


async def resumes_after_every_event(stage: Stage, first: Transport, second: Transport) -> None:
    """From each cursor take one event, the rest elsewhere: together it is the uncut run."""
    run = await stage.told(transport=first)
    assert run.last == 60
    for after in range(run.last):
        with anyio.fail_after(PATIENCE_SECONDS):
            async with await first.attach(stage.server, run.run_id, after) as reading:
                (head,) = await reading.take(1)
                await leave(reading, after)
        documents = [head, *await stage.rest(second, run, seq_of(head))]
        check_same(run.documents[:after] + unmerged(documents, run.documents), run.documents)


async def resumes_at_random_bytes(stage: Stage, first: Transport, second: Transport, cuts: int, rng: Random) -> None:
    """Cut the stream at any byte; the last whole document is the cursor."""
    run = await stage.told()
    async with await first.attach(stage.server, run.run_id) as reading:
        while seq_of((await reading.take(1))[0]) < run.last:
            pass
    for _ in range(cuts):
        head = await _cut_at_byte(stage, first, run.run_id, rng.randrange(reading.consumed + 1), rng)
        rest = await stage.rest(second, run, seq_of(head[-1]) if head else 0)
        check_same(unmerged(head, run.documents) + rest, run.documents)


async def _cut_at_byte(stage: Stage, transport: Transport, run_id: str, size: int, rng: Random) -> list[bytes]:
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await transport.attach(stage.server, run_id) as reading:
            await reading.read_bytes(size)
            await leave(reading, rng.randrange(3))
            return list(reading.documents)


async def frames_to_the_byte(stage: Stage) -> None:
    """SSE: `id`, `event` and `data`, ended by line feeds alone; NDJSON: the documents, a line each; as on WebSocket."""
    run = await stage.told()
    sent = await stage.sent(WS, run, 0)
    framed = [b"event: %b\ndata: %b\nid: %d\n\n" % _framed(each) for each in sent]
    bodies = {"text/event-stream": b"retry: 1000\n" + b"".join(framed)}
    bodies["application/x-ndjson"] = b"".join(each + b"\n" for each in sent)
    for accept, body in bodies.items():
        path = f"/chat/runs/{run.run_id}/events"
        async with await HttpReader.get(stage.server, path, {"Accept": accept}) as reader:
            assert await reader.read_all() == body, f"{accept}: {bytes(reader.raw)!r}"


def _framed(document: bytes) -> tuple[bytes, bytes, int]:
    message = json.loads(document)
    return message["type"].encode(), document, message["seq"]


@each_pair
async def test_cut_after_every_event_and_resumed(stage: Stage, first: Transport, second: Transport) -> None:
    await resumes_after_every_event(stage, first, second)


@each_pair
async def test_cut_at_any_byte_and_resumed(stage: Stage, first: Transport, second: Transport, scale: Scale) -> None:
    await resumes_at_random_bytes(stage, first, second, scale(12, 250), seeded())


async def test_the_framing_of_a_stream_is_exact(stage: Stage) -> None:
    await frames_to_the_byte(stage)


@pytest.mark.parametrize("after", [-1, 61, 10**17, "x", "1.0"])
@each_transport
async def test_a_cursor_that_is_no_place_in_the_log_is_refused(
    stage: Stage, transport: Transport, after: int | str
) -> None:
    run = await stage.told()
    with anyio.fail_after(PATIENCE_SECONDS), pytest.raises(RefusedError) as refused:
        await transport.attach(stage.server, run.run_id, after)
    assert (refused.value.status, refused.value.code) == (400, "bad_cursor")


async def test_last_event_id_wins_over_the_query(stage: Stage) -> None:
    run = await stage.told()
    for after in range(run.last):
        with anyio.fail_after(PATIENCE_SECONDS):
            header = {"Last-Event-ID": str(after)}
            found = await documents_of(await SSE.attach(stage.server, run.run_id, 7, headers=header))
            check_rest(found, after, run.documents)


# ---- a run that goes on ---------------------------------------------------------------------------------------------


async def resumes_while_it_goes_on(stage: Stage, route: tuple[Transport, ...], *, unseen: bool) -> None:
    """One reader leaves after every event and comes back on the next transport of its route.

    ``unseen``: the next event happens while nobody reads.
    """
    story, taken, transports = stage.story(), list[bytes](), itertools.cycle(route)
    with anyio.fail_after(PATIENCE_SECONDS):
        reading = await next(transports).start(stage.server, story.body)
        for seq in range(1, story.last):
            async with reading:
                story.tell(seq)
                taken += await reading.take(1)
                await leave(reading, seq // len(route))
            if unseen:
                story.tell(seq + 1)
                await _until_logged(stage, reading.run_id, seq + 1)
            reading = await next(transports).attach(stage.server, reading.run_id, seq)
        story.tell(story.last)
        taken += await documents_of(reading)
    check_whole(taken, story)
    check_same(await stage.rest(SSE, Told(reading.run_id, taken), 0), taken)


async def _until_logged(stage: Stage, run_id: str, seq: int) -> None:
    while (await stage.get(f"/chat/runs/{run_id}"))["last_seq"] < seq:
        await checkpoint()


async def resumes_in_mid_stream(stage: Stage, first: Transport, second: Transport, cuts: int, rng: Random) -> None:
    """Cut at any byte of what a run has said so far; it goes on while nobody reads, or when somebody does again."""
    for _ in range(cuts):
        story = stage.story()
        stands = story.tell(rng.randrange(1, story.last))
        with anyio.fail_after(PATIENCE_SECONDS):
            async with await first.start(stage.server, story.body) as reading:
                await reading.take(stands)
            head = await _cut_at_byte(stage, first, reading.run_id, rng.randrange(reading.consumed + 1), rng)
            story.tell(rng.choice([stands, story.last]))
            resumed = await second.attach(stage.server, reading.run_id, len(head))
            story.tell(story.last)
            taken = head + await documents_of(resumed)
        check_whole(taken, story)
        check_whole(await stage.sent(first, Told(reading.run_id, taken), 0), story)


@pytest.mark.parametrize("start", range(len(ROUTE)))
@pytest.mark.parametrize("unseen", [True, False], ids=["while-nobody-reads", "while-somebody-reads"])
async def test_a_reader_hops_between_transports_at_every_event(stage: Stage, start: int, unseen: bool) -> None:
    await resumes_while_it_goes_on(stage, (*ROUTE[start:], *ROUTE[:start]), unseen=unseen)


@each_pair
async def test_cut_at_any_byte_of_a_run_that_goes_on(
    stage: Stage, first: Transport, second: Transport, scale: Scale
) -> None:
    await resumes_in_mid_stream(stage, first, second, scale(3, 100), seeded())


# ---- a log that is merged -------------------------------------------------------------------------------------------


async def resumes_from_a_merged_log(stage: Stage, stands: tuple[int, ...], step: int) -> None:
    """What is merged is what was sent first: from each cursor, on each transport, also while it grows."""
    story, whole = stage.story(), list[bytes]()
    with anyio.fail_after(PATIENCE_SECONDS), patch.object(fresh, "FRESH_BYTES", 400):
        async with AsyncExitStack() as stack:
            follower = await stack.enter_async_context(await SSE.start(stage.server, story.body))
            companions: list[tuple[int, Reading]] = []
            for stand in stands:
                for seq in range(len(whole) + 1, stand + 1):
                    story.tell(seq)
                    whole += await follower.take(1)
                for after, transport in itertools.product(range(0, stand, step), TRANSPORTS):
                    async with await transport.attach(stage.server, follower.run_id, after) as reading:
                        check_rest(await _read_until(reading, stand), after, whole)
                for after, transport in itertools.product((0, stand), TRANSPORTS):
                    companion = await transport.attach(stage.server, follower.run_id, after)
                    companions.append((after, await stack.enter_async_context(companion)))
            story.tell(story.last)
            whole += await documents_of(follower)
            check_whole(whole, story)
            for after, reading in companions:
                check_rest(await documents_of(reading), after, whole)
        run = Told(follower.run_id, whole)
        for after, transport in itertools.product(range(0, run.last + 1, step), TRANSPORTS):
            check_same(await stage.rest(transport, run, after), whole[after:])


async def _read_until(reading: Reading, seq: int) -> list[bytes]:
    documents = await reading.take(1)
    while json.loads(documents[-1])["seq"] < seq:
        documents += await reading.take(1)
    return documents


async def test_a_merged_log_gives_the_same_events_from_every_cursor(stage: Stage, scale: Scale) -> None:
    await resumes_from_a_merged_log(stage, (30, 45, 59), scale(3, 1))


# ---- after the retention --------------------------------------------------------------------------------------------


async def resumes_from_the_store(stage: Stage, run: Told, step: int = 1) -> None:
    """From every cursor comes the rest of the run, in few events."""
    for after, transport in itertools.product(range(0, run.last + 1, step), TRANSPORTS):
        sent = await stage.sent(transport, run, after)
        check_rest(sent, after, run.documents)
        assert len(sent) <= 15, "start, reasoning, text, pieces of calls, calls, results, text, done"
    await stage.check_stored(run.documents)


async def test_after_the_retention_every_cursor_is_valid() -> None:
    async with staged(retention_seconds=0) as stage:
        await resumes_from_the_store(stage, await stage.told())


async def test_after_a_restart_every_cursor_is_served_as_before(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        run = await stage.told()
        before = [await stage.sent(SSE, run, after) for after in range(run.last)]
    async with staged(tmp_path) as stage:
        await resumes_from_the_store(stage, run)
        for after, sent in enumerate(before):
            check_same(await stage.sent(SSE, run, after), sent)


@each_transport
async def test_a_long_answer_resumes_from_the_store(transport: Transport) -> None:
    text = "".join(f"{n} 👩\u200d👧 日本語\n" for n in range(9000))
    async with staged(retention_seconds=0) as stage:
        stage.upstream.always(*say(text, 20))  # So long that no two are merged.
        with anyio.fail_after(PATIENCE_SECONDS):
            whole = await documents_of(await transport.start(stage.server, {"message": "much"}))
        check_once(whole)
        assert answer_of(whole)["content"] == text
        run = Told(json.loads(whole[0])["run_id"], whole)
        for after in range(run.last + 1):
            check_rest(await stage.sent(transport, run, after), after, whole)
        await stage.check_stored(whole)
