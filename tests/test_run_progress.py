"""What a run shows while it goes on: at once, never silent, and never ahead of what is stored."""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, cast
from unittest.mock import patch

import anyio
import pytest
from msgspec.structs import asdict

from chatserver.auth import LOCAL_USER
from chatserver.errors import Unavailable
from chatserver.resources import MessageResource
from chatserver.runs import checkpoints, run
from chatserver.sessions import Sessions, open_sessions
from tests.clients import (
    Reading,
    RefusedError,
    Transport,
    WsReader,
    documents_of,
    get_run,
    request,
    text_of,
    types_of,
)
from tests.fake_upstream import Cut, Done, Fin, Gate, Hang, Rst, Step, call, finish, reasoning, role, say, token
from tests.life import GRACE_SECONDS, HEARTBEAT_SECONDS, answer_in, begun, end_of, in_time
from tests.proving import Stage, cancelled_from, check_once, each_transport, staged


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged(grace_seconds=GRACE_SECONDS, heartbeat_seconds=HEARTBEAT_SECONDS) as stage:
        yield stage


async def on_disk(stage: Stage, session_id: str) -> list[MessageResource]:
    """A session's messages as another process finds them."""
    async with open_sessions(stage.server.settings.database_url) as sessions:
        return (await sessions.session(LOCAL_USER, session_id)).messages


# ---- never silent ---------------------------------------------------------------------------------------------------

PINGS = {"sse": b": ping\n", "ndjson": b'{"type":"ping"}\n'}


async def hears_pings(reading: Reading, count: int) -> None:
    """Wait for so many keepalives, and for nothing else."""
    reader = cast(Any, reading).reader
    if isinstance(reader, WsReader):
        for _ in range(count):
            await reader.until("ping")
        return
    ping = PINGS["sse" if reader.accept == "text/event-stream" else "ndjson"]
    while reader.raw.count(ping) < count:
        assert await reader.more()


@each_transport
@in_time
async def test_pings_come_from_the_start_while_the_model_is_silent(stage: Stage, transport: Transport) -> None:
    gate = anyio.Event()
    stage.upstream.script(Gate(gate), *say("At last", 2))
    reading = await transport.start(stage.server, {"message": "Hello?"})
    await hears_pings(reading, 3)
    assert types_of(reading.documents) == ["start"]
    gate.set()
    documents = await documents_of(reading)
    check_once(documents)
    assert text_of(documents) == "At last"


@each_transport
@in_time
async def test_pings_come_while_a_tool_is_called(transport: Transport) -> None:
    async with staged(tools="tests.life:TOOLS", heartbeat_seconds=HEARTBEAT_SECONDS) as stage:
        stage.upstream.always(*call("hang", {}))
        reading = await transport.start(stage.server, {"message": "Hang"})
        await reading.take(2)
        await hears_pings(reading, 3)
        await cancelled_from(stage.server, transport, reading.run_id)
        assert types_of(await documents_of(reading)) == ["tool_result", "done"]


