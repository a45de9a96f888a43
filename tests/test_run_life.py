"""Who may leave a run, who may end it, and how many there may be."""

import json
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
import pytest

from tests.clients import (
    BOTH,
    SSE,
    TRANSPORTS,
    WS,
    Reading,
    RefusedError,
    Transport,
    WsReader,
    cancel,
    documents_of,
    get_run,
    is_terminal,
    request,
    text_of,
)
from tests.conftest import Scale
from tests.fake_upstream import Hang, Step, call, refuse, say, token
from tests.life import (
    GRACE_SECONDS,
    HEARTBEAT_SECONDS,
    answer_in,
    begun,
    end_of,
    grace_has_passed,
    in_time,
    is_cut,
    reply_to,
    words,
)
from tests.merging import unmerged
from tests.proving import Stage, Story, cancelled_from, check_once, each_pair, each_transport, leave, staged

CLOSED_WITHIN_SECONDS = 1.0
"""What "at once" may take, from the client's cancel to the upstream that sees its connection closed."""


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged(grace_seconds=GRACE_SECONDS, heartbeat_seconds=HEARTBEAT_SECONDS) as stage:
        yield stage


# ---- leaving --------------------------------------------------------------------------------------------------------


@each_transport
@in_time
async def test_a_run_is_cancelled_a_grace_period_after_its_last_reader_has_left(
    stage: Stage, transport: Transport
) -> None:
    runs = [await begun(stage, transport) for _ in range(3)]
    left_at = monotonic()
    for way, (_, reading) in enumerate(runs):
        await leave(reading, way)
    for story, reading in runs:
        await is_cut(stage, story)
        assert monotonic() - left_at >= GRACE_SECONDS
        assert (await end_of(stage, reading.run_id))["finish_reason"] == "cancelled"
        assert (await get_run(stage.server, reading.run_id))["status"] == "cancelled"
        answer = await answer_in(stage, reading.run_id)
        assert (answer["status"], answer["content"]) == ("partial", "one two ")


@in_time
async def test_a_reader_that_goes_on_sending_is_not_kept_in_memory_and_is_seen_to_leave(stage: Stage) -> None:
    story, reading = await begun(stage, SSE)
    head = f"GET /chat/runs/{reading.run_id}/events HTTP/1.1\r\nHost: {stage.server.host}\r\nAccept: text/plain\r\n"
    async with await anyio.connect_tcp(stage.server.host, stage.server.port) as sending:
        await sending.send(f"{head}Content-Length: 100000000\r\n\r\n".encode())
        heard = b""
        while b"two" not in heard:
            heard += await sending.receive()
        for _ in range(100):
            await sending.send(b"x" * 100_000)  # More than the kernel takes of it, if nobody reads.
        reading.cut()
    await is_cut(stage, story)
    assert (await end_of(stage, reading.run_id))["finish_reason"] == "cancelled"


@each_pair
@in_time
async def test_a_run_goes_on_while_anybody_reads_it(stage: Stage, first: Transport, second: Transport) -> None:
    story, gone = await begun(stage, first)
    staying = await second.attach(stage.server, gone.run_id)
    gone.cut()
    await grace_has_passed(stage)
    story.tell(story.last)
    documents = await documents_of(staying)
    assert text_of(documents) == story.text
    assert json.loads(documents[-1])["finish_reason"] == "stop"


@in_time
async def test_a_run_goes_on_when_a_reader_comes_back_within_the_grace_period() -> None:
    async with staged(grace_seconds=2.0) as stage:
        back: list[tuple[Story, Reading, Reading]] = []
        for first in TRANSPORTS:
            for second in TRANSPORTS:
                story, reading = await begun(stage, first)
                await leave(reading, len(back))
                back.append((story, reading, await second.attach(stage.server, reading.run_id, reading.after)))
        await grace_has_passed(stage)
        for story, reading, again in back:
            story.tell(story.last)
            documents = [*reading.documents, *await documents_of(again)]
            check_once(documents)
            assert text_of(documents) == story.text


@each_transport
@in_time
async def test_a_run_that_shall_continue_comes_to_its_end_without_readers(stage: Stage, transport: Transport) -> None:
    story, reading = await begun(stage, transport, on_disconnect="continue")
    reading.cut()
    await grace_has_passed(stage)
    story.tell(story.last)
    assert (await end_of(stage, reading.run_id))["finish_reason"] == "stop"
    answer = await answer_in(stage, reading.run_id)
    assert (answer["status"], answer["content"]) == ("complete", story.text)


