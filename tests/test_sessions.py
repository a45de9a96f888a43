"""Sessions: what is kept, for whom and in which order; what survives races and crashes. On both databases."""

import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from anyio import create_task_group, fail_after, wait_all_tasks_blocked
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, event, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from chatserver.answer import Answer, fold, interrupted
from chatserver.commands import ChatRequest, new_id
from chatserver.dialogue import INTERRUPTED_CALL, Leavings, PastMessage, TurnOrigin
from chatserver.errors import BadCursor, KeyReused, NotFound, RunActive, RunLost, SettingsError
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    Error,
    Snapshot,
    Usage,
    record,
)
from chatserver.log import SEQ_LIMIT, StoredLog
from chatserver.parts import ToolCallPart
from chatserver.resources import MessageResource, RunFailure, RunStatus, SessionPage
from chatserver.sessions import Begun, Quota, Sessions, begin, end, open_sessions
from chatserver.sessions.database import Database, open_database
from chatserver.sessions.schema import metadata, runs, spendings
from chatserver.sessions.schema import sessions as chats
from tests.databases import answer_of, answered, ask, contents, done, ended, events_of, said, texts

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
SECONDS = 20
ORIGIN = TurnOrigin({"call_1": "fn:0"}, Leavings("maker", {"message": {"x": ["ü\0"]}, "calls": [{}]}))
CALL = ToolCallPart(
    call_id="call_1",
    tool="clock",
    args={"zone": "UTC"},
    result={"now": [1, "ü\0"]},
    is_error=False,
    truncated=False,
    duration_ms=3,
)


# Beginning


async def test_a_begun_run_is_running_and_its_messages_stand_in_its_session(sessions: Sessions) -> None:
    begun = await ask(sessions, "Hello")
    run = begun.run
    assert begun.is_new
    assert (run.status, run.last_seq, run.usage, run.finished_at, run.error) == ("running", 0, None, None, None)
    assert await sessions.run("ann", run.run_id) == run
    detail = await sessions.session("ann", run.session_id)
    assert (detail.title, detail.active_run_id) == ("Hello", run.run_id)
    question, answer = detail.messages
    assert await sessions.context(begun.user_message_id, 10**9) == [PastMessage(True, question.parts, ())]
    assert (question.message_id, question.role, question.status) == (begun.user_message_id, "user", "complete")
    assert (question.parent_id, question.run_id) == (None, None)
    assert (answer.message_id, answer.role, answer.status) == (run.message_id, "assistant", "streaming")
    assert (answer.parent_id, answer.run_id, answer.content) == (question.message_id, run.run_id, "")


async def test_a_session_without_an_id_gets_a_new_one_each_time(sessions: Sessions) -> None:
    assert (await ask(sessions)).run.session_id != (await ask(sessions)).run.session_id


async def test_a_client_may_choose_the_id_of_a_new_session(sessions: Sessions) -> None:
    assert (await answered(sessions, session_id="abc123")).run.session_id == "abc123"
    assert (await answered(sessions, session_id="abc123")).run.session_id == "abc123"
    assert len((await sessions.session("ann", "abc123")).messages) == 4


async def test_the_same_session_id_of_two_users_is_two_sessions(sessions: Sessions) -> None:
    await ask(sessions, "I am Ann", session_id="s", user="ann")
    await ask(sessions, "I am Bob", session_id="s", user="bob")
    assert await texts(sessions, "s", user="ann") == ["I am Ann", ""]
    assert await texts(sessions, "s", user="bob") == ["I am Bob", ""]


async def test_the_context_is_the_whole_branch_up_to_the_question(sessions: Sessions) -> None:
    first = await answered(sessions, "One", "1", session_id="s")
    second = await answered(sessions, "Two", "2", session_id="s")
    third = await ask(sessions, "Three", session_id="s")
    assert [await contents(sessions, each) for each in (first, second, third)] == [
        ["One"],
        ["One", "1", "Two"],
        ["One", "1", "Two", "2", "Three"],
    ]
    context = await sessions.context(third.user_message_id, 10**9)
    assert [message.is_of_user for message in context] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("Hello", "Hello"),
        ("  \n\n  What \t is\u00a0 this?  \nMore", "What is this?"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 79 + "…"),
        ("ü" * 78 + " word", "ü" * 78 + "…"),
    ],
)
async def test_a_new_session_is_titled_by_the_first_line(sessions: Sessions, message: str, title: str) -> None:
    begun = await ask(sessions, message)
    assert (await sessions.session("ann", begun.run.session_id)).title == title


async def test_text_comes_back_as_it_was(sessions: Sessions) -> None:
    message = "a\tb\n'quoted'; DROP TABLE runs; -- 😀 \u2028 %s :name ?"
    begun = await ask(sessions, message)
    assert await contents(sessions, begun) == [message]
    assert (await texts(sessions, begun.run.session_id))[0] == message


