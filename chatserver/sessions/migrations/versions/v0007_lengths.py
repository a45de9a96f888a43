"""Logs are stored whole, their texts merged: the length of each text. What was stored before has none."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("runs", sa.Column("lengths", sa.LargeBinary))
