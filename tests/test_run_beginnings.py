"""How runs begin: beside deletions and faults of the store, without a reader, without a grace period."""

import json
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from msgspec.structs import replace
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from chatserver.auth import LOCAL_USER
from chatserver.commands import ChatRequest
from chatserver.errors import Unavailable
from chatserver.limits import EVERYBODY
from chatserver.log.logs import MemoryLogs
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.places import LocalPlaces
from chatserver.runs.runs import Runs
from chatserver.sessions import Begun, Sessions
from tests.clients import (
    BOTH,
    SSE,
    Reading,
    RefusedError,
    Transport,
    Wire,
    WsReader,
    documents_of,
    get_run,
    request,
    text_of,
)
from tests.fake_upstream import Done, Gate, finish, role, say, token
from tests.life import begun, end_of, in_time, is_cut
from tests.proving import Stage, each_transport, held, staged

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


@pytest.fixture(scope="module")
async def graceless() -> AsyncIterator[Stage]:
    async with staged(grace_seconds=0) as stage:
        yield stage


@in_time
async def test_schemas_are_checked_for_one_request_at_a_time(stage: Stage) -> None:
    two, met = threading.Barrier(2), list[bool]()

    def check(schemas: object) -> None:
        try:
            two.wait(0.1)
        except threading.BrokenBarrierError:
            two.reset()
        else:
            met.append(True)

    body = {"message": "Hi", "tools": [{"name": "screen", "parameters": {"type": "object"}}]}
    stage.upstream.always(*say("Done"))
    with patch("chatserver.runs.runs.check_schemas", check):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(request, stage.server, "POST", "/chat/runs", body)
    assert not met


@each_transport
@in_time
async def test_without_grace_an_answer_is_whole_and_ends_when_its_reader_leaves(
    graceless: Stage, transport: Transport
) -> None:
    for number in range(5):
        graceless.upstream.script(*say("Here I am"))
        documents = await documents_of(await transport.start(graceless.server, {"message": f"Hi {number}"}))
        assert (text_of(documents), json.loads(documents[-1])["finish_reason"]) == ("Here I am", "stop")
    story, reading = await begun(graceless, transport)
    reading.cut()
    assert (await end_of(graceless, reading.run_id))["finish_reason"] == "cancelled"
    await is_cut(graceless, story)


@in_time
async def test_without_grace_a_run_that_is_started_without_a_reader_ends_at_once() -> None:
    async with staged(grace_seconds=0) as stage:
        stage.upstream.always(*say("Done"))
        body = {"message": "Hi", "on_disconnect": "continue"}
        run = (await request(stage.server, "POST", "/chat/runs", body)).json
        assert (await end_of(stage, run["run_id"]))["finish_reason"] == "stop"
        stage.upstream.always(role(), token("Nobody"), Gate(anyio.Event()))
        run = (await request(stage.server, "POST", "/chat/runs", {"message": "Hi"})).json
        assert (await end_of(stage, run["run_id"]))["finish_reason"] == "cancelled"


@each_transport
@in_time
async def test_a_run_that_begins_while_its_session_is_deleted_waits_for_that(
    stage: Stage, transport: Transport
) -> None:
    """Also where it had to wait for a place, as when the store is asked what its user has spent today."""
    body = {"message": "Hi", "session_id": f"deleted-{transport}"}
    path = f"/chat/sessions/{body['session_id']}"
    stage.upstream.script(*say("One"))
    await documents_of(await transport.start(stage.server, body))
    answers: list[str] = []

    async def ask() -> None:
        stage.upstream.script(*say("Two"))
        documents = await documents_of(await transport.start(stage.server, body))
        answers.append(text_of(documents))
        assert (await get_run(stage.server, json.loads(documents[0])["run_id"]))["status"] == "completed"

    async def delete() -> None:
        assert (await request(stage.server, "DELETE", path)).status == 204

    with held(LocalPlaces, "acquire", done=True) as place, held(Sessions, "delete", done=False) as deletion:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await place.come.wait()
            tasks.start_soon(delete)
            await deletion.come.wait()
            place.let.set()
            for _ in range(3):
                await request(stage.server, "GET", "/livez")
            deletion.let.set()
    assert answers == ["Two"]
    assert [each["content"] for each in (await request(stage.server, "GET", path)).json["messages"]] == ["Hi", "Two"]


async def nothing(*_: Any) -> None:
    """Nothing is stored."""


async def fail(*_: Any) -> None:
    raise OSError("nothing goes")


async def begin_and_lose(self: Sessions, *args: Any) -> Begun:
    """The database does it, and the connection is lost before it can say so."""
    await BEGIN(self, *args)
    raise Unavailable


BEGIN = Sessions.begin
FAULTS = {
    "the log cannot be made": partial(patch.object, MemoryLogs, "create", fail),
    "the answer of the store is lost": partial(patch.object, Sessions, "begin", begin_and_lose),
}


