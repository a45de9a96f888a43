"""The processes that use the database, and whose each run is."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "processes",
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("beat", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_processes"),
    )
    op.add_column("runs", sa.Column("owner", sa.Text))
