"""A PostgreSQL that is not there yet when this server starts: both may start at the same time, or it is restarted."""

import logging
from contextlib import suppress
from time import monotonic

import anyio
from sqlalchemy.exc import DBAPIError

from chatserver.errors import SettingsError
from chatserver.sessions.database import Database, database_of
from chatserver.sessions.sqlite import Sqlite
from chatserver.settings import variable

logger = logging.getLogger(__name__)

ARRIVAL_SECONDS = 30.0
"""How long it is waited for. A service manager starts a server anew that has ended; a worker has 60 s until it serves.
"""

BETWEEN_TRIES_SECONDS = 0.5

PASSING_STATES = ("08", "53", "57")
"""How the SQLSTATEs begin that pass by themselves: no connection, no connection left, told to stop or starting."""


async def await_database(database_url: str) -> None:
    """Return when the database can be opened, or will not be by waiting: whoever opens it says why."""
    with suppress(SettingsError):
        database = database_of(database_url)
        try:
            if not isinstance(database, Sqlite):
                await _await(database)
        finally:
            await database.close()


async def _await(database: Database) -> None:
    give_up_at, is_told = monotonic() + ARRIVAL_SECONDS, False
    while (trouble := await _trouble_of(database)) and monotonic() < give_up_at:
        if not is_told:
            words = "%s: the database is waited for, at most %.0f s: %s"
            logger.warning(words, variable("database_url"), ARRIVAL_SECONDS, trouble)
            is_told = True
        await anyio.sleep(BETWEEN_TRIES_SECONDS)


async def _trouble_of(database: Database) -> str | None:
    """Why the database cannot be used, if that may pass by itself."""
    try:
        await database.read(lambda _: None)
    except OSError as error:  # There is no server, no name of it, or no answer in time.
        return str(error) or type(error).__name__
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        return str(error.orig) if state.startswith(PASSING_STATES) else None
    except (TypeError, ValueError):  # asyncpg's for odd parameters
        return None
    return None
