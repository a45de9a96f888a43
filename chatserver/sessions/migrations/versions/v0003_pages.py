"""How each answer ended, and titles as they are searched."""

import msgspec
import sqlalchemy as sa
from alembic import op

from chatserver.sessions.schema import folded

revision = "0003"
down_revision = "0002"

BATCH = 500
LAST_EVENT_BYTES = 8192
"""More than any `done` has."""

runs = sa.table("runs", *map(sa.column, ("run_id", "message_id", "status", "events")))
messages = sa.table("messages", *map(sa.column, ("message_id", "finish_reason")))
sessions = sa.table("sessions", *map(sa.column, ("user_id", "session_id", "title", "folded_title")))


class _Done(msgspec.Struct):
    finish_reason: str


def upgrade() -> None:
    op.add_column("messages", sa.Column("finish_reason", sa.Text))
    op.add_column("sessions", sa.Column("folded_title", sa.Text, nullable=False, server_default=sa.text("''")))
    _fill_finish_reasons(op.get_bind())
    _fill_titles(op.get_bind())


def _fill_finish_reasons(connection: sa.Connection) -> None:
    """Each from the last event of the run's log, where that is a `done`."""
    end = sa.func.substr(runs.c.events, sa.func.length(runs.c.events) - (LAST_EVENT_BYTES - 1))
    query = sa.select(runs.c.run_id, runs.c.message_id, end.label("end")).order_by(runs.c.run_id).limit(BATCH)
    query = query.where(runs.c.status.in_(["completed", "cancelled"]), runs.c.run_id > sa.bindparam("last"))
    update = sa.update(messages).where(messages.c.message_id == sa.bindparam("id"))
    last = ""
    while rows := connection.execute(query, {"last": last}).all():
        reasons = [msgspec.json.decode(row.end.rpartition(b"\n")[2], type=_Done).finish_reason for row in rows]
        values = [{"id": row.message_id, "finish_reason": reason} for row, reason in zip(rows, reasons, strict=True)]
        connection.execute(update, values)
        last = rows[-1].run_id


def _fill_titles(connection: sa.Connection) -> None:
    key = sa.tuple_(sessions.c.user_id, sessions.c.session_id)
    query = sa.select(sessions.c.user_id, sessions.c.session_id, sessions.c.title)
    query = query.where(key > sa.tuple_(sa.bindparam("user"), sa.bindparam("session")))
    query = query.order_by(sessions.c.user_id, sessions.c.session_id).limit(BATCH)
    update = sa.update(sessions).where(key == sa.tuple_(sa.bindparam("user"), sa.bindparam("session")))
    last = {"user": "", "session": ""}
    while rows := connection.execute(query, last).all():
        values = [{"user": row.user_id, "session": row.session_id, "folded_title": folded(row.title)} for row in rows]
        connection.execute(update, values)
        last = {"user": rows[-1].user_id, "session": rows[-1].session_id}
