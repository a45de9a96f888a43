"""Databases that are locked for long, full, read-only or gone: refused in words, one line in the log, nothing lost."""

import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

import anyio
import pytest
from sqlalchemy import Connection, Engine, event

from chatserver.errors import Unavailable
from chatserver.events import Done as EndedWell
from chatserver.events import Error, Event, Record
from chatserver.log.memory import MemoryLog
from chatserver.runs import ends
from chatserver.sessions import Sessions, database, end, open_sessions, sqlite
from tests.clients import RefusedError, Transport, documents_of, get_run, request, text_of
from tests.conftest import Postgres
from tests.databases import answered
from tests.fake_upstream import Done, Gate, finish, role, say, token
from tests.life import answer_in, end_of, in_time
from tests.merging import unmerged
from tests.program import until
from tests.proving import Stage, check_once, each_transport, staged

pytestmark = pytest.mark.anyio

LONG = "x" * 30_000
"""A message that needs pages of its own."""

Trouble: TypeAlias = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another program holds the write lock, as a backup does."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def removed(file: Path) -> Iterator[None]:
    elsewhere = file.with_name("elsewhere.db")
    file.rename(elsewhere)
    yield
    elsewhere.rename(file)


@contextmanager
def replaced(file: Path) -> Iterator[None]:
    """Somebody puts another database in its place, and takes it away again."""
    with removed(file):
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE something_else (x)")
        yield
        file.unlink()


PRAGMAS: set[str] = set()
"""What every transaction begins with."""


@contextmanager
def set_to(setting: str, usual: str, _: Path) -> Iterator[None]:
    PRAGMAS.add(setting)
    yield
    PRAGMAS.remove(setting)
    PRAGMAS.add(usual)


full = partial(set_to, "max_page_count = 1", "max_page_count = 1000000")
read_only = partial(set_to, "query_only = 1", "query_only = 0")