@each_transport
@pytest.mark.parametrize("fault", FAULTS)
@in_time
async def test_a_run_that_began_in_the_store_alone_is_ended_there(transport: Transport, fault: str) -> None:
    body = {"message": "Hi", "session_id": "s"}
    async with staged() as stage:
        stage.upstream.always(*say("Yes"))
        with FAULTS[fault](), pytest.raises(RefusedError):
            await transport.start(stage.server, body)
        assert text_of(await documents_of(await begun_in_the_end(stage, transport, body))) == "Yes"


async def begun_in_the_end(stage: Stage, transport: Transport, body: dict[str, Any]) -> Reading:
    while True:
        try:
            return await transport.start(stage.server, body)
        except RefusedError as refusal:
            if refusal.code != "run_active":
                raise
            await anyio.sleep(0.01)


@pytest.mark.parametrize("transport", BOTH, ids=str)
@in_time
async def test_a_run_whose_starter_leaves_while_it_is_stored_is_there_for_who_asks_again(transport: Transport) -> None:
    """As when the connection is cut right behind the request: the client asks again, with the same key."""
    body = {"message": "Hi", "idempotency_key": "k"}
    async with staged() as stage:
        stage.upstream.always(*say("Whole"))
        with held(Sessions, "begin", done=True) as commit:
            wire = await Wire.open(stage.server) if transport is SSE else (await WsReader.connect(stage.server)).wire
            said = json.dumps(body).encode()
            wire.write(post(said) if transport is SSE else masked(json.dumps({"type": "send"} | body).encode()))
            await commit.come.wait()
            wire.cut()
            for _ in range(3):  # Meanwhile the server hears of it.
                await request(stage.server, "GET", "/livez")
            commit.let.set()
        documents = await documents_of(await transport.start(stage.server, body))
        assert (text_of(documents), len(stage.upstream.requests)) == ("Whole", 1)


@asynccontextmanager
async def drain_meanwhile(stage: Stage, owner: type, name: str) -> AsyncIterator[None]:
    """The server begins to go down while a call of this method is held."""
    with held(owner, name, done=True) as hold:
        async with await WsReader.connect(stage.server) as idle:
            yield
            await hold.come.wait()
            stage.server.begin_drain()
            assert (await idle.closing()).code == 1012
        hold.let.set()