@each_transport
@in_time
async def test_a_tool_that_is_called_is_on_disk_long_before_its_result(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed now, the server would else leave no trace of a call that may have changed the world."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1000.0)
    async with staged(tools="tests.life:TOOLS") as stage:
        stage.upstream.always(*call("hang", {}))
        reading = await transport.start(stage.server, {"message": "Hang", "session_id": "s"})
        await reading.take(2)
        while not (await on_disk(stage, "s"))[-1].parts:  # noqa: ASYNC110 - another process is told of nothing
            await anyio.sleep(0.02)
        await cancelled_from(stage.server, transport, reading.run_id)
        assert types_of(await documents_of(reading)) == ["tool_result", "done"]


@in_time
async def test_an_idle_websocket_is_pinged_and_answers_pings(stage: Stage) -> None:
    async with await WsReader.connect(stage.server) as reader:
        for _ in range(3):
            assert (await reader.frame()).message == {"type": "ping"}
        reader.send({"type": "ping"})
        assert await reader.until("pong") == {"type": "pong"}


# ---- at once, and stored first --------------------------------------------------------------------------------------


@each_transport
@in_time
async def test_start_comes_before_the_model_answers_and_after_the_question_is_on_disk(
    stage: Stage, transport: Transport
) -> None:
    session_id, replies = f"question-{transport}", len(stage.upstream.replies)
    stage.upstream.script(Hang())
    reading = await transport.start(stage.server, {"message": "A question", "session_id": session_id})
    start = json.loads((await reading.take(1))[0])
    question, answer = await on_disk(stage, session_id)
    assert (question.message_id, question.role, question.content) == (start["user_message_id"], "user", "A question")
    assert (answer.message_id, answer.status, answer.content) == (start["message_id"], "streaming", "")
    assert start | {"session_id": session_id, "model": "gpt-4o-mini", "protocol": 1, "heartbeat_ms": 200} == start
    await stage.upstream.until(lambda: len(stage.upstream.replies) > replies)
    await cancelled_from(stage.server, transport, reading.run_id)
    await documents_of(reading)
    assert stage.upstream.replies[-1].bytes_written == 0


@each_transport
@in_time
async def test_the_answer_is_on_disk_before_done_is_seen(stage: Stage, transport: Transport) -> None:
    for number in range(5):
        story, reading = await begun(stage, transport, session_id=f"answer-{transport}-{number}")
        story.tell(story.last)
        last = (await reading.take(2))[-1]
        answer = (await on_disk(stage, f"answer-{transport}-{number}"))[-1]
        assert (answer.status, answer.content) == ("complete", story.text)
        done = json.loads(last)
        assert answer.usage is not None
        assert (done["type"], done["message_id"], done["usage"]) == ("done", answer.message_id, asdict(answer.usage))
        reading.cut()


@each_transport
@in_time
async def test_run_and_session_show_how_far_a_run_has_come(stage: Stage, transport: Transport) -> None:
    gate = anyio.Event()
    stage.upstream.script(reasoning("Hm. "), token("Half "), Gate(gate), token("done"), finish(), Done())
    reading = await transport.start(stage.server, {"message": "Show", "session_id": f"show-{transport}"})
    await reading.take(3)
    run, answer = await get_run(stage.server, reading.run_id), await answer_in(stage, reading.run_id)
    assert (run["status"], run["last_seq"], run["finished_at"], run["error"]) == ("running", 3, None, None)
    assert (answer["status"], answer["content"]) == ("streaming", "Half ")
    assert answer["parts"] == [{"type": "reasoning", "text": "Hm. "}, {"type": "text", "text": "Half "}]
    listed = (await request(stage.server, "GET", "/chat/sessions?limit=1")).json["sessions"]
    assert [each["active_run_id"] for each in listed] == [reading.run_id]
    gate.set()
    documents = await documents_of(reading)
    run, answer = await get_run(stage.server, reading.run_id), await answer_in(stage, reading.run_id)
    assert (run["status"], run["last_seq"], run["error"]) == ("completed", json.loads(documents[-1])["seq"], None)
    assert run["created_at"] <= run["finished_at"]
    assert (answer["status"], answer["content"]) == ("complete", "Half done")


# ---- turns and failures ---------------------------------------------------------------------------------------------


@each_transport
@in_time
async def test_tools_are_called_turn_after_turn_until_the_model_has_its_answer(
    stage: Stage, transport: Transport
) -> None:
    begin = len(stage.upstream.requests)
    for number, expression in enumerate(("6 * 7", "42 / 0")):
        stage.upstream.script(token(f"{number}. "), *call("calculator", {"expression": expression}, id=f"c{number}"))
    stage.upstream.script(*say("Enough"))
    documents = await documents_of(await transport.start(stage.server, {"message": "Count"}))
    check_once(documents)
    turn = ["token", "tool_call", "tool_result"]
    assert types_of(documents) == ["start", *turn, *turn, "token", "done"]
    called = [json.loads(documents[index]) for index in (2, 3, 5, 6)]
    assert [each["call_id"] for each in called] == ["c0", "c0", "c1", "c1"]
    assert [(called[1]["result"], called[1]["is_error"]), called[3]["is_error"]] == [(42, False), True]
    told = [each.json["messages"] for each in stage.upstream.requests[begin:]]
    assert [[message["role"] for message in each] for each in told] == [
        ["user", *["assistant", "tool"] * turns] for turns in range(3)
    ]
    answer = await answer_in(stage, json.loads(documents[0])["run_id"])
    assert (answer["status"], answer["content"]) == ("complete", "0. 1. Enough")
    kinds = [each.get("text") or (each["call_id"], each["is_error"]) for each in answer["parts"]]
    assert kinds == ["0. ", ("c0", False), "1. ", ("c1", True), "Enough"]


@each_transport
@in_time
@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_run_ends_where_its_log_is_full(
    stage: Stage, transport: Transport, is_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tokens that come one by one, and with all that come at once."""
    monkeypatch.setattr(run, "EVENTS_LIMIT", 6)
    gates = [anyio.Event() for _ in range(8 * is_alone)]
    said: list[list[Step]] = [[token(f"{number} "), *map(Gate, gates[number : number + 1])] for number in range(8)]
    stage.upstream.script(*itertools.chain(*said), finish(), Done())
    reading = await transport.start(stage.server, {"message": "Go on"})
    await reading.take(1)
    documents: list[bytes] = []
    for gate in gates[:5]:
        documents += await reading.take(1)
        gate.set()
    documents += await documents_of(reading)
    assert [json.loads(each).get("content") for each in documents[:-1]] == ["0 ", "1 ", "2 ", "3 ", "4 "]
    done = json.loads(documents[-1])
    assert (done["type"], done["finish_reason"], done["seq"]) == ("done", "length", 7)


@each_transport
@in_time
async def test_a_model_that_only_calls_tools_is_stopped_at_the_turn_limit(transport: Transport) -> None:
    async with staged(max_turns=3) as stage:
        stage.upstream.always(*call("calculator", {"expression": "1 + 1"}))
        documents = await documents_of(await transport.start(stage.server, {"message": "Loop"}))
        assert types_of(documents) == ["start", *["tool_call", "tool_result"] * 3, "done"]
        assert json.loads(documents[-1])["finish_reason"] == "turn_limit"
        assert len(stage.upstream.requests) == 3


@each_transport
@pytest.mark.parametrize("end", [Fin(), Cut(), Rst()], ids=lambda end: type(end).__name__)
@in_time
async def test_what_a_run_said_before_it_failed_is_kept_and_marked(
    stage: Stage, transport: Transport, end: Step
) -> None:
    gate = anyio.Event()
    stage.upstream.script(role(), token("So "), token("far"), Gate(gate), end)
    reading = await transport.start(stage.server, {"message": "Fail"})
    await reading.take(3)
    gate.set()
    documents = [*reading.documents, *await documents_of(reading)]
    check_once(documents)
    error = json.loads(documents[-1])
    assert (error["type"], error["code"], error["retryable"]) == ("error", "upstream_truncated", True)
    run, answer = await get_run(stage.server, reading.run_id), await answer_in(stage, reading.run_id)
    assert (run["status"], run["error"]) == ("failed", {"code": error["code"], "message": error["message"]})
    assert (answer["status"], answer["content"]) == ("partial", "So far")


@each_transport
@in_time
async def test_an_answer_that_the_database_does_not_take_is_stored_as_soon_as_it_does(
    stage: Stage, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    full, finish = anyio.Event(), Sessions.finish

    async def fails_until_there_is_room(self: Sessions, run_id: str, **facts: Any) -> None:
        if not full.is_set():
            raise Unavailable("the database cannot be used now")
        await finish(self, run_id, **facts)

    session = {"session_id": f"full-{transport}"}
    with (
        patch.object(Sessions, "finish", fails_until_there_is_room),
        patch("chatserver.runs.ends.STORE_AGAIN_SECONDS", 0.01),
        patch("chatserver.runs.ends.WAIT_SECONDS", 0.05),
    ):
        stage.upstream.script(*say("Lost?"))
        reading = await transport.start(stage.server, session | {"message": "Keep this"})
        documents = await documents_of(reading)
        check_once(documents)
        assert json.loads(documents[-1])["code"] == "internal"
        with pytest.raises(RefusedError) as refused:
            await transport.start(stage.server, session | {"message": "And now?"})
        assert refused.value.code == "run_active"
        full.set()
        await end_of(stage, reading.run_id)
    run, answer = await get_run(stage.server, reading.run_id), await answer_in(stage, reading.run_id)
    assert (run["status"], run["error"]["code"], run["last_seq"]) == ("failed", "internal", len(documents))
    assert (answer["status"], answer["content"]) == ("partial", "Lost?")
    stage.upstream.script(*say("Yes"))
    assert text_of(await documents_of(await transport.start(stage.server, session | {"message": "Again?"}))) == "Yes"
    assert caplog.text == ""  # The store says it, once for all.