TROUBLES = {"locked": locked, "removed": removed, "replaced": replaced, "full": full, "read-only": read_only}
each_trouble = pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sqlite, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(ends, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr("chatserver.sessions.PROBE_SECONDS", 0.3)

    def begin(connection: Connection) -> None:
        for each in PRAGMAS:
            connection.exec_driver_sql(f"PRAGMA {each}")

    event.listen(Engine, "begin", begin)
    yield
    event.remove(Engine, "begin", begin)
    PRAGMAS.clear()


@each_trouble
async def test_a_database_in_trouble_is_unavailable_and_one_line_in_the_log(
    tmp_path: Path, trouble: Trouble, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "chat.db"
    async with open_sessions(f"sqlite:///{file}") as sessions:
        before = await answered(sessions, "Before")
        with trouble(file):
            for _ in range(3):
                with pytest.raises(Unavailable) as refused:
                    await answered(sessions, LONG)
                assert refused.value.retry_after
            assert not await sessions.is_writable() or trouble is full
            assert len(caplog.records) == (2 if trouble is full else 1)  # A full one takes what is small.
            assert (caplog.records[0].levelno, caplog.records[0].exc_info) == (logging.ERROR, None)
        after = await answered(sessions, LONG)
        found: list[str] = []

        async def look(run_id: str) -> None:
            found.append((await sessions.run("ann", run_id)).status)

        async with anyio.create_task_group() as tasks:
            for run_id in (before.run.run_id, after.run.run_id):
                tasks.start_soon(look, run_id)
        assert found == ["completed"] * 2
        assert [each.levelno for each in caplog.records] == [logging.ERROR, logging.WARNING]


@pytest.fixture(params=["sqlite", "postgres"])
async def stage_and_trouble(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[Stage, Callable[[], AbstractContextManager[None]]]]:
    """A server, and what befalls its database."""
    if request.param == "sqlite":
        async with staged(directory=tmp_path) as stage:
            yield stage, partial(locked, tmp_path / "chat.db")
        return
    postgres: Postgres = request.getfixturevalue("postgres")

    @contextmanager
    def stopped() -> Iterator[None]:
        postgres.stop()
        yield
        postgres.start()

    async with staged(database_url=request.getfixturevalue("postgres_url")) as stage:
        yield stage, stopped


async def until_ready(stage: Stage, status: int) -> dict[str, Any]:
    while (answer := await request(stage.server, "GET", "/readyz")).status != status:  # noqa: ASYNC110 - nobody tells
        await anyio.sleep(0.05)
    return dict(answer.json)


@each_transport
@in_time
async def test_what_goes_on_while_the_database_is_in_trouble_is_stored_when_it_is_back(
    stage_and_trouble: tuple[Stage, Callable[[], AbstractContextManager[None]]],
    transport: Transport,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage, trouble = stage_and_trouble
    gates = [anyio.Event(), anyio.Event()]
    readings = []
    for number, gate in enumerate(gates):
        stage.upstream.script(role(), token("So "), Gate(gate), token("much"), finish(), Done())
        readings.append(await transport.start(stage.server, {"message": "Hi", "session_id": f"s{number}"}))
        await readings[-1].take(2)
    with trouble():
        for _ in range(2):
            with pytest.raises(RefusedError) as refused:
                await transport.start(stage.server, {"message": "And I?", "session_id": "new"})
            assert (refused.value.status, refused.value.code) == (503, "unavailable")
        problem = await request(stage.server, "POST", "/chat/runs", {"message": "And I?"})
        assert (problem.status, problem.headers["retry-after"]) == (503, "5")
        assert (await until_ready(stage, 503))["code"] == "unavailable"
        assert (await request(stage.server, "GET", "/livez")).status == 200
        gates[0].set()
        last = json.loads((await documents_of(readings[0]))[-1])
        assert (last["type"], last["code"]) == ("error", "internal")
        assert "stored" in last["message"]
    await until_ready(stage, 200)
    gates[1].set()
    assert json.loads((await documents_of(readings[1]))[-1])["type"] == "done"
    await end_of(stage, readings[0].run_id)
    for reading, status in zip(readings, ["partial", "complete"], strict=True):
        answer = await answer_in(stage, reading.run_id)
        assert (answer["content"], answer["status"]) == ("So much", status)
    stage.upstream.script(*say("Yes"))
    body = {"message": "Again?", "session_id": "s0"}
    assert text_of(await documents_of(await transport.start(stage.server, body))) == "Yes"
    assert [each for each in caplog.records if each.exc_info] == []
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


@each_transport
@in_time
async def test_a_database_that_is_back_soon_costs_no_answer(
    stage_and_trouble: tuple[Stage, Callable[[], AbstractContextManager[None]]],
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, trouble = stage_and_trouble
    gate, is_refused, finished = anyio.Event(), anyio.Event(), Sessions.finish

    async def watched(self: Sessions, *args: Any, **named: Any) -> None:
        try:
            await finished(self, *args, **named)
        except Unavailable:
            is_refused.set()
            raise

    monkeypatch.setattr(ends, "WAIT_SECONDS", 60.0)
    monkeypatch.setattr(Sessions, "finish", watched)
    stage.upstream.script(role(), token("So "), Gate(gate), token("much"), finish(), Done())
    reading = await transport.start(stage.server, {"message": "Hi"})
    await reading.take(2)
    with trouble():
        gate.set()
        await is_refused.wait()
    documents = await documents_of(reading)
    assert (text_of(documents), json.loads(documents[-1])["type"]) == ("much", "done")
    run, answer = await get_run(stage.server, reading.run_id), await answer_in(stage, reading.run_id)
    assert (run["status"], answer["status"], answer["content"]) == ("completed", "complete", "So much")


@contextmanager
def lost_at_the_commit() -> Iterator[None]:
    """The connection is lost at the commit of a run's end: the end is kept, and whoever wrote it hears of an error."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (sqlite.Sqlite, database._Postgres):

            async def write(self: Any, work: Any, original: Any = kind.write) -> Any:
                result = await original(self, work)
                if isinstance(work, partial) and work.func is end.finish:
                    raise OSError("the connection was lost")
                return result

            patch.setattr(kind, "write", write)
        yield


@each_transport
@in_time
async def test_an_end_whose_commit_nobody_heard_of_is_told_as_it_is_kept(
    stage_and_trouble: tuple[Stage, Callable[[], AbstractContextManager[None]]], transport: Transport
) -> None:
    stage, _ = stage_and_trouble
    stage.upstream.script(*say("So much"))
    with lost_at_the_commit():
        reading = await transport.start(stage.server, {"message": "Hi"})
        last = json.loads((await documents_of(reading))[-1])
    assert (await get_run(stage.server, reading.run_id))["status"] == "completed"
    assert (last["type"], (await answer_in(stage, reading.run_id))["status"]) == ("done", "complete")


@each_transport
@in_time
async def test_a_log_that_was_not_told_its_end_is_stored_with_it(transport: Transport, tmp_path: Path) -> None:
    """The log refuses its end while the database is gone: what is stored later has one, for which readers wait."""
    finished, appended = Sessions.finish, MemoryLog.append
    refusals = [Unavailable()]

    async def finish_later(self: Sessions, *args: Any, **named: Any) -> None:
        if refusals:
            raise refusals.pop()
        await finished(self, *args, **named)

    def append_no_end(self: MemoryLog, draft: Event) -> Record:
        if isinstance(draft, (EndedWell, Error)):
            raise RuntimeError("no end")
        return appended(self, draft)

    async with staged(directory=tmp_path) as stage:
        with patch.object(Sessions, "finish", finish_later), patch.object(MemoryLog, "append", append_no_end):
            stage.upstream.script(*say("Well", 2))
            async with await transport.start(stage.server, {"message": "Hi", "on_disconnect": "continue"}) as reading:
                before = await reading.take(3)
            await until(lambda: _is_over(stage, reading.run_id))
    async with staged(directory=tmp_path) as stage:
        documents = await documents_of(await transport.attach(stage.server, reading.run_id, 0))
        check_once(documents)
        assert unmerged(documents[:-1], before) == before and json.loads(documents[-1])["code"] == "internal"
        assert (await get_run(stage.server, reading.run_id))["last_seq"] == len(before) + 1


async def _is_over(stage: Stage, run_id: str) -> bool:
    return (await get_run(stage.server, run_id))["finished_at"] is not None