@each_transport
@in_time
async def test_a_run_in_mid_commit_when_the_server_goes_down_is_accepted_and_has_its_time(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatserver.transports.connections.FLUSH_SECONDS", 0)
    readings: list[Reading] = []
    async with staged(drain_seconds=20) as stage:

        async def start() -> None:
            readings.append(await transport.start(stage.server, {"message": "Hi"}))

        gate = anyio.Event()
        stage.upstream.always(role(), token("Who"), Gate(gate), token("le"), finish(), Done())
        async with anyio.create_task_group() as tasks, drain_meanwhile(stage, Sessions, "begin"):
            tasks.start_soon(start)
        for _ in range(3):  # Meanwhile the server would be gone, if it did not wait for this run.
            assert (await request(stage.server, "GET", "/livez")).status == 200
        gate.set()
        documents = await documents_of(readings[0])
        assert (text_of(documents), json.loads(documents[-1])["type"]) == ("Whole", "done")


@in_time
async def test_what_a_command_has_come_to_when_the_server_goes_down_is_told_before_the_close() -> None:
    async with staged() as stage, await WsReader.connect(stage.server) as reader:
        stage.upstream.always(*say("Yes"))
        run_id = await reader.run({"message": "Hi"})
        await reader.until("done")
        reader.pass_over()
        async with drain_meanwhile(stage, Runs, "cancel"):
            reader.send({"type": "cancel", "run_id": run_id, "ref": "7"})
        assert (await reader.frame()).message == {"type": "accepted", "ref": "7", "run_id": run_id}
        assert (await reader.closing()).code == 1012


def post(body: bytes) -> bytes:
    head = "POST /chat/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def masked(text: bytes) -> bytes:
    """A text frame, short, from a client."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


# ---- the model is asked while the disk commits ----------------------------------------------------------------------


@each_transport
@in_time
async def test_the_model_is_asked_while_the_disk_commits_and_nothing_is_told_before(transport: Transport) -> None:
    readings: list[Reading] = []
    async with staged() as stage:
        stage.upstream.always(*say("Early"))

        async def ask() -> None:
            readings.append(await transport.start(stage.server, {"message": "Hi", "session_id": "s"}))

        with held(Sessions, "begin", done=True) as commit:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                asked = await stage.upstream.next_request()
                await stage.upstream.idle()
                await commit.come.wait()
                for _ in range(3):
                    await request(stage.server, "GET", "/livez")
                assert readings == [] and stage.server.runs._lives.lives == {}
                commit.let.set()
        documents = await documents_of(readings[0])
        assert (text_of(documents), len(stage.upstream.requests)) == ("Early", 1)
        assert asked.json["messages"] == [{"role": "user", "content": "Hi"}]
        await documents_of(await transport.start(stage.server, {"message": "And?", "session_id": "s"}))
        told = [(each["role"], each["content"]) for each in stage.upstream.requests[-1].json["messages"]]
        assert told == [("user", "Hi"), ("assistant", "Early"), ("user", "And?")]


@each_transport
@in_time
async def test_a_run_that_the_disk_refuses_leaves_its_model_at_once_and_nothing_behind(transport: Transport) -> None:
    asked = threading.Event()

    def refuse(_: object) -> None:
        assert asked.wait(WAIT_SECONDS)
        cause = sqlite3.OperationalError("database or disk is full")
        cause.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise OperationalError("COMMIT", None, cause)

    async with staged(max_tokens_per_day=1000) as stage:
        runs = stage.server.runs
        another = await runs._places.acquire(LOCAL_USER)
        engine = runs._sessions._database._database._engine
        stage.upstream.always(token("Too early"), Gate(anyio.Event()))
        event.listen(engine, "commit", refuse)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused, stage, transport)
            await stage.upstream.next_request()
            asked.set()
        await stage.upstream.until(lambda: [each.state for each in stage.upstream.replies] == ["cut"])
        event.remove(engine, "commit", refuse)
        assert (runs._logs._logs, runs._lives.lives, runs._places.held[EVERYBODY]) == ({}, {}, 1)
        await stage.upstream.until(lambda: runs._lives._tasks == set())
        day = await runs._places._days.today(LOCAL_USER)
        assert day is not None and day.spent == 0
        await another.release()
        assert (await request(stage.server, "GET", "/chat/sessions/s")).status == 404
        stage.upstream.always(*say("Now"))
        again = await documents_of(await transport.start(stage.server, {"message": "Hi", "session_id": "s"}))
        assert text_of(again) == "Now"


async def refused(stage: Stage, transport: Transport) -> None:
    with pytest.raises(RefusedError) as refusal:
        await transport.start(stage.server, {"message": "Hi", "session_id": "s"})
    assert (refusal.value.status, refusal.value.code) == (503, "unavailable")


@in_time
async def test_a_model_is_told_an_answer_whose_end_is_in_the_commit_that_its_own_run_waits_for() -> None:
    """Somebody stops an answer and says the next word at once, while the disk is busy: one commit takes both."""
    is_busy, are_queued = threading.Event(), threading.Event()

    def busy(_: object) -> None:
        if threading.current_thread().name == "sqlite-writer":
            is_busy.set()
            assert are_queued.wait(WAIT_SECONDS)

    async with staged() as stage:
        runs, body = stage.server.runs, {"message": "Hi", "session_id": "s"}
        sqlite = runs._sessions._database._database
        stage.upstream.script(role(), token("Half"), Gate(anyio.Event()))
        reading = await SSE.start(stage.server, body)
        await reading.take(2)
        stage.upstream.script(*say("Next"))

        async def ask_again() -> None:
            await documents_of(await SSE.start(stage.server, body))

        with patch.object(Checkpoints, "store", nothing):
            event.listen(sqlite._engine, "commit", busy)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runs._sessions._lease.touch)
                await anyio.to_thread.run_sync(is_busy.wait, WAIT_SECONDS)
                await runs.cancel(LOCAL_USER, reading.run_id)
                tasks.start_soon(ask_again)
                while sqlite._writes.qsize() < 2:  # noqa: ASYNC110 - a queue of threads tells no loop
                    await anyio.sleep(0.01)
                are_queued.set()
        await documents_of(reading)
        told = [(each["role"], each["content"]) for each in stage.upstream.requests[-1].json["messages"]]
        assert told == [("user", "Hi"), ("assistant", "Half"), ("user", "Hi")]


@in_time
async def test_what_the_store_has_to_begin_anew_is_asked_anew() -> None:
    async with staged() as stage:
        upstream = stage.upstream

        async def begin_twice(
            self: Sessions, user: str, asked: ChatRequest, run_id: str, on_begun: Any, context_bytes: int
        ) -> Begun:
            begun = await BEGIN(self, user, asked, run_id)
            on_begun(replace(begun, user_message_id="void"))
            await upstream.next_request()
            on_begun(begun)
            return begun

        rest = anyio.Event()
        upstream.script(token("Void"), Gate(anyio.Event()))
        upstream.script(role(), token("Right"), Gate(rest), *say("!"))
        with patch.object(Sessions, "begin", begin_twice):
            reading = await SSE.start(stage.server, {"message": "Hi"})
        await upstream.until(lambda: [each.state for each in upstream.replies][:1] == ["cut"])
        await reading.take(2)
        runs = stage.server.runs
        cared_for = [list(runs._lives._unfinished), list(runs._lives._checkpoints._growing)]
        assert (cared_for, runs._places.held[EVERYBODY]) == ([[reading.run_id]] * 2, 1)
        rest.set()
        documents = await documents_of(reading)
        assert (text_of(documents), json.loads(documents[-1])["seq"]) == ("!", 4)
        assert runs._places.held[EVERYBODY] == 0


@in_time
async def test_a_repeated_request_asks_no_model() -> None:
    async with staged() as stage:
        stage.upstream.always(*say("Once"))
        body = {"message": "Hi", "idempotency_key": "k"}
        first, second = [await documents_of(await SSE.start(stage.server, body)) for _ in range(2)]
        assert (first, len(stage.upstream.requests)) == (second, 1)
        assert len(stage.server.runs._logs._logs) == 1