async def test_a_refused_beginning_leaves_nothing_behind(sessions: Sessions) -> None:
    await answered(sessions, session_id="s")
    before = await sessions.session("ann", "s")
    taken = await ask(sessions, session_id="other")
    with pytest.raises(IntegrityError):  # the run's id is taken, which only its last statement finds out
        await sessions.begin("ann", ChatRequest(message="Hello", session_id="s"), taken.run.run_id)
    with pytest.raises(RunActive):
        await ask(sessions, session_id="other")
    with pytest.raises(NotFound):
        await ask(sessions, regenerate="unknown")
    assert await sessions.session("ann", "s") == before
    assert len((await sessions.page("ann", 10, None)).sessions) == 2


# One active run in a session


async def test_a_session_has_one_active_run(sessions: Sessions) -> None:
    first = await ask(sessions, session_id="s")
    with pytest.raises(RunActive) as refused:
        await ask(sessions, session_id="s")
    assert refused.value.run_id == first.run.run_id
    await ask(sessions, session_id="t")
    await ask(sessions, session_id="s", user="bob")
    await ended(sessions, first)
    assert (await ask(sessions, session_id="s")).is_new


@pytest.mark.parametrize("is_new_session", [True, False])
async def test_of_racing_runs_one_starts_and_the_others_hear_its_id(sessions: Sessions, is_new_session: bool) -> None:
    if not is_new_session:
        await answered(sessions, session_id="s")
    started: list[str] = []
    refused: list[str] = []

    async def race() -> None:
        try:
            started.append((await ask(sessions, session_id="s")).run.run_id)
        except RunActive as active:
            refused.append(active.run_id)

    with fail_after(SECONDS):
        async with create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(race)
    assert len(started) == 1
    assert refused == started * 9


async def test_the_database_itself_refuses_a_second_active_run(sessions: Sessions, database: Database) -> None:
    first = await ask(sessions, session_id="s")

    def copy(connection: Connection) -> None:
        row = connection.execute(runs.select().where(runs.c.run_id == first.run.run_id)).one()
        connection.execute(runs.insert(), {**row._mapping, "run_id": "second"})

    with pytest.raises(IntegrityError):
        await database.write(copy)
    await ended(sessions, first)
    await database.write(copy)


@pytest.mark.parametrize("status", ["running", "waiting"])
async def test_the_database_itself_refuses_an_active_run_that_is_over(
    sessions: Sessions, database: Database, status: str
) -> None:
    first = await answered(sessions)
    change = runs.update().where(runs.c.run_id == first.run.run_id).values(status=status)
    with pytest.raises(IntegrityError):
        await database.write(lambda connection: connection.execute(change))


# Idempotency


async def test_the_same_key_returns_the_same_run_and_starts_nothing(sessions: Sessions) -> None:
    first = await ask(sessions, idempotency_key="k")
    again = await ask(sessions, idempotency_key="k")
    assert (again.run, again.user_message_id, again.is_new) == (first.run, first.user_message_id, False)
    await ended(sessions, first)
    late = await ask(sessions, idempotency_key="k")
    assert (late.run.status, late.run.run_id, late.is_new) == ("completed", first.run.run_id, False)
    assert len((await sessions.session("ann", first.run.session_id)).messages) == 2
    assert len((await sessions.page("ann", 10, None)).sessions) == 1


async def test_a_key_survives_a_restart(url: str) -> None:
    async with open_sessions(url) as before:
        first = await ask(before, idempotency_key="k")
    async with open_sessions(url) as after:
        assert (await ask(after, idempotency_key="k")).run == first.run


@pytest.mark.parametrize(
    "other",
    [
        {"message": "Bye"},
        {"session_id": "t"},
        {"model": "m"},
        {"system": "s"},
        {"temperature": 0.0},
        {"max_output_tokens": 1},
        {"on_disconnect": "continue"},
        {"regenerate": "r"},
        {"parent_id": "p"},
    ],
)
async def test_the_same_key_with_another_request_is_refused(sessions: Sessions, other: dict[str, Any]) -> None:
    await ask(sessions, session_id="s", idempotency_key="k")
    with pytest.raises(KeyReused):
        await ask(sessions, **({"message": "Hello", "session_id": "s", "idempotency_key": "k"} | other))


async def test_what_a_key_has_started_is_found_without_starting_anything(sessions: Sessions) -> None:
    request = ChatRequest(message="Hello", idempotency_key="k")
    assert await sessions.earlier("ann", request) is None
    begun = await sessions.begin("ann", request, new_id())
    found = await sessions.earlier("ann", request)
    assert found is not None and (found.run, found.is_new) == (begun.run, False)
    assert await sessions.earlier("bob", request) is None
    assert await sessions.earlier("ann", ChatRequest(message="Hello")) is None
    with pytest.raises(KeyReused):
        await sessions.earlier("ann", ChatRequest(message="Bye", idempotency_key="k"))
    assert len((await sessions.page("ann", 10, None)).sessions) == 1


async def test_a_key_belongs_to_its_user(sessions: Sessions) -> None:
    assert (await ask(sessions, idempotency_key="k", user="ann")).is_new
    assert (await ask(sessions, "Something else", idempotency_key="k", user="bob")).is_new


