"""An attach or a cancel may meet the first or the last event at any point: a run is one run, and ends once."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from time import perf_counter
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.sessions import Sessions
from tests.clients import SSE, WS, Reading, RefusedError, Transport, Wire, WsReader, documents_of
from tests.conftest import Scale
from tests.proving import (
    PATIENCE_SECONDS,
    Stage,
    Told,
    cancelled_from,
    check_once,
    check_rest,
    check_same,
    check_whole,
    each_pair,
    each_transport,
    held,
    seeded,
    short_story,
    staged,
    turns,
)

pytestmark = pytest.mark.proof

LAST = 3
"""Events of a short story."""

BEGIN_SECONDS = 5.0
"""How long a reader of a run that has just begun may wait for its first event before it counts as a hang."""


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


# ---- races around the first event -----------------------------------------------------------------------------------


async def one_key_is_one_run(stage: Stage, first: Transport, second: Transport, delay: int) -> None:
    """Two requests with one idempotency key, so many turns of the loop apart: one run, read by both from its start."""
    story, asked = stage.story(told=LAST, make=short_story), len(stage.upstream.requests)
    body = story.body | {"idempotency_key": story.body["message"]}
    with anyio.fail_after(PATIENCE_SECONDS):
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(_whole(first.start(stage.server, body)))
            await turns(delay)
            other = tasks.create_task(_whole(second.start(stage.server, body)))
    check_whole(one.result(), story)
    check_same(other.result(), one.result())
    assert len(stage.upstream.requests) == asked + 1


async def _whole(reading: Awaitable[Reading]) -> list[bytes]:
    return await documents_of(await reading)


@each_pair
async def test_attached_by_key_at_any_moment_around_the_first_event(
    stage: Stage, first: Transport, second: Transport, scale: Scale
) -> None:
    for delay in range(0, 60, scale(12, 1)):
        await one_key_is_one_run(stage, first, second, delay)


async def _while_it_begins(
    stage: Stage, body: dict[str, str], act: Callable[[str], Coroutine[Any, Any, list[bytes]]]
) -> tuple[list[bytes], list[bytes]]:
    """Do something with a run whose message is on disk and whose first event is not in the log yet.

    Gives what the one saw who started it, and what came of the deed.
    """
    with anyio.fail_after(BEGIN_SECONDS):
        async with asyncio.TaskGroup() as tasks:
            with held(Sessions, "begin", done=True) as begun:
                starter = tasks.create_task(_whole(SSE.start(stage.server, body)))
                await begun.come.wait()
                newest, *_ = await _sessions(stage)
                deed = tasks.create_task(act(newest["active_run_id"]))
                await turns(500)
    return starter.result(), deed.result()


@pytest.mark.parametrize("by_key", [True, False], ids=["by-key", "by-id"])
@each_transport
async def test_attached_before_the_first_event(stage: Stage, transport: Transport, by_key: bool) -> None:
    story = stage.story(told=LAST, make=short_story)
    body = story.body | {"idempotency_key": story.body["message"]}

    async def attach(run_id: str) -> list[bytes]:
        start = transport.start(stage.server, body) if by_key else transport.attach(stage.server, run_id)
        return await _whole(start)

    whole, found = await _while_it_begins(stage, body, attach)
    check_whole(whole, story)
    check_same(found, whole)


@each_transport
async def test_cancelled_before_the_first_event(stage: Stage, transport: Transport) -> None:
    story = stage.story(told=LAST - 1, make=short_story)

    async def end(run_id: str) -> list[bytes]:
        await cancelled_from(stage.server, transport, run_id)
        return await _whole(transport.attach(stage.server, run_id))

    whole, found = await _while_it_begins(stage, story.body, end)
    check_once(whole)
    check_same(found, whole)
    await stage.check_stored(whole)


async def starter_leaves(stage: Stage, transport: Transport, delay: int) -> None:
    """Who asked for a run leaves so many turns of the loop later."""
    body = stage.story(told=LAST - 1, make=short_story).body
    with anyio.fail_after(PATIENCE_SECONDS):
        if transport is WS:
            reader = await WsReader.connect(stage.server)
            reader.send({"type": "send", **body})
            wire = reader.wire
        else:
            wire, content = await Wire.open(stage.server), json.dumps(body).encode()
            head = f"POST /chat/stream HTTP/1.1\r\nHost: {stage.server.host}\r\nContent-Type: application/json\r\n"
            wire.write(b"%bContent-Length: %d\r\n\r\n%b" % (head.encode(), len(content), content))
        await turns(delay)
        (wire.cut if delay % 2 else wire.reset)()


async def starters_leave(stage: Stage, transport: Transport, delays: range) -> None:
    """Each run that began at all ends as cancelled, and none is left over."""
    for delay in delays:
        await starter_leaves(stage, transport, delay)
    with anyio.fail_after(PATIENCE_SECONDS):
        await stage.told(short_story)  # All that was asked for before has begun by then.
        while any(each["active_run_id"] for each in await _sessions(stage)):
            await checkpoint()
    details = [await stage.get(f"/chat/sessions/{each['session_id']}") for each in await _sessions(stage)]
    assert {each["messages"][-1]["status"] for each in details} == {"complete", "partial"}


async def _sessions(stage: Stage) -> list[dict[str, Any]]:
    return list((await stage.get("/chat/sessions?limit=100"))["sessions"])


@pytest.mark.parametrize("transport", [SSE, WS], ids=str)
async def test_the_starter_leaves_at_any_moment_around_the_first_event(transport: Transport, scale: Scale) -> None:
    async with staged(grace_seconds=0) as stage:
        await starters_leave(stage, transport, range(0, 200, scale(5, 1)))


# ---- races around the last event ------------------------------------------------------------------------------------


POINTS = ("before-the-last-words", "before-it-is-stored", "when-it-is-stored", "when-it-is-said")


@asynccontextmanager
async def ending(stage: Stage, point: str) -> AsyncIterator[Told]:
    """A run of three events that stands at a point around its end; its documents are complete after the block."""
    story = stage.story(told=LAST - 1, make=short_story)
    with anyio.fail_after(PATIENCE_SECONDS), held(Sessions, "finish", done=point == "when-it-is-stored") as store:
        async with await SSE.start(stage.server, story.body) as reading:
            run = Told(reading.run_id, await reading.take(LAST - 1))
            if point == "before-the-last-words":
                store.let.set()
            else:
                story.tell(LAST)
                await store.come.wait()
            if point == "when-it-is-said":
                store.let.set()
                run.documents.extend(await reading.take(1))
            yield run
            story.tell(LAST)
            store.let.set()
            run.documents.extend([document async for document in reading])


async def attaches_around_the_end(stage: Stage, transport: Transport, point: str) -> None:
    """Readers from every cursor come at this point, and all see the one end."""
    async with AsyncExitStack() as stack:
        async with ending(stage, point) as run:
            readings = [
                (after, await stack.enter_async_context(await transport.attach(stage.server, run.run_id, after)))
                for after in range(LAST)
            ]
            if point == "when-it-is-said":
                assert await stage.rest(transport, run, LAST) == []
            else:
                with pytest.raises(RefusedError, match="bad_cursor"):
                    await transport.attach(stage.server, run.run_id, LAST)
        check_once(run.documents)
        for after, reading in readings:
            check_rest(await documents_of(reading), after, run.documents)


async def cancels_around_the_end(stage: Stage, transport: Transport, point: str) -> None:
    """A cancel at this point is accepted, and there is one end, on disk the same as on the wire."""
    async with ending(stage, point) as run:
        await cancelled_from(stage.server, transport, run.run_id)
        await cancelled_from(stage.server, transport, run.run_id)
    check_once(run.documents)
    await stage.check_stored(run.documents)
    check_same(await stage.rest(transport, run, 0), run.documents)


@pytest.mark.parametrize("point", POINTS)
@each_transport
async def test_attached_around_the_last_event(stage: Stage, transport: Transport, point: str) -> None:
    await attaches_around_the_end(stage, transport, point)


@pytest.mark.parametrize("point", POINTS)
@each_transport
async def test_cancelled_around_the_last_event(stage: Stage, transport: Transport, point: str) -> None:
    await cancels_around_the_end(stage, transport, point)


async def attaches_while_it_ends(stage: Stage, transport: Transport, delay: int) -> None:
    """A reader comes so many turns of the loop after the model's last words."""
    story = stage.story(told=LAST - 1, make=short_story)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await SSE.start(stage.server, story.body) as starter:
            whole = await starter.take(LAST - 1)
            story.tell(LAST)
            await turns(delay)
            after = delay % LAST
            found = await documents_of(await transport.attach(stage.server, starter.run_id, after))
            whole += [document async for document in starter]
    check_whole(whole, story)
    check_rest(found, after, whole)