@pytest.mark.parametrize(("on_disconnect", "reason"), [("cancel", "cancelled"), ("continue", "stop")])
@in_time
async def test_a_run_that_nobody_has_read_yet_is_abandoned_from_its_start(
    stage: Stage, on_disconnect: str, reason: str
) -> None:
    story, began = stage.story(told=3, make=words), monotonic()
    response = await request(stage.server, "POST", "/chat/runs", story.body | {"on_disconnect": on_disconnect})
    run_id = response.json["run_id"]
    assert (response.status, response.headers["location"]) == (202, f"/chat/runs/{run_id}")
    await grace_has_passed(stage)
    if reason == "stop":
        story.tell(story.last)
    assert (await end_of(stage, run_id))["finish_reason"] == reason
    assert monotonic() - began >= GRACE_SECONDS


@in_time
async def test_a_run_that_was_started_without_a_reader_goes_on_once_it_has_one() -> None:
    async with staged(grace_seconds=2.0) as stage:
        read: list[tuple[Story, Reading]] = []
        for transport in TRANSPORTS:
            story = stage.story(told=3, make=words)
            run_id = (await request(stage.server, "POST", "/chat/runs", story.body)).json["run_id"]
            read.append((story, await transport.attach(stage.server, run_id)))
        await grace_has_passed(stage)
        for story, reading in read:
            story.tell(story.last)
            assert text_of(await documents_of(reading)) == story.text


@in_time
async def test_a_websocket_that_attached_twice_and_detaches_once_has_left(stage: Stage) -> None:
    story = stage.story(told=3, make=words)
    async with await WsReader.connect(stage.server) as reader:
        run_id = await reader.run(story.body)
        for after in (1, 0):
            await reader.attach(run_id, after)
        await reader.detach(run_id)
        heard = len(reader.documents)
        assert (await end_of(stage, run_id))["finish_reason"] == "cancelled"
        await reader.command(type="cancel", run_id=run_id)
        assert len(reader.documents) == heard, "nothing of a run is sent to a reader that has detached"


# ---- cancelling -----------------------------------------------------------------------------------------------------


@each_pair
@in_time
async def test_a_cancel_from_anywhere_ends_a_run_in_front_of_its_readers(
    stage: Stage, first: Transport, second: Transport
) -> None:
    story, reading = await begun(stage, first, on_disconnect="continue")
    other = await second.attach(stage.server, reading.run_id)
    await cancelled_from(stage.server, second, reading.run_id)
    await is_cut(stage, story)
    documents = [*reading.documents, *await documents_of(reading)]
    assert await documents_of(other) == documents
    check_once(documents)
    assert json.loads(documents[-1])["finish_reason"] == "cancelled"
    answer = await answer_in(stage, reading.run_id)
    assert (answer["status"], answer["content"]) == ("partial", "one two ")


@in_time
async def test_a_cancel_that_comes_together_with_the_end_of_its_connection_counts(stage: Stage) -> None:
    _, reading = await begun(stage, SSE, on_disconnect="continue")
    async with reading, await WsReader.connect(stage.server) as reader:
        reader.protocol.send_text(json.dumps({"type": "cancel", "run_id": reading.run_id}).encode())
        reader.protocol.send_close(1000)
        reader.send_wire(b"".join(reader.protocol.data_to_send()))
        assert (await end_of(stage, reading.run_id))["finish_reason"] == "cancelled"


@pytest.mark.parametrize("is_cancelled", [True, False])
@in_time
async def test_a_cancel_of_a_run_that_is_over_changes_nothing(stage: Stage, is_cancelled: bool) -> None:
    story, reading = await begun(stage, SSE)
    if is_cancelled:
        await cancelled_from(stage.server, WS, reading.run_id)
        await cancelled_from(stage.server, SSE, reading.run_id)
    else:
        story.tell(story.last)
    documents = [*reading.documents, *await documents_of(reading)]
    before = await get_run(stage.server, reading.run_id)
    for transport in BOTH:
        await cancelled_from(stage.server, transport, reading.run_id)
    assert await get_run(stage.server, reading.run_id) == before
    for transport in TRANSPORTS:
        again = await documents_of(await transport.attach(stage.server, reading.run_id))
        assert unmerged(again, documents) == documents
    assert sum(map(is_terminal, documents)) == 1


