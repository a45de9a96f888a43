"""Queries: runs and their logs, sessions, pages of sessions."""

from base64 import b64decode, urlsafe_b64encode
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from sqlalchemy import Connection, select, tuple_

from chatserver.commands import checked_id
from chatserver.errors import BadCursor, NotFound
from chatserver.log import StoredLog
from chatserver.resources import RunResource, SessionDetail, SessionPage, SessionResource
from chatserver.sessions import branches
from chatserver.sessions.schema import folded, runs, sessions, spendings

RUN_COLUMNS = [runs.c[name] for name in RunResource.__struct_fields__]

_SESSIONS = select(
    sessions.c.session_id,
    sessions.c.title,
    sessions.c.created_at,
    sessions.c.updated_at,
    runs.c.run_id.label("active_run_id"),
).outerjoin_from(
    sessions,
    runs,
    (runs.c.user_id == sessions.c.user_id)
    & (runs.c.session_id == sessions.c.session_id)
    & runs.c.finished_at.is_(None),
)


def run(connection: Connection, user: str, run_id: str) -> RunResource:
    """A run of the user.

    Raises:
        NotFound: there is none.
    """
    query = select(*RUN_COLUMNS).where(runs.c.run_id == checked_id(run_id), runs.c.user_id == user)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound
    return RunResource(**row._mapping)


def spent_on(connection: Connection, user: str, day: str) -> int:
    """The tokens of the user's runs that ended on this day."""
    query = select(spendings.c.tokens).where(spendings.c.user_id == user, spendings.c.day == day)
    return connection.execute(query).scalar() or 0


def log(connection: Connection, run_id: str) -> StoredLog | None:
    """The log of a finished run, as it was given to ``finish``; None: the run goes on.

    Raises:
        NotFound: there is no such run.
    """
    query = select(runs.c.finished_at, runs.c.last_seq, runs.c.events, runs.c.lengths).where(runs.c.run_id == run_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound
    is_whole = row.events and row.finished_at is not None
    return StoredLog(row.last_seq, row.events, row.lengths or b"") if is_whole else None


def session_resource(connection: Connection, user: str, session_id: str) -> SessionResource:
    """A session of the user.

    Raises:
        NotFound: there is none.
    """
    query = _SESSIONS.where(sessions.c.user_id == user, sessions.c.session_id == checked_id(session_id))
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound
    return SessionResource(**row._mapping)


def session(
    connection: Connection, user: str, session_id: str, all_branches: bool, limit: int, cursor: str | None
) -> SessionDetail:
    """A session with a page of its newest branch, oldest message first, or of all messages in order of creation.

    Raises:
        NotFound: there is none.
        BadCursor: no page gave the cursor.
    """
    session = session_resource(connection, user, session_id)
    found, older = branches.page(connection, user, session_id, all_branches, limit, cursor)
    return SessionDetail(**msgspec.structs.asdict(session), messages=found, cursor=older)


class _PageCursor(Struct, array_like=True, forbid_unknown_fields=True):
    """The last session of a page. A client's cursor that has not this form never reaches the database."""

    updated_at: Annotated[str, Meta(pattern=r"\A[0-9TZ:.-]{1,40}\Z")]
    session_id: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]


def page(connection: Connection, user: str, limit: int, cursor: str | None, search: str | None) -> SessionPage:
    """``limit`` (1 or more) sessions, the last used one first, from where the page that gave ``cursor`` ended.

    Where ``search`` is given: those that have it in their title.

    Raises:
        BadCursor: no page gave it.
    """
    key = tuple_(sessions.c.updated_at, sessions.c.session_id)
    query = _SESSIONS.where(sessions.c.user_id == user)
    if search is not None:
        query = query.where(sessions.c.folded_title.contains(folded(search), autoescape=True))
    if cursor is not None:
        last = _page_cursor(cursor)
        query = query.where(key < tuple_(last.updated_at, last.session_id))
    query = query.order_by(sessions.c.updated_at.desc(), sessions.c.session_id.desc()).limit(limit + 1)
    found = [SessionResource(**row._mapping) for row in connection.execute(query)]
    shown = found[:limit]
    return SessionPage(shown, _cursor(shown[-1]) if len(found) > limit else None)


def _cursor(last: SessionResource) -> str:
    return urlsafe_b64encode(msgspec.json.encode(_PageCursor(last.updated_at, last.session_id))).decode()


def _page_cursor(cursor: str) -> _PageCursor:
    try:
        return msgspec.json.decode(b64decode(cursor, altchars=b"-_", validate=True), type=_PageCursor)
    except ValueError:  # of base64, of UTF-8, of JSON (msgspec's errors are ValueErrors) or of the form
        raise BadCursor("`cursor` is what the last page gave, or absent") from None
