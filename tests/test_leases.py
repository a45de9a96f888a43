"""Several processes on one database: each ends its own runs, and those of others only when these are gone."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Set
from functools import partial, wraps
from math import inf
from pathlib import Path
from time import time
from typing import Any, ParamSpec, cast

import anyio
import pytest
from anyio import fail_after
from sqlalchemy import Connection

from chatserver.commands import ChatRequest
from chatserver.endings import INTERRUPTED
from chatserver.errors import NotFound, RunActive, RunLost, Unavailable
from chatserver.events import Done as DoneEvent
from chatserver.events import Terminal, Usage
from chatserver.parts import ToolCallPart
from chatserver.resources import timestamp
from chatserver.sessions import Progress, Sessions, edit, end, leases, locks, open_sessions
from chatserver.sessions.database import Database
from chatserver.sessions.leases import LOOKS, Lease
from chatserver.sessions.witness import DatabaseAlone, Left
from chatserver.telemetry.metrics import Metrics
from chatserver.waiting import Wait, WaitingCall
from tests.clients import (
    SSE,
    Reading,
    Transport,
    documents_of,
    get_run,
    is_terminal,
    request,
    text_of,
    when_available,
)
from tests.databases import answer_of, ask, ended, events_of, said, texts
from tests.fake_upstream import Done, FakeUpstream, Gate, Hang, finish, role, token
from tests.life import in_time
from tests.live import ServerProcess
from tests.proving import Stage, each_transport, staged
from tests.scrapes import Scrape, scrape, until

pytestmark = pytest.mark.anyio

SECONDS = 30
ENDED = "chatserver_runs_ended_total"

P = ParamSpec("P")


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself: the tests look."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)


@pytest.fixture
async def other(url: str) -> AsyncIterator[Sessions]:
    """The sessions as another process has them open."""
    async with open_sessions(url) as opened:
        yield opened


async def look(sessions: Sessions) -> list[str]:
    """What a process does every now and then; what it has ended."""
    await sessions._lease._renew()
    return await sessions.interrupt_abandoned()


async def test_a_run_is_left_alone_while_its_process_renews_its_lease(sessions: Sessions, other: Sessions) -> None:
    begun = await ask(sessions)
    for _ in range(3 * LOOKS):
        assert await look(other) == []
        assert await look(sessions) == []
    await ended(sessions, begun)
    assert (await other.run("ann", begun.run.run_id)).status == "completed"


async def test_a_run_is_ended_when_its_process_has_not_renewed_its_lease_for_long(
    sessions: Sessions, other: Sessions
) -> None:
    begun, own = await ask(sessions, session_id="s"), await ask(other, session_id="t")
    for _ in range(LOOKS - 1):  # The first one was when it opened the database.
        assert await look(other) == []
    with pytest.raises(RunActive):
        await ask(other, session_id="s")
    assert await look(other) == [begun.run.run_id]
    assert await look(other) == []
    assert (await ask(other, session_id="s")).is_new
    with pytest.raises(RunLost, match="away"):
        await ended(sessions, begun)
    await ended(other, own)


async def test_a_process_that_was_taken_for_dead_hears_of_it_and_goes_on(sessions: Sessions, other: Sessions) -> None:
    await ask(sessions)
    for _ in range(LOOKS + 1):
        await look(other)
    assert await sessions._lease._renew() is False
    assert await sessions._lease._renew() is True
    begun = await ask(sessions)
    for _ in range(LOOKS):
        assert await look(other) == []
    assert await look(sessions) == await look(other) == []
    await ended(sessions, begun)


async def test_what_a_process_has_left_is_its_own_when_it_registers_again(sessions: Sessions, other: Sessions) -> None:
    """It was taken for dead, and comes back before its run is ended."""
    begun = await ask(sessions)

    class Slow(DatabaseAlone):
        async def take(self, run_ids: Sequence[str], owner: str | None) -> Mapping[str, Left]:
            assert await sessions._lease._renew() is False
            return await super().take(run_ids, owner)

    other._lease._witness = Slow()
    for _ in range(LOOKS):
        await look(other)
    assert await sessions.unfinished() == [begun.run.run_id]
    await ended(sessions, begun)


async def test_nobody_registers_while_what_was_left_is_ended(sessions: Sessions, other: Sessions) -> None:
    """Who registers then finds it ended: none of it goes on, and ends again."""
    begun, order, owner = await ask(sessions), list[str](), sessions._lease.owner
    is_ending, loop = anyio.Event(), asyncio.get_running_loop()
    await sessions._database.write(partial(leases._forget, owner=owner))

    def interrupt(connection: Connection) -> None:
        left = {begun.run.run_id: Left()}
        leases._interrupt_unregistered(connection, left, owner, other._lease.owner)
        loop.call_soon_threadsafe(is_ending.set)
        if connection.dialect.name == "postgresql":  # Others go on meanwhile, if nothing holds them up.
            connection.exec_driver_sql("SELECT pg_sleep(0.3)")
        order.append("ended")  # Within the transaction: behind its end, the order of replies is anybody's.

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other._database.write, interrupt)
        await is_ending.wait()
        await sessions._lease._renew()
        order.append("registered")
    assert (order, await sessions.unfinished()) == (["ended", "registered"], [])


async def test_a_process_that_was_taken_for_dead_asks_until_it_knows_what_it_has_lost(
    sessions: Sessions, other: Sessions
) -> None:
    told: list[str] = []

    class Alarmed(DatabaseAlone):
        def mistaken(self) -> None:
            told.append("witness")

    async def lost() -> None:
        told.append("lost")
        if len(told) < 3:
            raise Unavailable

    sessions._lease._witness = Alarmed()
    sessions.on_loss(lost)
    for _ in range(LOOKS + 1):
        await look(other)
    with pytest.raises(Unavailable):
        await sessions._lease._renew_and_tell()
    for _ in range(2):
        await sessions._lease._renew_and_tell()
    assert told == ["witness", "lost"] * 2


async def test_whoever_did_not_reach_the_database_begins_to_count_anew(
    sessions: Sessions, other: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, failed = await ask(sessions), anyio.Event()
    for _ in range(LOOKS - 1):
        await look(other)

    async def fail(self: Lease) -> bool:
        failed.set()
        raise Unavailable

    with monkeypatch.context() as patched, fail_after(SECONDS):
        patched.setattr(leases, "RENEW_SECONDS", 0.0)
        patched.setattr(Lease, "_renew", fail)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other._lease._renew_forever)
            await failed.wait()
            tasks.cancel_scope.cancel()
    for _ in range(LOOKS):
        assert await look(other) == []
    assert await look(other) == [begun.run.run_id]


async def test_a_failure_that_nobody_foresaw_does_not_end_the_lease(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed, renewed, renew = anyio.Event(), anyio.Event(), Lease._renew

    async def fail(self: Lease) -> bool:
        if not failed.is_set():
            failed.set()
            raise LookupError
        renewed.set()
        return await renew(self)

    with monkeypatch.context() as patched, fail_after(SECONDS):
        patched.setattr(leases, "RENEW_SECONDS", 0.0)
        patched.setattr(Lease, "_renew", fail)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sessions._lease._renew_forever)
            await renewed.wait()
            tasks.cancel_scope.cancel()
    assert "could not be renewed" in caplog.text


@pytest.mark.parametrize("how", ["ended", "ended here", "deleted", "deleted at once"])
async def test_of_those_that_end_what_a_process_has_left_the_first_one_counts(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """On PostgreSQL others go on between two statements of a transaction; a failure here would end the lease."""
    lost, left = await ask(sessions, session_id="s"), await ask(sessions, session_id="t")
    others, owner = [lost.run.run_id], sessions._lease.owner

    def meanwhile(connection: Connection, run_id: str) -> None:
        if run_id not in others:
            return
        others.remove(run_id)
        if how.startswith("ended"):
            progress = Progress(answer_of("So far"), said("So far"))
            end.finish(connection, run_id, INTERRUPTED, progress, owner if how == "ended here" else "another")
        else:
            edit.remove(connection, "ann", "s", [run_id])

    def interrupt(connection: Connection) -> list[Terminal]:
        class Statements:
            """The connection of a transaction, with one of another process in between."""

            def __getattr__(self, name: str) -> Any:
                return getattr(connection, name)

            def execute(self, statement: Any, parameters: Any = None) -> Any:
                if statement is not end._LEFT:
                    return connection.execute(statement, parameters)
                if how == "deleted at once":
                    meanwhile(connection, parameters["run"])
                found = connection.execute(statement, parameters).freeze()
                meanwhile(connection, parameters["run"])
                return found()

        run_ids = [lost.run.run_id, left.run.run_id]
        return end.interrupt(cast(Connection, Statements()), dict.fromkeys(run_ids, Left()), owner, owner)

    assert await sessions._database.write(interrupt) == [INTERRUPTED]
    assert others == []
    assert (await sessions.run("ann", left.run.run_id)).status == "failed"
    if how.startswith("ended"):
        assert await texts(sessions, "s") == ["Hello", "So far"]
    else:
        with pytest.raises(NotFound):
            await sessions.run("ann", lost.run.run_id)


async def test_nobody_begins_a_run_who_may_be_taken_for_dead(sessions: Sessions) -> None:
    sessions._lease._renewed_at -= LOOKS * leases.RENEW_SECONDS + 1
    with pytest.raises(Unavailable):
        await ask(sessions)
    await sessions._lease._renew()
    assert (await ask(sessions)).is_new


async def test_the_runs_of_a_process_that_has_died_on_this_machine_end_at_once(
    sessions: Sessions, other: Sessions, database: Database
) -> None:
    begun = await ask(sessions)
    lock = database.lock_file(sessions._lease.owner)
    assert lock.exists()
    sessions._lease._lock.release()
    assert await other.interrupt_abandoned() == [begun.run.run_id]
    assert not lock.exists()


async def test_what_a_dead_process_had_told_others_is_kept_beside_what_it_had_stored(
    sessions: Sessions, other: Sessions
) -> None:
    """The longer one counts: a checkpoint may be older than what was told, or what was told may be lost."""
    heard = {"s": "So far and no further", "t": "So"}
    begun = {each: await ask(sessions, session_id=each) for each in heard}
    await sessions.checkpoint({run.run.run_id: answer_of("So far") for run in begun.values()})
    answers = {run.run.run_id: answer_of(heard[each]) for each, run in begun.items()}
    told: list[str] = []

    class Heard(DatabaseAlone):
        async def take(self, run_ids: Sequence[str], owner: str | None) -> Mapping[str, Left]:
            return {run_id: Left(answers[run_id]) for run_id in run_ids}

        async def ended(self, run_ids: Iterable[str]) -> None:
            assert all([(await other.run("ann", run_id)).finished_at for run_id in run_ids])
            told.extend(run_ids)

    other._lease._witness = Heard()
    sessions._lease._lock.release()
    assert sorted(await other.interrupt_abandoned()) == sorted(told) == sorted(answers)
    assert [await texts(other, each) for each in heard] == [["Hello", "So far and no further"], ["Hello", "So far"]]


async def test_a_run_ends_as_cancelled_that_its_user_had_cancelled(sessions: Sessions, other: Sessions) -> None:
    """Also one that waits: nobody else would ever end it."""
    going, waiting = [await ask(sessions, session_id=each) for each in "st"]
    await sessions.checkpoint({going.run.run_id: answer_of("So far")})
    call = ToolCallPart(call_id="c", tool="book", args={}, needs_approval=True)
    progress = Progress(answer_of("Well", "", call), said("Well"), Usage(5, 6))
    wait = Wait(ChatRequest(), {"c": WaitingCall(timestamp())})
    await sessions.waits.store(waiting.run.run_id, wait, progress, True, inf)

    class Told(DatabaseAlone):
        async def take(self, run_ids: Sequence[str], owner: str | None) -> Mapping[str, Left]:
            return dict.fromkeys(run_ids, Left(is_cancelled=True))

    other._lease._witness = Told()
    other._lease._observer = metrics = Metrics(())
    sessions._lease._lock.release()
    spent = await other.spent_on("ann", timestamp()[:10])
    assert len(await other.interrupt_abandoned()) == 2
    for begun, usage in ((going, Usage(0, 2, estimated=True)), (waiting, Usage(5, 6))):
        run = await other.run("ann", begun.run.run_id)
        assert (run.status, run.usage, run.error) == ("cancelled", usage, None)
        end = events_of(await other.log(run.run_id))[-1]
        assert isinstance(end, DoneEvent)
        assert (end.finish_reason, end.usage, end.message_id) == ("cancelled", usage, run.message_id)
        (_, message) = (await other.session("ann", run.session_id)).messages
        assert (message.status, message.finish_reason) == ("partial", "cancelled")
    assert await other.spent_on("ann", timestamp()[:10]) == spent
    assert Scrape(metrics.scrape("text/plain")[0].decode())(ENDED, reason="cancelled") == 2


async def test_a_process_is_alive_whose_witness_says_so(sessions: Sessions, other: Sessions) -> None:
    begun = await ask(sessions)

    class Living(DatabaseAlone):
        async def gone(
            self, owners: Set[str | None], silent: Set[str | None], dead: Set[str | None]
        ) -> Set[str | None]:
            assert sessions._lease.owner in owners & dead
            return set()

    other._lease._witness = Living()
    sessions._lease._lock.release()
    assert await other.interrupt_abandoned() == []
    await ended(sessions, begun)


async def test_a_run_that_cannot_be_taken_over_is_left_to_its_owner(sessions: Sessions, other: Sessions) -> None:
    begun = [await ask(sessions, session_id=each) for each in "st"]
    mine, another = (each.run.run_id for each in begun)

    class Back(DatabaseAlone):
        async def take(self, run_ids: Sequence[str], owner: str | None) -> Mapping[str, Left]:
            return {run_id: Left() for run_id in run_ids if run_id == mine}

    other._lease._witness = Back()
    sessions._lease._lock.release()
    assert await other.interrupt_abandoned() == [mine]
    assert (await other.run("ann", another)).finished_at is None


async def test_what_killed_processes_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    async with open_sessions(url) as sessions:
        living = sessions._lease._database.lock_file(sessions._lease.owner)
        old, young, other = (living.with_name(name) for name in ("x.db-old.lock", "x.db-young.lock", "y.db-old.lock"))
        for path in (old, young, other):
            path.touch()
        for path in (old, other, living):
            os.utime(path, (time() - locks.LOCK_SECONDS - 60,) * 2)
        async with open_sessions(url):
            assert [path.exists() for path in (living, old, young, other)] == [True, False, True, True]


async def test_a_lock_that_nobody_can_take_proves_nothing(
    sessions: Sessions, other: Sessions, database: Database
) -> None:
    """As for a process on another machine, or where files cannot be locked."""
    await ask(sessions)
    database.lock_file(sessions._lease.owner).unlink()
    sessions._lease._lock.release()
    assert await look(other) == []


async def test_a_clean_stop_gives_all_runs_up_and_leaves_no_file(
    sessions: Sessions, database: Database, url: str
) -> None:
    async with open_sessions(url) as before:
        begun = await ask(before)
        lock = database.lock_file(before._lease.owner)
    assert not lock.exists()
    assert await sessions.interrupt_abandoned() == [begun.run.run_id]


async def test_a_run_of_before_there_were_leases_is_ended(sessions: Sessions, database: Database) -> None:
    begun = await ask(sessions)
    await database.write(lambda connection: connection.exec_driver_sql("UPDATE runs SET owner = NULL").rowcount)
    assert await sessions.interrupt_abandoned() == [begun.run.run_id]


# Servers


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        yield stage


@each_transport
@pytest.mark.parametrize("how", ["taken for dead", "deleted"])
@in_time
async def test_a_run_that_another_process_has_ended_never_says_done(
    stage: Stage, transport: Transport, how: str
) -> None:
    gate = anyio.Event()
    stage.upstream.script(role(), token("So "), token("far"), Gate(gate), finish(), Done())
    reading = await transport.start(stage.server, {"message": "Go on", "session_id": f"lost-{transport}-{how[:5]}"})
    documents = await reading.take(3)
    session_id = json.loads(documents[0])["session_id"]
    counted = (await scrape(stage.server))(ENDED, reason="interrupted")
    metrics = Metrics(())
    async with open_sessions(stage.server.settings.database_url, observer=metrics) as other:
        if how == "deleted":
            await other.delete("local", session_id, [reading.run_id])
        else:
            for _ in range(LOOKS + 2):
                await look(other)
        gate.set()
        documents = [*documents, *await documents_of(reading)]
    assert is_terminal(documents[-1])
    end = json.loads(documents[-1])
    assert (end["type"], end["code"]) == ("error", "interrupted")
    assert ("deleted" if how == "deleted" else "away") in end["message"]
    here = (await scrape(stage.server))(ENDED, reason="interrupted") - counted
    there = Scrape(metrics.scrape("text/plain")[0].decode())(ENDED, reason="interrupted")
    assert (here, there) == ((1, 0) if how == "deleted" else (0, 1)), "whoever has stored the end counts it"


@each_transport
@in_time
async def test_a_process_that_was_taken_for_dead_goes_on_with_what_nobody_has_ended(
    stage: Stage, transport: Transport
) -> None:
    gates = [anyio.Event(), anyio.Event()]
    for gate in gates:
        stage.upstream.script(role(), token("So "), Gate(gate), token("far"), finish(), Done())
    sessions = stage.server.runs._sessions
    lost = await transport.start(stage.server, {"message": "Go on"})
    await lost.take(2)
    async with open_sessions(stage.server.settings.database_url) as other:
        for _ in range(LOOKS + 2):
            await look(other)
        begun = await transport.start(stage.server, {"message": "Go on"})
        await begun.take(2)
        await sessions._lease._renew_and_tell()
        assert json.loads((await documents_of(lost))[-1])["code"] == "interrupted"
        gates[1].set()
        rest = await documents_of(begun)
    assert (text_of(rest), json.loads(rest[-1])["type"]) == ("far", "done")


def with_processes(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """A test that starts several programs, which takes long on a machine that does much else."""

    @wraps(test)
    async def timed(*args: P.args, **kwargs: P.kwargs) -> None:
        with fail_after(100):
            await test(*args, **kwargs)

    return timed


def two_servers(
    upstream: FakeUpstream, folder: Path, url: str, start: Sequence[str] = ("-m", "chatserver")
) -> list[ServerProcess]:
    """Two processes on one database."""
    return [ServerProcess(upstream.url, folder, start=start, is_forked=True, database_url=url) for _ in range(2)]


ASKED = {"message": "Go on", "session_id": "s", "on_disconnect": "continue"}


@with_processes
async def test_a_server_that_starts_beside_another_leaves_its_answers_alone(
    upstream: FakeUpstream, url: str, tmp_path: Path
) -> None:
    gate = anyio.Event()
    upstream.script(role(), token("One "), Gate(gate), token("answer"), finish(), Done())
    first, second = two_servers(upstream, tmp_path, url)
    async with first:
        reading = await SSE.start(first, ASKED)
        documents = await reading.take(2)
        async with second:
            path = f"/chat/runs/{reading.run_id}"
            assert (await get_run(second, reading.run_id))["status"] == "running"
            assert (await request(second, "POST", "/chat/stream", ASKED)).json["run_id"] == reading.run_id
            assert (await request(second, "GET", f"{path}/events")).status == 404
            assert (await request(second, "POST", f"{path}/cancel")).status == 404
            gate.set()
            documents += await documents_of(reading)
            assert (json.loads(documents[-1])["type"], text_of(documents)) == ("done", "One answer")
            for server in (first, second):
                assert (await get_run(server, reading.run_id))["status"] == "completed"
                session = (await request(server, "GET", "/chat/sessions/s")).json
                assert session["messages"][-1]["content"] == "One answer"
            first.terminate()
            assert await first.wait() == 0
            assert first.stderr == second.stderr == []


@with_processes
async def test_what_a_server_leaves_is_ended_by_the_other(upstream: FakeUpstream, url: str, tmp_path: Path) -> None:
    gate = anyio.Event()
    upstream.script(role(), token("So far"), Gate(gate), token("lost"), finish(), Done())
    first, second = two_servers(upstream, tmp_path, url, ("-m", "tests.odd_node", "watchful"))
    async with first, second:
        reading = await asked(first)
        documents = await reading.take(2)
        first.freeze()
        assert await error_of(second, reading.run_id) == "interrupted"
        await until(second, 1, ENDED, reason="interrupted")
        first.thaw()
        gate.set()
        assert json.loads([*documents, *await documents_of(reading)][-1])["code"] == "interrupted"
        assert (await scrape(first))(ENDED) == 0

        upstream.script(role(), token("So far"), Hang())
        reading = await asked(first)
        await reading.take(2)
        first.kill()
        assert await error_of(second, reading.run_id) == "interrupted"
        await until(second, 2, ENDED, reason="interrupted")
        reading.cut()
        upstream.script(role(), token("Next"), finish(), Done())
        assert text_of(await documents_of(await asked(second))) == "Next"


async def asked(server: ServerProcess) -> Reading:
    """A run of a server that may just have noticed that others could take it for dead."""
    return await when_available(partial(SSE.start, server, ASKED))


async def error_of(server: ServerProcess, run_id: str) -> str:
    """The code of a run's failure, when another process has ended the run."""
    while (run := await get_run(server, run_id))["status"] == "running":  # noqa: ASYNC110 - nobody here reads it
        await anyio.sleep(0.02)
    return str(run["error"]["code"])