@pytest.mark.proof
@in_time
async def test_a_cancel_closes_the_upstream_within_a_second_in_99_of_100_cases(stage: Stage, scale: Scale) -> None:
    took = []
    for number in range(scale(30, 200)):
        story, reading = await begun(stage, TRANSPORTS[number % 3])
        began = monotonic()
        await cancelled_from(stage.server, BOTH[number % 2], reading.run_id)
        await is_cut(stage, story)
        took.append((reply_to(stage, story).closed_at or monotonic()) - began)
        await documents_of(reading)
    assert sorted(took)[len(took) * 99 // 100 - 1] < CLOSED_WITHIN_SECONDS


PHASES: dict[str, tuple[int, list[Step]]] = {
    "before the model answers": (1, [Hang()]),
    "in mid answer": (2, [token("so far"), Hang()]),
    "while a tool is called": (2, call("hang", {})),
    "before another try": (1, refuse(500)),
}
"""What the upstream says, and how many events its run has by then."""


@pytest.mark.parametrize("phase", PHASES)
@in_time
async def test_a_cancel_ends_a_run_at_once_whatever_it_waits_for(phase: str) -> None:
    events, steps = PHASES[phase]
    async with staged(tools="tests.life:TOOLS", tool_timeout_seconds=3600.0) as stage:
        stage.upstream.always(Hang())
        stage.upstream.script(*steps)
        reading = await SSE.start(stage.server, {"message": "Hi"})
        await reading.take(events)
        await stage.upstream.next_request()
        with anyio.fail_after(5):
            await cancelled_from(stage.server, WS, reading.run_id)
            documents = [*reading.documents, *await documents_of(reading)]
            await stage.upstream.idle()
        check_once(documents)
        assert json.loads(documents[-1])["finish_reason"] == "cancelled"


# ---- limits ---------------------------------------------------------------------------------------------------------


async def refused(stage: Stage, transport: Transport, body: dict[str, Any]) -> RefusedError:
    with pytest.raises(RefusedError) as refusal:
        await transport.start(stage.server, body)
    return refusal.value


@each_transport
@in_time
async def test_a_second_run_in_a_session_is_refused_with_the_name_of_the_first(
    stage: Stage, transport: Transport
) -> None:
    session_id = f"busy-{transport}"
    story, reading = await begun(stage, SSE, session_id=session_id)
    another = {"message": "Me too", "session_id": session_id}
    refusal = await refused(stage, transport, another)
    assert (refusal.status, refusal.code, refusal.problem["run_id"]) == (409, "run_active", reading.run_id)
    story.tell(story.last)
    await documents_of(reading)
    stage.upstream.script(*say("Now you"))
    assert text_of(await documents_of(await transport.start(stage.server, another))) == "Now you"


@each_transport
@in_time
async def test_runs_beyond_the_limit_are_refused_until_one_has_ended(transport: Transport) -> None:
    async with staged(max_runs=2) as stage:
        runs = [await begun(stage, each) for each in BOTH]
        refusal = await refused(stage, transport, {"message": "One more"})
        assert (refusal.status, refusal.code) == (429, "too_many")
        assert refusal.problem["retry_after"] > 0
        response = await request(stage.server, "POST", "/chat/stream", {"message": "One more"})
        assert (response.status, response.headers["retry-after"]) == (429, str(refusal.problem["retry_after"]))
        story, reading = runs[0]
        story.tell(story.last)
        await documents_of(reading)
        _, third = await begun(stage, transport)
        for each in (runs[1][1], third):
            await cancel(stage.server, each.run_id)
            await documents_of(each)


@each_transport
@in_time
async def test_the_same_key_finds_its_run_also_when_no_more_may_be_started(transport: Transport) -> None:
    async with staged(max_runs=1) as stage:
        story, reading = await begun(stage, SSE, idempotency_key="one")
        again = await transport.start(stage.server, story.body | {"idempotency_key": "one"})
        assert again.run_id == reading.run_id
        story.tell(story.last)
        assert await documents_of(again) == [*reading.documents, *await documents_of(reading)]
        assert len(stage.upstream.requests) == 1
