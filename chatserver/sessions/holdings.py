"""Holdings: how many sessions each user has, and how many bytes they take. Kept as sums, never counted anew."""

from functools import partial
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Executable, bindparam

from chatserver.errors import QuotaExceeded, TooMany
from chatserver.sessions.schema import USER_OF_RUN, holdings, insert_or_update
from chatserver.sessions.statements import Statement

FULL_SECONDS = 60
"""When trying again makes sense: the user has to delete a session first."""


class Quota(Struct, frozen=True):
    """The sessions and bytes that a user may have; None: any number."""

    sessions: int | None = None
    bytes: int | None = None


def add(connection: Connection, user: str, sessions: int, size: int, quota: Quota | None = None) -> None:
    """Add to the sessions and bytes of a user; negative numbers subtract.

    Raises:
        TooMany, QuotaExceeded: the sum is more than the user may have.
    """
    parameters = {"user": user, "sessions": sessions, "bytes": size}
    [(sessions_now, bytes_now)] = _ADD.rows(connection, parameters)
    if quota is None:
        return
    if sessions and quota.sessions is not None and sessions_now > quota.sessions:
        raise TooMany(f"at most {quota.sessions} sessions: delete some first", retry_after=FULL_SECONDS)
    if quota.bytes is not None and bytes_now > quota.bytes:
        raise QuotaExceeded(f"at most {quota.bytes} bytes of sessions: delete some first")


def add_to_run(connection: Connection, run_id: str, size: int) -> None:
    """Add to the bytes of a run's user."""
    parameters = {"run": run_id, "sessions": 0, "bytes": size}
    _ADD_TO_RUN.rows(connection, parameters)


def _add(user: ColumnElement[Any], dialect: str) -> Executable:
    query = insert_or_update(dialect, holdings).values(user_id=user)
    grown = {name: holdings.c[name] + query.excluded[name] for name in ("sessions", "bytes")}
    query = query.on_conflict_do_update(index_elements=["user_id"], set_=grown)
    return query.returning(holdings.c.sessions, holdings.c.bytes)


_ADD, _ADD_TO_RUN = Statement(partial(_add, bindparam("user"))), Statement(partial(_add, USER_OF_RUN))