async def test_a_key_is_free_again_when_its_session_is_deleted(sessions: Sessions) -> None:
    first = await ask(sessions, session_id="s", idempotency_key="k")
    await sessions.delete("ann", "s", [first.run.run_id])
    again = await ask(sessions, session_id="s", idempotency_key="k")
    assert again.is_new and again.run.run_id != first.run.run_id


@pytest.mark.parametrize("session_id", [None, "s"])
async def test_racing_calls_with_one_key_start_one_run(sessions: Sessions, session_id: str | None) -> None:
    begun: list[Begun] = []

    async def race() -> None:
        begun.append(await ask(sessions, session_id=session_id, idempotency_key="k"))

    with fail_after(SECONDS):
        async with create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(race)
    assert len({each.run.run_id for each in begun}) == 1
    assert sum(each.is_new for each in begun) == 1
    assert len((await sessions.page("ann", 100, None)).sessions) == 1


@pytest.mark.parametrize("session", ["existing", "chosen", "none"])
async def test_a_call_that_waited_for_its_twin_returns_the_twins_run(postgres_url: str, session: str) -> None:
    """On PostgreSQL the two run side by side until one waits for a row or an index entry of the other."""
    request = ChatRequest(message="Hello", session_id=None if session == "none" else "s", idempotency_key="k")
    late: list[Begun] = []

    def win(connection: Connection) -> Begun:
        won = begin.begin(connection, "ann", request, new_id(), "twin", Quota(), 0)
        tasks.start_soon(lose)
        while not connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            pass  # Each look lets the event loop go on.
        return won

    async def lose() -> None:
        late.append(await sessions.begin("ann", request, new_id()))

    async with open_sessions(postgres_url) as sessions, open_database(postgres_url) as database:
        if session == "existing":
            await answered(sessions, session_id="s")
        with fail_after(SECONDS):
            async with create_task_group() as tasks:
                won = await database.write(win)
    assert [(each.run, each.is_new) for each in late] == [(won.run, False)]


RACE = """
import sys, anyio
from chatserver.answer import Answer, fold
from chatserver.commands import ChatRequest, new_id
from chatserver.sessions import open_sessions

async def main():
    async with open_sessions(sys.argv[1]) as sessions:
        print("ready", flush=True)
        sys.stdin.readline()
        async def race():
            begun = await sessions.begin("ann", ChatRequest(message="Hello", idempotency_key="k"), new_id())
            print(begun.run.run_id, begun.is_new, flush=True)
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(race)

anyio.run(main)
"""


