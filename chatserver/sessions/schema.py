"""The tables of sessions, messages, runs and spendings: one schema for SQLite and PostgreSQL, made by `migrations/`."""

from collections.abc import Callable
from typing import Any
from unicodedata import normalize

import msgspec
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from chatserver.dialogue import TurnOrigin
from chatserver.events import Usage
from chatserver.parts import AnyPart
from chatserver.resources import RunFailure
from chatserver.waiting import Resolution, Wait


class Document(TypeDecorator[Any]):
    """A Struct, or a container of them, kept as its JSON text."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """In place of ``process_result_value``, which takes one more call for each message of a long session."""
        decode = self._decoder.decode
        return lambda value: None if value is None else decode(value)


def folded(text: str) -> str:
    """A text without its differences of case and width; databases know them of ASCII only, or as they are set up."""
    return normalize("NFKC", text).casefold()


metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("user_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("folded_title", Text, nullable=False, server_default=text("''")),  # as it is searched
    Column("created_at", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default=text("0")),  # of its messages and runs
    PrimaryKeyConstraint("user_id", "session_id", name="pk_sessions"),
    Index("sessions_by_age", "user_id", "updated_at", "session_id"),
)

# `parent_id` and `run_id` are no foreign keys: a message comes and goes with its session and never alone, so the
# checks would only make every insert dearer.
messages = Table(
    "messages",
    metadata,
    Column("message_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("position", Integer, nullable=False),  # 1, 2, 3 … in order of creation, since times can be equal
    Column("parent_id", Text),
    Column("role", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("finish_reason", Text),
    Column("run_id", Text),  # the run that says this answer
    Column("usage", Document(Usage)),
    Column("created_at", Text, nullable=False),
    Column("told_bytes", Integer, nullable=False, server_default=text("0")),  # about, of what goes upstream
    Column("parts", Document(tuple[AnyPart, ...]), nullable=False, server_default=text("'[]'")),
    Column("transcript", Document(tuple[TurnOrigin, ...]), nullable=False, server_default=text("'[]'")),  # private
    PrimaryKeyConstraint("message_id", name="pk_messages"),
    ForeignKeyConstraint(
        ["user_id", "session_id"],
        ["sessions.user_id", "sessions.session_id"],
        name="fk_messages_sessions",
        ondelete="CASCADE",
    ),
    Index("messages_in_order", "user_id", "session_id", "position", unique=True),
)

# One day of each user, the last one: beside the runs, since those go when their session is deleted.
spendings = Table(
    "spendings",
    metadata,
    Column("user_id", Text, nullable=False),
    Column("day", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("user_id", name="pk_spendings"),
)

# What each user has stored; see ``holdings``.
holdings = Table(
    "holdings",
    metadata,
    Column("user_id", Text, nullable=False),
    Column("sessions", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("user_id", name="pk_holdings"),
)

# The processes that use this database; see ``leases``.
processes = Table(
    "processes",
    metadata,
    Column("owner", Text, nullable=False),
    Column("beat", Integer, nullable=False),
    PrimaryKeyConstraint("owner", name="pk_processes"),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("message_id", Text, nullable=False),  # the answer
    Column("user_message_id", Text, nullable=False),  # what it answers
    Column("idempotency_key", Text),
    Column("request_digest", LargeBinary, nullable=False),
    Column("status", Text, nullable=False),
    Column("last_seq", Integer, nullable=False),
    Column("usage", Document(Usage)),
    Column("created_at", Text, nullable=False),
    Column("finished_at", Text),
    Column("error", Document(RunFailure)),
    # Behind most columns, so that SQLite reads past it only where it is asked for.
    Column("events", LargeBinary),  # of a finished run; as the lengths, see ``StoredLog``
    Column("lengths", LargeBinary),
    # The process that goes on with the run, or that has ended it; of a waiting run that nobody has in memory: none.
    Column("owner", Text),
    Column("wait", Document(Wait)),  # of a run that has waited, until it is over; with the calls that wait now
    Column("waits_until", Text),  # of a waiting run that nobody has: when somebody has to take it
    PrimaryKeyConstraint("run_id", name="pk_runs"),
    ForeignKeyConstraint(
        ["user_id", "session_id"],
        ["sessions.user_id", "sessions.session_id"],
        name="fk_runs_sessions",
        ondelete="CASCADE",
    ),
    # What makes `finished_at IS NULL` mean "active" everywhere, also in the index below.
    CheckConstraint("(finished_at IS NULL) = (status IN ('running', 'waiting'))", name="ck_runs_finished"),
    Index("runs_of_session", "user_id", "session_id"),
    Index("runs_by_key", "user_id", "idempotency_key", unique=True),
    Index(
        "one_active_run",
        "user_id",
        "session_id",
        unique=True,
        sqlite_where=text("finished_at IS NULL"),
        postgresql_where=text("finished_at IS NULL"),
    ),
)

# With what each call of a run that has waited was resolved, once.
call_answers = Table(
    "call_answers",
    metadata,
    Column("run_id", Text, nullable=False),
    Column("call_id", Text, nullable=False),
    Column("resolution", Document(Resolution), nullable=False),
    PrimaryKeyConstraint("run_id", "call_id", name="pk_call_answers"),
    ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_call_answers_runs", ondelete="CASCADE"),
)

USER_OF_RUN = select(runs.c.user_id).where(runs.c.run_id == bindparam("run")).scalar_subquery()


def insert_or_update(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An `INSERT` that knows `ON CONFLICT`: SQLAlchemy has one for each dialect, of the same form."""
    return (postgresql.insert if dialect == "postgresql" else sqlite.insert)(table)
