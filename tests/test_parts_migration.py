"""Databases of before there were parts: what they hold is carried over, and stays readable to its end."""

import json
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import Connection, text

from chatserver.answer import fold
from chatserver.dialogue import PastMessage, dialogue, told_bytes
from chatserver.events import Done, Snapshot, ToolCall
from chatserver.parts import ReasoningPart, TextPart, ToolCallPart
from chatserver.providers.chat_completions.requests import messages_of
from chatserver.sessions import database, open_sessions
from tests.databases import ask, events_of

pytestmark = pytest.mark.anyio

CALL: dict[str, Any] = {"call_id": "c", "tool": "clock", "args": {"zone": "UTC"}, "needs_approval": False}
RESULT: dict[str, Any] = {"result": "noon\u2028", "is_error": False, "truncated": False, "duration_ms": 3}
SAID: dict[str, Any] = {"content": "It is nöon.", "reasoning": "hm", "tool_calls": [CALL | RESULT]}
SNAPSHOT = {"type": "snapshot", "run_id": "r", "seq": 9} | SAID
CALLED = {"type": "tool_call", "run_id": "r", "seq": 10} | CALL | {"call_id": "d"}
DONE = {
    "type": "done",
    "run_id": "r",
    "seq": 11,
    "session_id": "s",
    "message_id": "a",
    "finish_reason": "stop",
    "total_tokens": 3,
    "usage": {"input_tokens": 1, "output_tokens": 2, "estimated": False},
    "duration_ms": 4,
}
LOG = [SNAPSHOT, CALLED, DONE]
PARTS = (
    ReasoningPart("hm"),
    ToolCallPart(call_id="c", tool="clock", args={"zone": "UTC"}, **RESULT),
    TextPart("It is nöon."),
)
MESSAGE = """
INSERT INTO messages
    (message_id, user_id, session_id, position, parent_id, role, status, run_id, created_at,
     content, reasoning, tool_calls)
VALUES (:id, 'ann', 's', :position, :parent, :role, 'complete', :run, '', :content, :reasoning, :calls)
"""
RUN = """
INSERT INTO runs
    (run_id, user_id, session_id, message_id, user_message_id, request_digest, status, last_seq,
     created_at, finished_at, events)
VALUES ('r', 'ann', 's', 'a', 'u', :digest, 'completed', 11, '', '', :events)
"""


def filled(connection: Connection) -> None:
    session = (
        "INSERT INTO sessions (user_id, session_id, title, created_at, updated_at) VALUES ('ann', 's', '', '', '')"
    )
    connection.execute(text(session))
    question = {"id": "u", "position": 1, "parent": None, "role": "user", "run": None, "content": "When?"}
    answer = {"id": "a", "position": 2, "parent": "u", "role": "assistant", "run": "r", "content": SAID["content"]}
    connection.execute(text(MESSAGE), question | {"reasoning": "", "calls": "[]"})
    calls = json.dumps(SAID["tool_calls"], ensure_ascii=False)
    connection.execute(text(MESSAGE), answer | {"reasoning": SAID["reasoning"], "calls": calls})
    events = "\n".join(json.dumps(each, separators=(",", ":")) for each in LOG).encode()
    connection.execute(text(RUN), {"digest": b"", "events": events})


def sizes(connection: Connection) -> dict[str, int]:
    return {row.message_id: row.told_bytes for row in connection.execute(text("SELECT * FROM messages"))}


async def test_messages_and_logs_of_before_are_carried_over(url: str) -> None:
    with patch.object(database, "migrate", partial(database.migrate, version="0005")):
        async with database.open_database(url) as before:
            await before.write(filled)
    async with open_sessions(url) as sessions:
        question, answer = (await sessions.session("ann", "s")).messages
        assert (question.content, question.parts) == ("When?", (TextPart("When?"),))
        assert (answer.content, answer.parts) == (SAID["content"], PARTS)
        stored = await sessions.log("r")
        log = events_of(stored)
        assert [(each.seq, type(each)) for each in log] == [(9, Snapshot), (10, ToolCall), (11, Done)]
        assert stored is not None and len(stored.documents.decode().splitlines()) == 3
        called = ToolCallPart(call_id="d", tool="clock", args={"zone": "UTC"})
        assert fold(log).parts == (*PARTS, called)
        again = await ask(sessions, "And now?", session_id="s")
        context = await sessions.context(again.user_message_id, 10**9)
        assert context[1] == PastMessage(False, PARTS, ())
        told = [each["role"] for each in messages_of(dialogue(context, None, 10**9))]
        assert told == ["user", "assistant", "tool", "assistant", "user"]
    async with database.open_database(url) as after:
        told_of = await after.read(sizes)
    assert told_of["u"] == told_bytes((TextPart("When?"),))
    assert abs(told_of["a"] - told_bytes(PARTS)) < 100


async def test_a_database_with_the_newest_schema_is_opened_without_a_migration(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly each start finds that, and Alembic takes a tenth of a second to be imported."""
    async with database.open_database(url):
        pass
    monkeypatch.delattr("alembic.command.upgrade")
    async with database.open_database(url):
        pass