def script(source: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", source, *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_racing_processes_migrate_once_and_start_one_run_for_one_key(url: str) -> None:
    processes = [script(RACE, url) for _ in range(3)]  # All find an empty database.
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [line for process in processes for line in process.communicate(timeout=SECONDS)[0].splitlines()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(lines) == 30
    assert len({line.split()[0] for line in lines}) == 1
    assert sum(line.endswith("True") for line in lines) == 1


# Branches


async def test_regenerate_answers_the_same_message_on_a_new_branch(sessions: Sessions) -> None:
    await answered(sessions, "One", "1", session_id="s")
    second = await answered(sessions, "Two", "2", session_id="s")
    again = await ask(sessions, None, regenerate=second.user_message_id)
    assert (again.run.session_id, again.user_message_id) == ("s", second.user_message_id)
    assert await contents(sessions, again) == ["One", "1", "Two"]
    await ended(sessions, again, "2b")
    assert await texts(sessions, "s") == ["One", "1", "Two", "2b"]
    assert await texts(sessions, "s", all_branches=True) == ["One", "1", "Two", "2", "2b"]
    third = await ask(sessions, "Three", session_id="s")
    assert await contents(sessions, third) == ["One", "1", "Two", "2b", "Three"]


async def test_regenerate_with_a_message_edits_it_there(sessions: Sessions) -> None:
    await answered(sessions, "One", "1", session_id="s")
    second = await answered(sessions, "Two", "2", session_id="s")
    edited = await answered(sessions, "Zwei", "2b", regenerate=second.user_message_id, session_id="s")
    assert await contents(sessions, edited) == ["One", "1", "Zwei"]
    assert edited.user_message_id != second.user_message_id
    by_id = {each.message_id: each for each in (await sessions.session("ann", "s", True)).messages}
    assert by_id[edited.user_message_id].parent_id == by_id[second.user_message_id].parent_id
    assert await texts(sessions, "s") == ["One", "1", "Zwei", "2b"]
    assert await texts(sessions, "s", all_branches=True) == ["One", "1", "Two", "2", "Zwei", "2b"]


async def test_the_first_message_can_be_edited_too(sessions: Sessions) -> None:
    first = await answered(sessions, "One", "1", session_id="s")
    await answered(sessions, "Two", "2", session_id="s")
    edited = await answered(sessions, "Eins", "1b", regenerate=first.user_message_id)
    assert await contents(sessions, edited) == ["Eins"]
    assert (await sessions.session("ann", "s")).messages[0].parent_id is None
    assert await texts(sessions, "s") == ["Eins", "1b"]
    assert (await sessions.session("ann", "s")).title == "One"


async def test_an_older_branch_becomes_the_newest_by_being_regenerated(sessions: Sessions) -> None:
    first = await answered(sessions, "One", "1", session_id="s")
    await answered(sessions, "Eins", "1b", regenerate=first.user_message_id)
    await answered(sessions, None, "1c", regenerate=first.user_message_id)
    assert await texts(sessions, "s") == ["One", "1c"]


async def test_regenerate_names_a_message_of_the_user(sessions: Sessions) -> None:
    first = await answered(sessions, session_id="s")
    await answered(sessions, session_id="t")
    await answered(sessions, session_id="s", user="bob")
    with pytest.raises(NotFound):
        await ask(sessions, None, regenerate="unknown")
    with pytest.raises(NotFound):
        await ask(sessions, None, regenerate=first.user_message_id, user="bob")
    with pytest.raises(NotFound):
        await ask(sessions, None, regenerate=first.user_message_id, session_id="t")
    with pytest.raises(NotFound):
        await ask(sessions, None, regenerate=first.user_message_id, session_id="unknown")
    with pytest.raises(NotFound):
        await ask(sessions, None, regenerate=first.run.message_id)


async def test_regenerate_waits_for_the_active_run_too(sessions: Sessions) -> None:
    first = await ask(sessions)
    with pytest.raises(RunActive) as refused:
        await ask(sessions, None, regenerate=first.user_message_id)
    assert refused.value.run_id == first.run.run_id


# Ending


async def test_the_end_of_a_run_is_kept_whole(sessions: Sessions) -> None:
    begun = await ask(sessions)
    log = StoredLog(3, said("Hi", " you", run_id=begun.run.run_id).documents, b"\x01\0\xff\xff")
    answer = replace(answer_of("Hi you", "hm", CALL), transcript=(ORIGIN,))
    await sessions.finish(begun.run.run_id, ending=done("length"), answer=answer, log=log, usage=Usage(5, 7, True))
    run = await sessions.run("ann", begun.run.run_id)
    assert (run.status, run.last_seq, run.usage, run.error) == ("completed", 3, Usage(5, 7, True), None)
    assert run.finished_at is not None and run.finished_at >= run.created_at
    assert await sessions.log(begun.run.run_id) == log
    detail = await sessions.session("ann", begun.run.session_id)
    assert detail.active_run_id is None
    message = detail.messages[-1]
    assert (message.content, message.parts) == ("Hi you", answer.parts)
    assert (message.status, message.finish_reason, message.usage) == ("complete", "length", Usage(5, 7, True))
    assert detail.messages[0].finish_reason is None


@pytest.mark.parametrize("status", ["cancelled", "failed"])
async def test_what_a_cancelled_or_failed_run_said_is_kept_and_marked(sessions: Sessions, status: RunStatus) -> None:
    begun = await ask(sessions)
    failure = Error(code="llm_error", message="no", retryable=False)
    ending = failure if status == "failed" else done("cancelled")
    await sessions.finish(begun.run.run_id, ending=ending, answer=answer_of("Ha"), log=said("Ha"), usage=None)
    run = await sessions.run("ann", begun.run.run_id)
    assert (run.status, run.error) == (status, RunFailure("llm_error", "no") if status == "failed" else None)
    message = (await sessions.session("ann", begun.run.session_id)).messages[-1]
    assert (message.content, message.status) == ("Ha", "partial")
    assert message.finish_reason == (None if status == "failed" else "cancelled")


async def test_the_first_end_counts(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = await answered(sessions, content="first")
    run = await sessions.run("ann", begun.run.run_id)
    session = await sessions.session("ann", begun.run.session_id)
    monkeypatch.setattr(end, "timestamp", lambda: "2100-01-01T00:00:00.000Z")
    await ended(sessions, begun, "second", done("cancelled"))  # As if nobody had heard that the first was kept.
    assert await sessions.run("ann", begun.run.run_id) == run
    assert await sessions.log(begun.run.run_id) == said("first")
    assert await sessions.session("ann", begun.run.session_id) == session


async def test_the_end_of_a_run_whose_session_was_deleted_is_refused_in_words(sessions: Sessions) -> None:
    begun = await ask(sessions, session_id="s")
    await sessions.delete("ann", "s", [begun.run.run_id])
    with pytest.raises(RunLost, match="deleted"):
        await ended(sessions, begun)
    await sessions.checkpoint({begun.run.run_id: answer_of("late")})
    with pytest.raises(NotFound):
        await sessions.run("ann", begun.run.run_id)
    with pytest.raises(NotFound):
        await sessions.log(begun.run.run_id)


async def test_an_unfinished_run_has_no_log(sessions: Sessions) -> None:
    begun = await ask(sessions)
    assert await sessions.log(begun.run.run_id) is None


async def test_a_nul_that_a_model_says_is_kept(sessions: Sessions) -> None:
    begun = await ask(sessions)
    await sessions.finish(
        begun.run.run_id,
        ending=Error(code="internal", message="\0", retryable=False),
        answer=answer_of("a\0b", "\0", CALL),
        log=said("a\0b"),
        usage=None,
    )
    message = (await sessions.session("ann", begun.run.session_id)).messages[-1]
    assert (message.content, message.parts) == ("a\0b", answer_of("a\0b", "\0", CALL).parts)
    assert await sessions.log(begun.run.run_id) == said("a\0b")


# Checkpoints and crashes


async def test_a_checkpoint_is_what_a_running_answer_shows(sessions: Sessions) -> None:
    one, two = await ask(sessions), await ask(sessions)
    over = await answered(sessions, content="done")
    await sessions.checkpoint({
        one.run.run_id: answer_of("so", "far", CALL),
        two.run.run_id: answer_of("good"),
        over.run.run_id: answer_of("too late"),
        "unknown": answer_of("nobody"),
    })  # fmt: skip
    await sessions.checkpoint({})
    message = (await sessions.session("ann", one.run.session_id)).messages[-1]
    assert (message.content, message.parts) == ("so", answer_of("so", "far", CALL).parts)
    assert (message.status, message.finish_reason, message.usage) == ("streaming", None, None)
    assert await texts(sessions, two.run.session_id) == ["Hello", "good"]
    assert await texts(sessions, over.run.session_id) == ["Hello", "done"]
    assert (await sessions.run("ann", one.run.run_id)).status == "running"


async def test_what_a_dead_process_left_is_ended_as_interrupted(url: str) -> None:
    async with open_sessions(url) as before:
        kept, bare, over = await ask(before), await ask(before, user="bob"), await answered(before)
        answer = replace(answer_of("so far", "hm", CALL), transcript=(ORIGIN,))
        await before.checkpoint({kept.run.run_id: answer})
    async with open_sessions(url) as after:
        assert sorted(await after.interrupt_abandoned()) == sorted([kept.run.run_id, bare.run.run_id])
        assert await after.interrupt_abandoned() == []
        run = await after.run("ann", kept.run.run_id)
        failure = RunFailure("interrupted", "the server stopped before the answer was complete")
        assert (run.status, run.error, run.last_seq) == ("failed", failure, SEQ_LIMIT + 2)
        assert run.finished_at is not None
        log = events_of(await after.log(kept.run.run_id))
        assert log == [
            answer.snapshot(kept.run.run_id, SEQ_LIMIT + 1),
            Error(
                run_id=kept.run.run_id,
                seq=SEQ_LIMIT + 2,
                code="interrupted",
                message="the server stopped before the answer was complete",
                retryable=True,
            ),
        ]
        detail = await after.session("ann", kept.run.session_id)
        assert (detail.active_run_id, detail.messages[-1].status) == (None, "partial")
        assert detail.messages[-1].finish_reason is None
        assert detail.messages[-1].content == "so far"
        assert (await after.run("ann", over.run.run_id)).status == "completed"
        assert (await ask(after, session_id=kept.run.session_id)).is_new


@pytest.mark.parametrize(
    "answer",
    [
        answer_of("ü\n" * 60_000, "hm" * 30_000, CALL, replace(CALL, call_id="call_2", result=None, is_error=None)),
        answer_of("", "", *(replace(CALL, call_id=f"c{n}", result="x" * 30_000) for n in range(4))),
    ],
)
async def test_an_interrupted_answer_of_any_size_is_read_in_events_of_the_allowed_size(
    sessions: Sessions, url: str, answer: Answer
) -> None:
    async with open_sessions(url) as dead:
        begun = await ask(dead)
        await dead.checkpoint({begun.run.run_id: answer})
    assert await sessions.interrupt_abandoned() == [begun.run.run_id]
    log = events_of(await sessions.log(begun.run.run_id))
    assert max(len(record(each).data) for each in log) <= EVENT_BYTES_LIMIT
    assert [each.seq for each in log] == list(range(SEQ_LIMIT + 1, SEQ_LIMIT + len(log) + 1))
    assert (type(log[0]), type(log[-1])) == (Snapshot, Error)
    before = answer_of("what a reader had before").snapshot(begun.run.run_id, SEQ_LIMIT)
    folded = fold([before, *log])
    assert folded.parts == interrupted(answer, lambda _: INTERRUPTED_CALL).parts


KILLED = """
import os, signal, sys, anyio
from chatserver.answer import Answer, fold
from chatserver.commands import ChatRequest
from chatserver.sessions import open_sessions

async def main():
    async with open_sessions(sys.argv[1]) as sessions:
        await sessions.begin("ann", ChatRequest(message="Hello", session_id="s"), "run")
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


async def test_a_process_that_dies_right_after_a_beginning_has_lost_nothing(url: str) -> None:
    with fail_after(SECONDS):
        process = await anyio.run_process([sys.executable, "-c", KILLED, url], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    async with open_sessions(url) as sessions:
        assert await sessions.interrupt_abandoned() == ["run"]
        assert await texts(sessions, "s") == ["Hello", ""]


# Reading


async def test_what_is_unknown_malformed_or_foreign_looks_the_same(sessions: Sessions) -> None:
    begun = await ask(sessions, session_id="s")
    told = set()
    for user, session_id, run_id in [
        ("bob", "s", begun.run.run_id),
        ("ann", "unknown", "unknown"),
        ("ann", "", ""),
        ("ann", "a\0b\ud800", "a\0b\ud800"),
    ]:
        for call in (
            sessions.run(user, run_id),
            sessions.session(user, session_id),
            sessions.session(user, session_id, all_branches=True),
            sessions.rename(user, session_id, "Stolen"),
            sessions.delete(user, session_id),
        ):
            with pytest.raises(NotFound) as refused:
                await call
            told.add(refused.value.detail)
    assert len(told) == 1
    assert (await sessions.session("ann", "s")).title == "Hello"


async def test_a_session_is_renamed_and_stays_where_it_is_in_the_list(sessions: Sessions) -> None:
    await answered(sessions, session_id="s")
    before = (await sessions.page("ann", 10, None)).sessions[0]
    renamed = await sessions.rename("ann", "s", "Better")
    assert renamed == msgspec.structs.replace(before, title="Better")
    assert (await sessions.page("ann", 10, None)).sessions == [renamed]


async def test_a_session_is_not_deleted_under_a_run_that_goes_on(sessions: Sessions) -> None:
    begun = await ask(sessions, session_id="s")
    assert await sessions.delete("ann", "s", ["another"]) == begun.run.run_id
    assert (await sessions.session("ann", "s")).active_run_id == begun.run.run_id
    await ended(sessions, begun)
    assert await sessions.delete("ann", "s") is None
    with pytest.raises(NotFound):
        await sessions.session("ann", "s")


async def test_a_deleted_session_is_gone_with_its_messages_and_runs(sessions: Sessions, database: Database) -> None:
    begun = await answered(sessions, session_id="s")
    await answered(sessions, session_id="s", user="bob")
    await sessions.delete("ann", "s")
    with pytest.raises(NotFound):
        await sessions.session("ann", "s")
    with pytest.raises(NotFound):
        await ask(sessions, None, regenerate=begun.user_message_id)
    counts = [await database.read(partial(count, table=name)) for name in ("sessions", "messages", "runs")]
    assert counts == [1, 2, 1]


def count(connection: Connection, table: str) -> int:
    number: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
    return number


async def pages(sessions: Sessions, limit: int) -> list[SessionPage]:
    found = [await sessions.page("ann", limit, None)]
    while found[-1].cursor is not None:
        found.append(await sessions.page("ann", limit, found[-1].cursor))
        assert len(found) < 100, "the pages have no end"
    return found


async def test_the_last_used_session_comes_first(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(f"2030-01-01T00:00:{second:02}.000Z" for second in range(60))
    for module in (begin, end):
        monkeypatch.setattr(module, "timestamp", lambda: next(clock))
    first, second, third = [await ask(sessions, session_id=name) for name in ("one", "two", "three")]
    await ended(sessions, second)
    assert [each.session_id for each in (await sessions.page("ann", 10, None)).sessions] == ["two", "three", "one"]
    await ended(sessions, first)
    await ended(sessions, third)
    page = await sessions.page("ann", 10, None)
    assert [(each.session_id, each.created_at[17:19], each.updated_at[17:19]) for each in page.sessions] == [
        ("three", "02", "05"),
        ("one", "00", "04"),
        ("two", "01", "03"),
    ]
    await ask(sessions, None, regenerate=second.user_message_id)
    assert [
        (each.session_id, each.active_run_id is None) for each in (await sessions.page("ann", 1, None)).sessions
    ] == [("two", False)]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_pages_show_every_session_once_even_with_equal_times(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(begin, "timestamp", lambda: "2030-01-01T00:00:00.000Z")
    ids = ["a", "B", "-", "_", "0", "Z-", "a_"]
    for each in ids:
        await ask(sessions, session_id=each)
    await ask(sessions, session_id="not-hers", user="bob")
    found = await pages(sessions, limit)
    assert sorted(each.session_id for page in found for each in page.sessions) == sorted(ids)
    assert [len(page.sessions) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert len(found) == -(-len(ids) // limit)


async def test_a_user_without_sessions_has_one_empty_page(sessions: Sessions) -> None:
    assert await sessions.page("ann", 10, None) == SessionPage([], None)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "!", "ü", "W10=", "WzEsMl0=", "WyIiLCIiXQ==", "a" * 100_000, "\0", "\ud800", "bnVsbA==", "gICA",
     "WyIyMDMwLTAxLTAxVDAwOjAwOjAwLjAwMFoiLCJhXHUwMDAwIl0="],
)  # fmt: skip
async def test_a_cursor_that_no_page_gave_is_refused(sessions: Sessions, cursor: str) -> None:
    with pytest.raises(BadCursor):
        await sessions.page("ann", 10, cursor)


async def test_a_cursor_fits_into_a_url_and_reads_on_when_its_session_is_gone(sessions: Sessions) -> None:
    for name in ("one", "two", "three"):
        await answered(sessions, session_id=name)
    page = await sessions.page("ann", 1, None)
    assert page.cursor is not None and set(page.cursor) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_="
    )
    await sessions.delete("ann", page.sessions[0].session_id)
    rest = await sessions.page("ann", 10, page.cursor)
    assert len(rest.sessions) == 2


def test_columns_and_fields_have_the_same_names() -> None:
    """All but `content`, which the parts tell."""
    columns = {column.name for column in metadata.tables["messages"].columns}
    assert set(MessageResource.__struct_fields__) - columns == {"content"}


# The database


async def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    def compare(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    assert await database.read(compare) == []


async def test_the_migrations_make_the_rules_that_no_comparison_sees(database: Database) -> None:
    def rules(connection: Connection) -> tuple[object, ...]:
        looking = inspect(connection)
        indexes = {index["name"]: index for index in looking.get_indexes("runs")}
        active = indexes["one_active_run"]["dialect_options"][f"{connection.dialect.name}_where"]
        checks = [check["name"] for check in looking.get_check_constraints("runs")]
        deletes = [looking.get_foreign_keys(table)[0]["options"]["ondelete"] for table in ("messages", "runs")]
        return str(active).strip("()"), checks, deletes

    assert await database.read(rules) == ("finished_at IS NULL", ["ck_runs_finished"], ["CASCADE", "CASCADE"])


async def test_what_was_written_is_there_after_a_restart(url: str) -> None:
    async with open_sessions(url) as sessions:
        begun = await answered(sessions, session_id="s")
        before = await sessions.session("ann", "s")
    for _ in range(2):
        async with open_sessions(url) as sessions:
            assert await sessions.session("ann", "s") == before
            assert await sessions.log(begun.run.run_id) == said("Hi")


async def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    async with open_database(url) as database:
        newer = text("UPDATE alembic_version SET version_num = '9999'")
        await database.write(lambda connection: connection.execute(newer))
    with pytest.raises(SettingsError, match="9999"):
        async with open_sessions(url):
            pass


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:"),
        *("postgresql://127.0.0.1:1/none", "postgresql://127.0.0.1:1/none?connect_timeout=soon"),
        "postgresql://127.0.0.1:1/none?nonsense=1",
    ],
)
async def test_a_url_that_cannot_be_used_is_told_in_a_line(wrong: str) -> None:
    with fail_after(SECONDS), pytest.raises(SettingsError, match=r"^CHATSERVER_DATABASE_URL: .+$"):
        async with open_sessions(wrong):
            pass


async def test_a_url_made_for_other_drivers_is_understood(postgres_url: str) -> None:
    parameters = "sslmode=prefer&channel_binding=prefer&connect_timeout=5"
    async with open_sessions(f"{postgres_url}{'&' if '?' in postgres_url else '?'}{parameters}"):
        pass


async def test_a_file_that_another_process_begins_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its way into WAL, a process holds this lock, and SQLite waits for nobody who holds it."""
    waits: list[float] = []
    with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None, check_same_thread=False)) as other:

        def wait(seconds: float) -> None:
            waits.append(seconds)
            other.execute("COMMIT")

        monkeypatch.setattr("chatserver.sessions.sqlite.sleep", wait)
        other.execute("BEGIN IMMEDIATE")
        async with open_sessions(f"sqlite:///{tmp_path / 'chat.db'}"):
            assert len(waits) == 1


async def test_a_file_that_cannot_be_used_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database " * 1000)
    for file in (tmp_path / "text", tmp_path / "missing" / "chat.db", tmp_path):
        with pytest.raises(SettingsError, match=r"^CHATSERVER_DATABASE_URL: cannot be opened: .+$"):
            async with open_sessions(f"sqlite:///{file}"):
                pass


async def test_sqlite_stays_the_same_file_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_sessions("sqlite:///chat.db") as sessions:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        async with create_task_group() as tasks:  # enough at once for new connections
            for _ in range(4):
                tasks.start_soon(sessions.page, "ann", 10, None)
    assert (tmp_path / "chat.db").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("is_writer", [True, False])
async def test_every_sqlite_connection_is_durable_and_holds_references(sqlite_url: str, is_writer: bool) -> None:
    def pragmas(connection: Connection) -> dict[str, Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names}

    async with open_database(sqlite_url) as database:
        found = await (database.write if is_writer else database.read)(pragmas)
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5_000}


