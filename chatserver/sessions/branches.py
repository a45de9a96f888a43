"""The messages of a session, from one of them backwards: a branch of their tree, or all in order of creation."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, Integer, Select, bindparam, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from chatserver.commands import is_id
from chatserver.dialogue import PastMessage
from chatserver.errors import BadCursor
from chatserver.parts import text_of
from chatserver.resources import MessageResource
from chatserver.sessions.schema import messages
from chatserver.sessions.statements import Statement

MESSAGES_BYTES_LIMIT = 1024 * 1024
"""How much text the messages of one page have together at most, without the newest message of the page."""

MOST_BYTES = 1 << 30
"""More than a sum in SQL can pass."""

_STORED = [name for name in MessageResource.__struct_fields__ if name != "content"]  # which the parts tell
_COLUMNS: list[ColumnElement[Any]] = [messages.c[name] for name in _STORED]


class _Bytes(FunctionElement[int]):
    """How many bytes a text takes."""

    type, inherit_cache = Integer(), True


@compiles(_Bytes)
def _on_postgresql(element: _Bytes, compiler: SQLCompiler, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"


@compiles(_Bytes, "sqlite")
def _on_sqlite(element: _Bytes, compiler: SQLCompiler, **options: Any) -> str:
    # Not octet_length, which SQLite has since 3.43 only.
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


def _backwards(is_branch: bool, size: ColumnElement[int], columns: list[ColumnElement[Any]]) -> Select[Any]:
    """The messages from ``newest`` backwards, at most ``limit`` and ``bytes_limit`` of them, returned oldest first.

    The statement finds the keys first, so that it fetches only the texts of these messages. ``newest`` is always among
    them, whatever its size.
    """
    keys = (messages.c.message_id, messages.c.parent_id, messages.c.user_id, messages.c.session_id, messages.c.position)
    newest = select(*keys, literal(1).label("number"), size.label("size"))
    way = newest.where(messages.c.message_id == bindparam("newest")).cte("way", recursive=True)
    in_session = (messages.c.user_id == way.c.user_id) & (messages.c.session_id == way.c.session_id)
    is_next = (
        messages.c.message_id == way.c.parent_id
        if is_branch
        else in_session & (messages.c.position == way.c.position - 1)
    )
    further = select(*keys, way.c.number + 1, way.c.size + size).join_from(way, messages, is_next)
    way = way.union_all(further.where(way.c.number < bindparam("limit"), way.c.size + size <= bindparam("bytes_limit")))
    found = select(messages.c.position, *columns).join_from(way, messages, messages.c.message_id == way.c.message_id)
    return found.order_by(messages.c.position)


# Made once: to build a statement costs as much as to run it.
_PAGE = {is_branch: _backwards(is_branch, _Bytes(messages.c.parts), _COLUMNS) for is_branch in (True, False)}
_TOLD: list[ColumnElement[Any]] = [
    messages.c.role == "user",
    messages.c.parts,
    messages.c.transcript,
]
_CONTEXT = Statement(_backwards(True, cast(ColumnElement[int], messages.c.told_bytes), _TOLD))
_HERE = (messages.c.user_id == bindparam("user"), messages.c.session_id == bindparam("session"))
_NEWEST = select(messages.c.message_id).where(*_HERE).order_by(messages.c.position.desc()).limit(1)
_GIVEN = select(messages.c.parent_id, messages.c.position).where(*_HERE, messages.c.message_id == bindparam("given"))
_AT = select(messages.c.message_id).where(*_HERE, messages.c.position == bindparam("at"))


def page(
    connection: Connection, user: str, session_id: str, all_branches: bool, limit: int, cursor: str | None
) -> tuple[list[MessageResource], str | None]:
    """The newest messages of the newest branch, or of all, and the cursor of those before them, None: there are none.

    A cursor is the id of the first message of the page that follows.

    Raises:
        BadCursor: no page gave it.
    """
    home = {"user": user, "session": session_id}
    newest = connection.execute(_NEWEST, home).scalar_one() if cursor is None else None
    if cursor is not None:
        newest = _before(connection, home, cursor, all_branches)
    within = {"newest": newest, "limit": limit, "bytes_limit": MESSAGES_BYTES_LIMIT}
    rows = connection.execute(_PAGE[not all_branches], within).all()
    found = [_message(row[1:]) for row in rows]
    has_more = rows[0].position > 1 if all_branches else found[0].parent_id is not None
    return found, found[0].message_id if has_more else None


def _before(connection: Connection, home: dict[str, str], cursor: str, all_branches: bool) -> str:
    given = connection.execute(_GIVEN, home | {"given": cursor}).one_or_none() if is_id(cursor) else None
    if given is None:
        found = None
    elif all_branches:
        found = connection.execute(_AT, home | {"at": given.position - 1}).scalar()
    else:
        found = given.parent_id
    if found is None:
        raise BadCursor("`cursor` is what the last page gave, or absent")
    return str(found)


def context(connection: Connection, message_id: str, bytes_limit: int) -> list[PastMessage]:
    """The branch that ends with this message, oldest first: the newest messages that fit."""
    limit = min(bytes_limit, MOST_BYTES)
    rows = _CONTEXT.rows(connection, {"newest": message_id, "limit": limit, "bytes_limit": limit})
    return [PastMessage(*told) for _, *told in rows]


def _message(row: Sequence[Any]) -> MessageResource:
    # By position: a row's mapping looks up each column by its object, twice the time for a long session.
    stored = dict(zip(_STORED, row, strict=True))
    return MessageResource(content=text_of(stored["parts"]), **stored)
