"""Changes of a session as a whole: rename and delete."""

from collections.abc import Collection

from sqlalchemy import Connection, delete, update

from chatserver.commands import checked_id
from chatserver.resources import SessionResource
from chatserver.sessions.holdings import add
from chatserver.sessions.queries import session_resource
from chatserver.sessions.schema import folded, sessions


def rename(connection: Connection, user: str, session_id: str, title: str) -> SessionResource:
    """Give a session another title; ``updated_at`` stays.

    Raises:
        NotFound: the user has no such session.
    """
    mine = (sessions.c.user_id == user, sessions.c.session_id == checked_id(session_id))
    connection.execute(update(sessions).where(*mine).values(title=title, folded_title=folded(title)))
    return session_resource(connection, user, session_id)


def remove(connection: Connection, user: str, session_id: str, ended: Collection[str] = ()) -> str | None:
    """Delete a session with its messages and runs, unless a run goes on in it that is none of ``ended``: that run's id.

    Raises:
        NotFound: the user has no such session.
    """
    mine = (sessions.c.user_id == user, sessions.c.session_id == checked_id(session_id))
    # First what whoever begins a run waits for, on PostgreSQL: no run begins from here on.
    connection.execute(update(sessions).where(*mine).values(updated_at=sessions.c.updated_at))
    active = session_resource(connection, user, session_id).active_run_id
    if active is not None and active not in ended:
        return active
    size = connection.execute(delete(sessions).where(*mine).returning(sessions.c.bytes)).scalar_one()
    add(connection, user, -1, -size)
    return None