async def test_on_sqlite_readers_do_not_wait_for_a_writer_and_writers_do(sqlite_url: str, tmp_path: Path) -> None:
    async with open_sessions(sqlite_url) as sessions:
        begun = await ask(sessions, session_id="s")
        with closing(sqlite3.connect(tmp_path / "chat.db", isolation_level=None)) as other, fail_after(SECONDS):
            other.execute("BEGIN IMMEDIATE")
            other.execute("UPDATE sessions SET title = 'uncommitted'")
            async with create_task_group() as tasks:
                tasks.start_soon(ended, sessions, begun)
                for _ in range(20):
                    assert (await sessions.session("ann", "s")).title == "Hello"
                    assert len((await sessions.page("ann", 10, None)).sessions) == 1
                assert (await sessions.run("ann", begun.run.run_id)).status == "running"
                other.execute("COMMIT")
        detail = await sessions.session("ann", "s")
        assert (detail.title, detail.active_run_id) == ("uncommitted", None)


async def test_on_sqlite_what_waits_shares_a_commit_and_one_that_fails_is_undone_alone(sqlite_url: str) -> None:
    commits: list[Connection] = []
    count = commits.append
    gate, has_begun = threading.Event(), anyio.Event()
    loop = asyncio.get_running_loop()
    told: dict[str, object] = {}

    def wait(_: Connection) -> None:
        loop.call_soon_threadsafe(has_begun.set)
        assert gate.wait(SECONDS)

    async def write(name: str, fails: bool) -> None:
        def work(connection: Connection) -> str:
            connection.execute(insert(spendings).values(user_id=name, day="2026-11-28", tokens=1))
            if fails:
                raise LookupError(name)
            return name

        try:
            told[name] = await opened.write(work)
        except LookupError as error:
            told[name] = error.args[0] + " failed"

    async with open_database(sqlite_url) as opened, create_task_group() as tasks:
        with fail_after(SECONDS):
            tasks.start_soon(opened.write, wait)
            await has_begun.wait()
            for name, fails in {"a": False, "b": True, "c": False}.items():
                tasks.start_soon(write, name, fails)
            await wait_all_tasks_blocked()
            event.listen(Engine, "commit", count)
            try:
                gate.set()
                while len(told) < 3:
                    await anyio.lowlevel.checkpoint()
            finally:
                event.remove(Engine, "commit", count)
            users = await opened.read(lambda c: c.execute(select(spendings.c.user_id)).scalars().all())
    assert told == {"a": "a", "b": "b failed", "c": "c"}
    assert (sorted(users), len(commits)) == (["a", "c"], 2)


