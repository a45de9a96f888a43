"""Pages of sessions and of their messages, searches, branches that are gone on with. On both databases."""

from functools import partial
from unittest.mock import patch

import pytest
from sqlalchemy import Connection, text

from chatserver.answer import Answer
from chatserver.errors import BadCursor, NotFound, RunActive
from chatserver.parts import TextPart
from chatserver.resources import MessageResource
from chatserver.sessions import Sessions, branches, database, open_sessions
from tests.databases import answered, ask, contents, done, said, texts

pytestmark = pytest.mark.anyio

AROUND_TEXT = '[{"type":"text","text":""}]'
"""What a message of one text takes beside it."""


# Going on from an answer


async def test_a_message_follows_the_answer_that_it_names(sessions: Sessions) -> None:
    first = await answered(sessions, "One", "1", session_id="s")
    await answered(sessions, "Two", "2", session_id="s")
    named = await ask(sessions, "Zwei", parent_id=first.run.message_id)
    assert named.run.session_id == "s"
    assert await contents(sessions, named) == ["One", "1", "Zwei"]
    *_, question, _ = (await sessions.session("ann", "s")).messages
    assert (question.message_id, question.parent_id) == (named.user_message_id, first.run.message_id)
    assert await texts(sessions, "s") == ["One", "1", "Zwei", ""]
    assert await texts(sessions, "s", all_branches=True) == ["One", "1", "Two", "2", "Zwei", ""]


async def test_a_parent_is_an_answer_of_the_session(sessions: Sessions) -> None:
    first = await answered(sessions, session_id="s")
    await answered(sessions, session_id="t")
    await answered(sessions, session_id="s", user="bob")
    for fields in (
        {"parent_id": "unknown"},
        {"parent_id": first.user_message_id},
        {"parent_id": first.run.message_id, "user": "bob"},
        {"parent_id": first.run.message_id, "session_id": "t"},
        {"parent_id": first.run.message_id, "session_id": "unknown"},
    ):
        with pytest.raises(NotFound):
            await ask(sessions, **fields)
    assert len((await sessions.page("ann", 10, None)).sessions) == 2


async def test_whoever_names_a_parent_waits_for_the_active_run_too(sessions: Sessions) -> None:
    first = await answered(sessions, session_id="s")
    active = await ask(sessions, session_id="s")
    for parent in (first.run.message_id, active.run.message_id):
        with pytest.raises(RunActive) as refused:
            await ask(sessions, parent_id=parent)
        assert refused.value.run_id == active.run.run_id


# Pages of messages


async def pages_of(sessions: Sessions, limit: int, all_branches: bool) -> list[list[MessageResource]]:
    """All pages of session ``s``, the newest one first."""
    detail = await sessions.session("ann", "s", all_branches, limit)
    found = [detail.messages]
    while detail.cursor is not None:
        detail = await sessions.session("ann", "s", all_branches, limit, detail.cursor)
        found.append(detail.messages)
        assert len(found) < 100, "the pages have no end"
    return found


async def branched(sessions: Sessions) -> list[str]:
    """A session with a branch that was left; the texts of its newest one."""
    first = await answered(sessions, "One", "1", session_id="s")
    for number in range(3):
        await answered(sessions, f"Left {number}", f"left {number}", session_id="s")
    await answered(sessions, "Two", "2", session_id="s", parent_id=first.run.message_id)
    await answered(sessions, "Three", "3", session_id="s")
    return ["One", "1", "Two", "2", "Three", "3"]


