"""How much each session takes, and what each user has."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "holdings",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("sessions", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_holdings"),
    )
    op.add_column("sessions", sa.Column("bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    size = "octet_length({})" if op.get_bind().dialect.name == "postgresql" else "length(CAST({} AS BLOB))"
    said = " + ".join(size.format(name) for name in ("content", "reasoning", "tool_calls"))
    mine = "user_id = sessions.user_id AND {0}.session_id = sessions.session_id"
    op.execute(
        "UPDATE sessions SET bytes = "  # noqa: S608 - of names that stand here
        f"coalesce((SELECT sum({said}) FROM messages WHERE messages.{mine.format('messages')}), 0) + "
        f"coalesce((SELECT sum({size.format('events')}) FROM runs WHERE runs.{mine.format('runs')}), 0)"
    )
    op.execute("INSERT INTO holdings SELECT user_id, count(*), sum(bytes) FROM sessions GROUP BY user_id")