async def test_on_sqlite_what_a_full_disk_refuses_takes_nothing_with_it(sqlite_url: str) -> None:
    gate, has_begun = threading.Event(), anyio.Event()
    loop = asyncio.get_running_loop()
    told: dict[str, bool] = {}

    def wait(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 20}")
        loop.call_soon_threadsafe(has_begun.set)
        assert gate.wait(SECONDS)

    async def write(name: str, size: int) -> None:
        values = {"user_id": name, "session_id": "s", "title": "x" * size, "created_at": "", "updated_at": ""}
        try:
            await opened.write(lambda c: c.execute(insert(chats).values(values)).rowcount)
            told[name] = True
        except DBAPIError:
            told[name] = False

    async with open_database(sqlite_url) as opened:
        with fail_after(SECONDS):
            async with create_task_group() as tasks:
                tasks.start_soon(opened.write, wait)
                await has_begun.wait()
                for name, size in {"a": 10, "b": 1_000_000, "c": 10}.items():
                    tasks.start_soon(write, name, size)
                await wait_all_tasks_blocked()
                gate.set()
            users = await opened.read(lambda c: c.execute(select(chats.c.user_id)).scalars().all())
    assert (told, sorted(users)) == ({"a": True, "b": False, "c": True}, ["a", "c"])


