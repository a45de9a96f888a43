"""Changes of a session as a whole: rename and delete."""

from sqlalchemy import Connection, delete, update

from chatserver.commands import checked_id
from chatserver.errors import NotFound
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


def remove(connection: Connection, user: str, session_id: str) -> None:
    """Delete a session with its messages and runs.

    Raises:
        NotFound: the user has no such session.
    """
    mine = (sessions.c.user_id == user, sessions.c.session_id == checked_id(session_id))
    size = connection.execute(delete(sessions).where(*mine).returning(sessions.c.bytes)).scalar()
    if size is None:
        raise NotFound
    add(connection, user, -1, -size)