@pytest.mark.parametrize("all_branches", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 5, 6, 7, 12])
async def test_pages_show_every_message_once_the_newest_page_first(
    sessions: Sessions, limit: int, all_branches: bool
) -> None:
    newest = await branched(sessions)
    everything = [message.content for message in (await sessions.session("ann", "s", True)).messages]
    assert len(everything) == 12
    found = await pages_of(sessions, limit, all_branches)
    shown = [message.content for page in reversed(found) for message in page]
    assert shown == (everything if all_branches else newest)
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert len(found) == -(-len(shown) // limit)


@pytest.mark.parametrize("all_branches", [True, False])
async def test_a_page_is_bounded_in_bytes_and_has_one_message_at_least(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, all_branches: bool
) -> None:
    monkeypatch.setattr(branches, "MESSAGES_BYTES_LIMIT", 1000)
    sizes = [300, 300, 300, 5000, 600, 300]
    for size in sizes:
        pairs, single = divmod(size - len(AROUND_TEXT), len("ü".encode()))
        begun = await ask(sessions, "ü" * pairs + "u" * single, session_id="s")
        answer = Answer((TextPart("r" * (size - len(AROUND_TEXT))),))
        await sessions.finish(begun.run.run_id, ending=done(), answer=answer, log=said("r"), usage=None)
    found = [
        [len(AROUND_TEXT) + len(message.content.encode()) for message in page]
        for page in await pages_of(sessions, 9, all_branches)
    ]
    assert found == [[300, 300], [600], [600], [5000], [5000], [300, 300, 300], [300, 300, 300]][: len(found)]


@pytest.mark.parametrize("all_branches", [True, False])
async def test_older_pages_stay_what_they_are_while_the_session_goes_on(sessions: Sessions, all_branches: bool) -> None:
    await answered(sessions, "One", "1", session_id="s")
    await answered(sessions, "Two", "2", session_id="s")
    newest = await sessions.session("ann", "s", all_branches, 2)
    first = await answered(sessions, "Three", "3", session_id="s")
    await answered(sessions, None, "3b", regenerate=first.user_message_id)
    older = await sessions.session("ann", "s", all_branches, 2, newest.cursor)
    assert [message.content for message in older.messages] == ["One", "1"]
    assert older.cursor is None


async def test_a_cursor_of_messages_that_no_page_gave_is_refused(sessions: Sessions) -> None:
    first = await answered(sessions, "One", "1", session_id="s")
    other = await answered(sessions, "Two", "2", session_id="t")
    foreign = await answered(sessions, session_id="s", user="bob")
    wrong = ["", "unknown", "a\0b\ud800", "x" * 100_000, first.user_message_id]
    for cursor in [*wrong, other.run.message_id, foreign.run.message_id]:
        for all_branches in (True, False):
            with pytest.raises(BadCursor):
                await sessions.session("ann", "s", all_branches, 10, cursor)


# Searching


async def found(sessions: Sessions, search: str, limit: int = 10) -> list[str]:
    """The titles on all pages, the last used first."""
    page = await sessions.page("ann", limit, None, search)
    titles = [each.title for each in page.sessions]
    while page.cursor is not None:
        page = await sessions.page("ann", limit, page.cursor, search)
        titles += [each.title for each in page.sessions]
    return titles


async def test_a_search_finds_titles_that_have_it_in_them_whatever_the_case(sessions: Sessions) -> None:
    for title in ("Über Straßen", "100% sure_thing", "a\\b", "ПРИВЕТ мир", "plain"):
        await answered(sessions, title)
    await answered(sessions, "über Bob", user="bob")
    expected = {
        "über": ["Über Straßen"],
        "STRASSEN": ["Über Straßen"],
        "%": ["100% sure_thing"],
        "E_T": ["100% sure_thing"],
        "s%t": [],
        "_": ["100% sure_thing"],
        "\\": ["a\\b"],
        "привет": ["ПРИВЕТ мир"],
        "LAI": ["plain"],
        "nothing": [],
        "' OR 1=1 --": [],
    }
    assert {search: await found(sessions, search) for search in expected} == expected


async def test_a_search_has_pages_and_follows_a_rename(sessions: Sessions) -> None:
    for number in range(7):
        await answered(sessions, f"{'Rivers' if number % 2 else 'Hills'} {number}", session_id=f"s{number}")
    assert await found(sessions, "RIVER", limit=1) == ["Rivers 5", "Rivers 3", "Rivers 1"]
    await sessions.rename("ann", "s3", "Streams")
    await sessions.rename("ann", "s4", "No river")
    assert await found(sessions, "river", limit=2) == ["Rivers 5", "No river", "Rivers 1"]


# Databases of before


BEFORE = """
INSERT INTO sessions VALUES ('ann', 's', 'Über', '2026-01-01', '2026-01-01');
INSERT INTO messages VALUES ('u', 'ann', 's', 1, NULL, 'user', 'complete', NULL, NULL, '2026', 'Hi', '', '[]');
INSERT INTO messages VALUES ('a', 'ann', 's', 2, 'u', 'assistant', 'complete', 'r', NULL, '2026', 'Ho', '', '[]');
INSERT INTO messages VALUES ('u2', 'ann', 's', 3, 'a', 'user', 'complete', NULL, NULL, '2026', 'Hi', '', '[]');
INSERT INTO messages VALUES ('a2', 'ann', 's', 4, 'u2', 'assistant', 'partial', 'r2', NULL, '2026', '', '', '[]')
"""
RUNS = (
    "INSERT INTO runs (run_id, user_id, session_id, message_id, user_message_id, request_digest, status, last_seq, "
    "created_at, finished_at, events) VALUES (:run, 'ann', 's', :message, :question, :digest, :status, 2, '2026', "
    "'2026', :events)"
)


async def test_answers_and_titles_of_before_are_carried_over(url: str) -> None:
    def fill(connection: Connection) -> None:
        for statement in BEFORE.split(";"):
            connection.execute(text(statement))
        last = {"completed": b'{"type":"done","finish_reason":"length"}', "failed": b'{"type":"error"}'}
        ids = {"completed": ("r", "a", "u"), "failed": ("r2", "a2", "u2")}
        for status, end in last.items():
            run, message, question = ids[status]
            log = b'{"content":"' + b"x" * 100_000 + b'"}\n' + end
            values = {"run": run, "message": message, "question": question, "digest": b"", "status": status}
            connection.execute(text(RUNS), values | {"events": log})

    with patch.object(database, "migrate", partial(database.migrate, version="0002")):
        async with database.open_database(url) as before:
            await before.write(fill)
    async with open_sessions(url) as sessions:
        reasons = [message.finish_reason for message in (await sessions.session("ann", "s")).messages]
        assert reasons == [None, "length", None, None]
        assert await found(sessions, "ÜB") == ["Über"]
