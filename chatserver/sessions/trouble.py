"""A database that is locked for long, full, read-only or gone: one refusal for callers, one line in the log."""

import logging
import sqlite3
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from chatserver.errors import Unavailable
from chatserver.sessions.database import Database
from chatserver.telemetry import UNOBSERVED, Observer

logger = logging.getLogger(__name__)

LOG_AGAIN_SECONDS = 60.0
"""Between two lines in the log: a full disk takes small writes and refuses large ones, in turns."""

_SQLITE_CODES = frozenset({
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
})  # fmt: skip

_POSTGRES_STATES = ("08", "25006", "25P03", "28", "3D", "40", "53", "55", "57", "58", "XX")
"""How the SQLSTATEs of trouble begin: no connection, read-only, idle for too long, authorization, no database,
serialization failure, out of resources, in use, told to stop, internal error."""

T = TypeVar("T")


class Troubled:
    """A ``Database`` that raises ``Unavailable`` where the database is in trouble, and logs when trouble begins."""

    def __init__(self, database: Database, observer: Observer = UNOBSERVED) -> None:
        self._database = database
        self._observer = observer
        self._reported_at = -inf
        self._is_reported = False

    async def read(self, work: Callable[[Connection], T]) -> T:
        try:
            result = await self._database.read(work)
        except Exception as error:
            self._check(error)
            raise
        self._works()
        return result

    async def write(self, work: Callable[[Connection], T]) -> T:
        began = monotonic()
        try:
            result = await self._database.write(work)
        except Exception as error:
            self._check(error)
            raise
        self._works()
        self._observer.committed(monotonic() - began)
        return result

    def lock_file(self, owner: str) -> Path:
        return self._database.lock_file(owner)

    async def close(self) -> None:
        await self._database.close()

    def _check(self, error: Exception) -> None:
        """Refuse, where the error is the database's."""
        if _is_trouble(error):
            self._report(error)
            raise Unavailable("the database cannot be used now") from None

    def _works(self) -> None:
        if self._is_reported:
            self._is_reported = False
            logger.warning("the database can be used again")

    def _report(self, error: Exception) -> None:
        now = monotonic()
        if now - self._reported_at >= LOG_AGAIN_SECONDS:
            self._reported_at, self._is_reported = now, True
            reason = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
            logger.error("the database cannot be used, what needs it is refused: %s", reason or type(error).__name__)


def _is_trouble(error: Exception) -> bool:
    """Whether the fault is the database's, and not the statement's."""
    if isinstance(error, OSError | PoolTimeoutError | InterfaceError):  # The first: asyncpg's connections, time-outs.
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_CODES
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_lost or str(state).startswith(_POSTGRES_STATES)
