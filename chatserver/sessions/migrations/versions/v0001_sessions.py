"""Sessions, messages and runs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "session_id", name="pk_sessions"),
    )
    op.create_index("sessions_by_age", "sessions", ["user_id", "updated_at", "session_id"])
    _create_messages()
    _create_runs()


def _create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("parent_id", sa.Text),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("usage", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("reasoning", sa.Text, nullable=False),
        sa.Column("tool_calls", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("message_id", name="pk_messages"),
        _of_session("fk_messages_sessions"),
    )
    op.create_index("messages_in_order", "messages", ["user_id", "session_id", "position"], unique=True)


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("user_message_id", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("request_digest", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("usage", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("finished_at", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("events", sa.LargeBinary),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
        _of_session("fk_runs_sessions"),
        sa.CheckConstraint("(finished_at IS NULL) = (status IN ('running', 'waiting'))", name="ck_runs_finished"),
    )
    op.create_index("runs_of_session", "runs", ["user_id", "session_id"])
    op.create_index("runs_by_key", "runs", ["user_id", "idempotency_key"], unique=True)
    active = sa.text("finished_at IS NULL")
    op.create_index(
        "one_active_run",
        "runs",
        ["user_id", "session_id"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )


def _of_session(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["user_id", "session_id"], ["sessions.user_id", "sessions.session_id"], name=name, ondelete="CASCADE"
    )
