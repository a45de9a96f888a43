"""How a run begins: all its rows in one transaction, or none."""

from collections.abc import Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Connection, bindparam, insert, select, update

from chatserver.commands import ChatRequest, Message, new_id, parts_of
from chatserver.dialogue import PastMessage, json_bytes, told_bytes
from chatserver.errors import KeyReused, NotFound, RunActive
from chatserver.parts import FilePart, UserParts, text_of
from chatserver.resources import MessageResource, MessageStatus, Role, RunResource, timestamp
from chatserver.sessions.branches import context
from chatserver.sessions.holdings import Quota, add
from chatserver.sessions.queries import RUN_COLUMNS
from chatserver.sessions.schema import folded, messages, runs, sessions
from chatserver.sessions.statements import Statement

TITLE_CHARS_LIMIT = 80


_NEW_RUN, _NEW_SESSION, _NEW_MESSAGES = (
    Statement(insert(runs)),
    Statement(insert(sessions)),
    Statement(insert(messages)),
)
_TOUCH_SESSION = Statement(
    update(sessions)
    .where(sessions.c.user_id == bindparam("user"), sessions.c.session_id == bindparam("session"))
    .values(updated_at=bindparam("now"), bytes=sessions.c.bytes + bindparam("size"))
)


class Begun(Struct, frozen=True, kw_only=True):
    """A run that has been started, or the earlier one that an idempotency key names (``is_new`` false).

    ``past`` is what goes upstream of its branch, oldest first: it ends with the user's message.
    """

    run: RunResource
    user_message_id: str
    is_new: bool
    past: Sequence[PastMessage] = ()


class _Tip(Struct, frozen=True):
    """Where new messages go: they follow ``parent_id`` in the tree and ``position`` in the session."""

    session_id: str
    position: int
    parent_id: str | None
    is_new: bool = False
    """The session."""


def begin(
    connection: Connection,
    user: str,
    request: ChatRequest,
    run_id: str,
    owner: str,
    quota: Quota,
    context_bytes: int,
) -> Begun:
    """Insert what the request starts: the user's message unless it is there, an empty answer, a running run.

    Of what precedes them, ``context_bytes`` go upstream.

    Raises:
        KeyReused, RunActive, NotFound, TooMany, QuotaExceeded: it cannot be started.
    """
    try:
        if found := earlier(connection, user, request):
            return found
        return _begin(connection, user, request, run_id, owner, quota, context_bytes)
    except RunActive:
        # PostgreSQL: it may be the run of this very request, begun elsewhere while this call waited for the session.
        if found := earlier(connection, user, request):
            return found
        raise


def _begin(
    connection: Connection,
    user: str,
    request: ChatRequest,
    run_id: str,
    owner: str,
    quota: Quota,
    context_bytes: int,
) -> Begun:
    now = timestamp()
    find_tip = _newest_tip if request.regenerate is None and request.parent_id is None else _named_tip
    tip = find_tip(connection, user, request, now)
    *asked, answer = _insert_messages(connection, user, tip, request.message, run_id, now)
    run = RunResource(
        run_id=run_id,
        session_id=tip.session_id,
        message_id=answer.message_id,
        status="running",
        last_seq=0,
        usage=None,
        created_at=now,
    )
    origin = {"user_id": user, "user_message_id": answer.parent_id, "owner": owner}
    identity = {"idempotency_key": request.idempotency_key, "request_digest": _digest(request)}
    _NEW_RUN.change(connection, asdict(run) | origin | identity)
    # The last, since on PostgreSQL all that the user begins waits here for the one before.
    add(connection, user, int(tip.is_new), _size(request), quota)
    past = [] if tip.parent_id is None else context(connection, tip.parent_id, context_bytes)
    past += [PastMessage(True, each.parts, ()) for each in asked]
    return Begun(run=run, user_message_id=str(answer.parent_id), is_new=True, past=past)


def _digest(request: ChatRequest) -> bytes:
    # Without what is absent, so that a field that ChatRequest gets later changes no digest of today's requests.
    fields = {name: getattr(request, name) for name in ChatRequest.__struct_fields__ if name != "idempotency_key"}
    present = {name: value for name, value in fields.items() if value is not None}
    return sha256(msgspec.json.encode(present, order="sorted")).digest()


def earlier(connection: Connection, user: str, request: ChatRequest) -> Begun | None:
    """The run that the request's idempotency key has started, if it has.

    Raises:
        KeyReused: with another request.
    """
    key = request.idempotency_key
    if key is None:
        return None
    query = select(*RUN_COLUMNS, runs.c.user_message_id, runs.c.request_digest)
    row = connection.execute(query.where(runs.c.user_id == user, runs.c.idempotency_key == key)).one_or_none()
    if row is None:
        return None
    *fields, user_message_id, first_digest = row
    if first_digest != _digest(request):
        raise KeyReused("the idempotency key was used with another request")
    run = RunResource(**dict(zip(RunResource.__struct_fields__, fields, strict=True)))
    return Begun(run=run, user_message_id=user_message_id, is_new=False)