async def test_whoever_is_cancelled_knows_of_every_run_that_began(sessions: Sessions) -> None:
    """Cancelled at any moment, a run is there whole and returned, or it is not there at all."""
    for turns in range(30):
        known: list[str] = []

        async def start(session_id: str = f"s{turns}", known: list[str] = known) -> None:
            known.append((await ask(sessions, session_id=session_id)).run.run_id)

        with fail_after(SECONDS):
            async with create_task_group() as tasks:
                tasks.start_soon(start)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        try:
            assert [(await sessions.session("ann", f"s{turns}")).active_run_id] == known
        except NotFound:
            assert known == []
    assert (await answered(sessions)).is_new


async def test_a_cancellation_during_the_commit_changes_nothing(sessions: Sessions) -> None:
    known: list[str] = []

    async def start() -> None:
        known.append((await ask(sessions, session_id="s")).run.run_id)

    loop, home = asyncio.get_running_loop(), threading.get_ident()

    def cancel(_: Connection) -> None:
        if threading.get_ident() == home:  # PostgreSQL
            return tasks.cancel_scope.cancel()
        cancelled = threading.Event()
        loop.call_soon_threadsafe(tasks.cancel_scope.cancel)
        loop.call_soon_threadsafe(cancelled.set)
        assert cancelled.wait(SECONDS)

    event.listen(Engine, "commit", cancel)
    try:
        with fail_after(SECONDS):
            async with create_task_group() as tasks:
                tasks.start_soon(start)
    finally:
        event.remove(Engine, "commit", cancel)
    assert tasks.cancel_scope.cancel_called
    assert [(await sessions.session("ann", "s")).active_run_id] == known


async def test_no_text_is_logged_nor_told_by_errors(
    sessions: Sessions, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    begun = await answered(sessions, "secret question", "secret answer", session_id="s", idempotency_key="secret key")
    await sessions.session("ann", "s")
    with pytest.raises(IntegrityError) as taken:
        await sessions.begin("ann", ChatRequest(message="secret question"), begun.run.run_id)
    with pytest.raises(DBAPIError) as wrong:
        await database.write(lambda c: c.execute(text("INSERT INTO nowhere VALUES (:v)"), {"v": "secret value"}))
    assert "secret" not in caplog.text + str(taken.value) + str(wrong.value)
