"""Runs that wait for an answer: what their continuation needs, and the answers."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("runs", sa.Column("wait", sa.Text))
    op.add_column("runs", sa.Column("waits_until", sa.Text))
    op.create_table(
        "call_answers",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("resolution", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "call_id", name="pk_call_answers"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_call_answers_runs", ondelete="CASCADE"),
    )
