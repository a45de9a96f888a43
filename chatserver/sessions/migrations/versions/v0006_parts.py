"""Messages as parts, in order, and what their providers want back of their turns."""

from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

ROWS_AT_ONCE = 100
LEAST_TOLD_BYTES = 16
"""What a message takes upstream at least, beside what it says."""

messages = sa.table(
    "messages", *map(sa.column, ("message_id", "content", "reasoning", "tool_calls", "parts", "told_bytes"))
)
runs = sa.table("runs", *map(sa.column, ("run_id", "events")))


def upgrade() -> None:
    op.add_column("messages", sa.Column("told_bytes", sa.Integer, nullable=False, server_default=sa.text("0")))
    for name in ("parts", "transcript"):
        op.add_column("messages", sa.Column(name, sa.Text, nullable=False, server_default=sa.text("'[]'")))
    _fill_parts(op.get_bind())
    _rewrite_logs(op.get_bind())
    for name in ("content", "reasoning", "tool_calls"):
        op.drop_column("messages", name)


def _fill_parts(connection: sa.Connection) -> None:
    columns = (messages.c.message_id, messages.c.content, messages.c.reasoning, messages.c.tool_calls)
    query = sa.select(*columns).order_by(messages.c.message_id).limit(ROWS_AT_ONCE)
    query = query.where(messages.c.message_id > sa.bindparam("last"))
    update = sa.update(messages).where(messages.c.message_id == sa.bindparam("id"))
    last = ""
    while rows := connection.execute(query, {"last": last}).all():
        values = [
            {
                "id": row.message_id,
                "parts": msgspec.json.encode(_parts(row._mapping, msgspec.json.decode(row.tool_calls))).decode(),
                "told_bytes": LEAST_TOLD_BYTES
                + len(row.content.encode())
                + len(row.tool_calls.removeprefix("[]").encode()),
            }
            for row in rows
        ]
        connection.execute(update, values)
        last = rows[-1].message_id


def _parts(said: Any, calls: list[Any]) -> list[dict[str, Any]]:
    """Their order was not kept: reasoning, calls, text is the commonest, and how all were shown."""
    reasoning = [{"type": "reasoning", "text": said["reasoning"]}] if said["reasoning"] else []
    text = [{"type": "text", "text": said["content"]}] if said["content"] else []
    return [*reasoning, *({"type": "tool_call", "executor": "server"} | call for call in calls), *text]


def _rewrite_logs(connection: sa.Connection) -> None:
    """The events whose form has changed: `snapshot` and `tool_call`."""
    query = sa.select(runs.c.run_id, runs.c.events).order_by(runs.c.run_id).limit(ROWS_AT_ONCE)
    query = query.where(runs.c.run_id > sa.bindparam("last"))
    update = sa.update(runs).where(runs.c.run_id == sa.bindparam("id"))
    last = ""
    while rows := connection.execute(query, {"last": last}).all():
        for row in rows:
            log = b"\n".join(map(_rewritten, row.events.split(b"\n"))) if row.events else row.events
            if log != row.events:
                connection.execute(update, {"id": row.run_id, "events": log})
        last = rows[-1].run_id


def _rewritten(document: bytes) -> bytes:
    if not document.startswith((b'{"type":"snapshot"', b'{"type":"tool_call"')):
        return document
    event = msgspec.json.decode(document)
    if event["type"] == "tool_call":
        return _as_event(event | {"executor": "server"})
    head = {name: event[name] for name in ("type", "run_id", "seq")}
    return _as_event(head | {"parts": _parts(event, event["tool_calls"])})


def _as_event(document: dict[str, Any]) -> bytes:
    """In one line, whoever looks for line ends."""
    data = msgspec.json.encode(document)
    for mark in "\x85\u2028\u2029":
        data = data.replace(mark.encode(), b"\\u%04x" % ord(mark))
    return data