@pytest.mark.parametrize("retention_seconds", [0, 300], ids=["forgotten-at-once", "kept"])
@each_transport
async def test_attached_at_any_moment_around_the_last_event(
    transport: Transport, retention_seconds: int, scale: Scale
) -> None:
    async with staged(retention_seconds=retention_seconds) as stage:
        for delay in range(0, 200, scale(10, 1)):
            await attaches_while_it_ends(stage, transport, delay)


# ---- a cancel that meets the end ------------------------------------------------------------------------------------


async def cancel_meets_done(stage: Stage, transport: Transport, rounds: int, rng: Random) -> None:
    """Cancel within a millisecond of `done`: each run ends once, and on disk as on the wire.

    In every other round the moment is that in which a cancel begins to be too late. It is found by stepping towards
    it, in steps that grow until it is passed.
    """
    reasons, last, edge, step, took = Counter[str](), "", 0.0, 0.0, 0.0
    for number in range(rounds):
        moment = (took if number % 2 else edge) + rng.uniform(-0.001, 0.001)
        reason, seconds = await _cancel_at(stage, transport, moment)
        reasons[reason] += 1
        if reason == "stop":
            took = seconds
        if number % 2 == 0:
            step = step * 2 if reason == last else 0.0001
            edge += step if reason == "cancelled" else -step
            last = reason
    assert set(reasons) == {"stop", "cancelled"}, f"no race in {rounds} rounds: {reasons}"