def _newest_tip(connection: Connection, user: str, request: ChatRequest, now: str) -> _Tip:
    """After the newest message of the session, or the beginning of a new one."""
    if request.session_id is not None and _touch(connection, user, request.session_id, request, now):
        newest = _newest(connection, user, request.session_id)
        return _Tip(request.session_id, newest.position, newest.message_id)
    session_id = request.session_id or new_id()
    title = _title(parts_of(request.message or ""))
    row = {"user_id": user, "session_id": session_id, "title": title, "folded_title": folded(title)}
    _NEW_SESSION.change(connection, row | {"created_at": now, "updated_at": now, "bytes": _size(request)})
    return _Tip(session_id, 0, None, is_new=True)


def _named_tip(connection: Connection, user: str, request: ChatRequest, now: str) -> _Tip:
    """After the message that the request names: an answer to follow, or a user's message to answer again.

    Where another text takes the place of the latter: after what precedes it.
    """
    role, named = ("user", request.regenerate) if request.parent_id is None else ("assistant", request.parent_id)
    query = select(messages.c.session_id, messages.c.parent_id).where(
        messages.c.message_id == named, messages.c.user_id == user, messages.c.role == role
    )
    old = connection.execute(query).one_or_none()
    if (
        old is None
        or request.session_id not in (None, old.session_id)
        or not _touch(connection, user, old.session_id, request, now)
    ):
        raise NotFound
    newest = _newest(connection, user, old.session_id)
    is_edited = role == "user" and request.message is not None
    end = old.parent_id if is_edited else named
    return _Tip(old.session_id, newest.position, end)


def _touch(connection: Connection, user: str, session_id: str, request: ChatRequest, now: str) -> bool:
    """Mark the session as used now, if it is there; on PostgreSQL this is also the lock that others wait at."""
    parameters = {"user": user, "session": session_id, "now": now, "size": _size(request)}
    return _TOUCH_SESSION.change(connection, parameters) == 1


def _size(request: ChatRequest) -> int:
    """What its message takes as it is stored."""
    return json_bytes(parts_of(request.message)) + json_bytes(()) if request.message is not None else 0


class _Newest(Struct, frozen=True):
    message_id: str
    position: int


_NEWEST_TIP = Statement(
    select(messages.c.message_id, messages.c.position, runs.c.run_id)
    .outerjoin_from(
        messages,
        runs,
        (runs.c.user_id == messages.c.user_id)
        & (runs.c.session_id == messages.c.session_id)
        & runs.c.finished_at.is_(None),
    )
    .where(messages.c.user_id == bindparam("user"), messages.c.session_id == bindparam("session"))
    .order_by(messages.c.position.desc())
    .limit(1)
)


def _newest(connection: Connection, user: str, session_id: str) -> _Newest:
    [(message_id, position, active_run_id)] = _NEWEST_TIP.rows(connection, {"user": user, "session": session_id})
    if active_run_id is not None:
        raise RunActive(active_run_id)
    return _Newest(message_id, position)


def _title(message: UserParts) -> str:
    """The first line, its spaces collapsed, cut with an ellipsis. A message without text is named by what it shows."""
    names = [part.name for part in message if isinstance(part, FilePart)]
    text = text_of(message).strip() or next(iter(names), "Image")
    line = " ".join(text.splitlines()[0].split())
    return line if len(line) <= TITLE_CHARS_LIMIT else line[: TITLE_CHARS_LIMIT - 1].rstrip() + "…"


def _insert_messages(
    connection: Connection, user: str, tip: _Tip, said: Message | None, run_id: str, now: str
) -> list[MessageResource]:
    """Add the user's message, if the request brings one, and the empty answer to it; these."""
    new, parent_id = [], tip.parent_id
    if said is not None:
        new.append(_message(parent_id, now, "user", "complete", parts_of(said)))
        parent_id = new[0].message_id
    new.append(_message(parent_id, now, "assistant", "streaming", run_id=run_id))
    home = {"user_id": user, "session_id": tip.session_id}
    rows = []
    for position, each in enumerate(new, tip.position + 1):
        row = home | asdict(each) | {"position": position, "told_bytes": told_bytes(each.parts)}
        del row["content"]  # The parts tell it.
        rows.append(row)
    _NEW_MESSAGES.change(connection, *rows)
    return new


def _message(
    parent_id: str | None,
    now: str,
    role: Role,
    status: MessageStatus,
    parts: UserParts = (),
    run_id: str | None = None,
) -> MessageResource:
    return MessageResource(
        message_id=new_id(),
        parent_id=parent_id,
        role=role,
        content=text_of(parts),
        parts=parts,
        status=status,
        finish_reason=None,
        run_id=run_id,
        usage=None,
        created_at=now,
    )
