"""What a message costs in a long session: it is inserted, and as much of what precedes it is read as goes upstream."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from chatserver.commands import ChatRequest, new_id
from chatserver.events import Reasoning, record
from chatserver.log import StoredLog
from chatserver.parts import text_of
from chatserver.sessions import Sessions, open_sessions
from chatserver.sessions.database import Database
from chatserver.sessions.statements import Compiled
from tests.databases import answer_of, answered, ask, contents, done, ended

pytestmark = pytest.mark.anyio


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """All that is asked of databases meanwhile."""
    found: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    def execute(compiled: Compiled, driver: Any, parameters: Any) -> Any:
        found.append((compiled.text, tuple(compiled.values(parameters))))
        return execute_compiled(compiled, driver, parameters)

    execute_compiled = Compiled.execute
    event.listen(Engine, "before_cursor_execute", note)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Compiled, "execute", execute)
            yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def grown(sessions: Sessions, answers: int, size: int) -> None:
    for number in range(answers):
        await answered(sessions, f"Question {number}", "x" * size, session_id="s")


async def test_to_begin_a_run_reads_what_goes_upstream_however_long_its_session_is(sqlite_url: str) -> None:
    costs = []
    async with open_sessions(sqlite_url) as sessions:
        for answers in (8, 8, 16):
            await grown(sessions, answers, 1000)
            with statements() as asked:
                begun = await sessions.begin(
                    "ann", ChatRequest(message="Now?", session_id="s"), new_id(), context_bytes=5000
                )
            costs.append([statement for statement, _ in asked])
            told = [text_of(each.parts) for each in begun.past]
            assert len(told) == 9 and sum(map(len, told)) <= 5000 and told[-1] == "Now?"
            assert len([each for each in costs[-1] if re.search(r"SELECT[^;]*messages.(parts|transcript)", each)]) == 1
            await ended(sessions, begun)
    assert costs[0] == costs[1] == costs[2] and 5 < len(costs[0]) < 12


async def test_the_context_costs_what_goes_upstream_of_it_however_long_its_session_is(sessions: Sessions) -> None:
    found = []
    for answers in (8, 8, 16):
        await grown(sessions, answers, 1000)
        begun = await ask(sessions, "Now?", session_id="s")
        found.append(await contents(sessions, begun, 5000))
        await ended(sessions, begun)
    assert [len(each) for each in found] == [9, 9, 9]
    assert all(sum(map(len, each)) <= 5000 for each in found)
    assert all(each[-1] == "Now?" for each in found)


async def test_what_does_not_fit_ends_the_context_and_the_question_is_always_there(sessions: Sessions) -> None:
    await answered(sessions, "One", "1" * 10, session_id="s")
    await answered(sessions, "Two", "ü" * 500, session_id="s")
    await answered(sessions, "Three", "3" * 10, session_id="s")
    begun = await ask(sessions, "?" * 100, session_id="s")
    assert [text[:5] for text in await contents(sessions, begun, 1000)] == ["Three", "33333", "?????"]
    assert await contents(sessions, begun, 1) == ["?" * 100]


async def test_reasoning_and_empty_answers_take_no_room_from_what_is_told(sessions: Sessions) -> None:
    for number in range(3):
        begun = await ask(sessions, f"Question {number}", session_id="s")
        log = StoredLog.of([record(Reasoning(run_id=begun.run.run_id, seq=1, content="hm"))])
        answer = answer_of("Yes", "hm" * 10_000)
        await sessions.finish(begun.run.run_id, ending=done(), answer=answer, log=log, usage=None)
    begun = await ask(sessions, "Now?", session_id="s")
    context = await sessions.context(begun.user_message_id, 1000)
    assert len(context) == 7


async def life(sessions: Sessions) -> None:
    """Everything that is asked of the store in the life of runs and sessions."""
    first = await answered(sessions, "One", session_id="s", idempotency_key="k")
    await ask(sessions, "One", session_id="s", idempotency_key="k")
    again = await ask(sessions, None, regenerate=first.user_message_id)
    await sessions.checkpoint({again.run.run_id: answer_of("so far")})
    await ended(sessions, again)
    named = await ask(sessions, "Two", parent_id=first.run.message_id)
    await sessions.context(named.user_message_id, 1000)
    await sessions.interrupt(named.run.run_id)
    await sessions.log(named.run.run_id)
    await sessions.run("ann", named.run.run_id)
    for all_branches in (True, False):
        page = await sessions.session("ann", "s", all_branches, 1)
        await sessions.session("ann", "s", all_branches, 1, page.cursor)
    page_of_sessions = await sessions.page("ann", 1, None, "one")
    await answered(sessions, "One more")
    page_of_sessions = await sessions.page("ann", 1, None)
    await sessions.page("ann", 1, page_of_sessions.cursor)
    await sessions.rename("ann", "s", "Better")
    await sessions.spent_on("ann", "2026-01-01")
    await sessions.unfinished()
    await sessions.interrupt_abandoned()
    await sessions.delete("ann", "s")


OF_ALL = r"(sessions|messages|runs)\b"
"""Tables with the rows of all users."""


async def test_every_statement_finds_its_rows_by_an_index(sessions: Sessions, database: Database) -> None:
    """Not by reading a table: of all users' messages, or of a session's."""
    with statements() as asked:
        await life(sessions)

    def scans(connection: Connection) -> list[str]:
        is_sqlite = connection.dialect.name == "sqlite"
        explain, scan = ("EXPLAIN QUERY PLAN", "SCAN") if is_sqlite else ("EXPLAIN", "Seq Scan on")
        if not is_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        found = []
        for statement, parameters in dict.fromkeys((each, _hashable(values)) for each, values in asked):
            if re.match(r"(WITH|SELECT|UPDATE|DELETE)", statement) and re.search("sessions|messages|runs", statement):
                values = parameters[0] if parameters and isinstance(parameters[0], tuple) else parameters
                plan = connection.exec_driver_sql(f"{explain} {statement}", values).all()
                found += [f"{statement}: {row[-1]}" for row in plan if re.search(f"{scan} {OF_ALL}", row[-1])]
        # SQLite walks an index of what is not over, which is as small as what goes on.
        return [each for each in found if "USING INDEX one_active_run" not in each]

    assert await database.read(scans) == []
    assert len(asked) > 40


def _hashable(values: Any) -> Any:
    return tuple(map(_hashable, values)) if isinstance(values, list | tuple) else values