async def _cancel_at(stage: Stage, transport: Transport, moment: float) -> tuple[str, float]:
    """Cancel so many seconds after the model's last words; how the run ended, and after how many seconds."""
    story = stage.story(told=LAST - 1, make=short_story)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with await transport.start(stage.server, story.body) as reading:
            documents = await reading.take(LAST - 1)
            told_at = perf_counter() + max(0.0, -moment)

            async def tell() -> None:
                await _until(told_at)
                story.tell(LAST)

            async def end() -> None:
                await _until(told_at + moment)
                await cancelled_from(stage.server, transport, reading.run_id)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(tell())
                tasks.create_task(end())
                documents += await documents_of(reading)
                seconds = perf_counter() - told_at
    check_once(documents)
    await stage.check_stored(documents)
    check_same(await stage.rest(transport, Told(reading.run_id, documents), 0), documents)
    return json.loads(documents[-1])["finish_reason"], seconds


async def _until(moment: float) -> None:
    """Wait to the microsecond: a timer of the loop has milliseconds."""
    while perf_counter() < moment:
        await checkpoint()


@each_transport
async def test_a_cancel_that_meets_done(stage: Stage, transport: Transport, scale: Scale) -> None:
    await cancel_meets_done(stage, transport, scale(30, 500), seeded())
