"""Databases: SQLite in threads, a pool on PostgreSQL, migrations before either.

The unit of work is a plain function over a ``Connection``. The function neither commits nor rolls back: it is a whole
transaction, or on SQLite shares a transaction with others. The function runs without pause in a thread (SQLite: one
hop for all its statements, where an async driver takes several hops a statement) or in a greenlet (PostgreSQL). Once
the function is handed over, it comes to its end, and anyio's cancellation waits for that.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from anyio import CancelScope
from sqlalchemy import URL, Connection, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from chatserver.errors import SettingsError
from chatserver.sessions.sqlite import WAIT_SECONDS, Sqlite
from chatserver.settings import variable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

POSTGRES_CONNECTIONS = 10
POSTGRES_COMMAND_SECONDS = 10.0
"""A transaction takes milliseconds; a connection that is silent for so long is dead."""

POSTGRES_IDLE_SECONDS = 3.0
"""After so long PostgreSQL ends a transaction in which nothing is asked. A process that was frozen or cut off in the
middle of one would keep its locks for hours otherwise, and nobody could end its runs."""

LIBPQ_PARAMETERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "sslmode": ("ssl", str),
    "connect_timeout": ("timeout", float),
}
"""Parameters of URLs made for libpq, each with its name in asyncpg. asyncpg binds channels by itself."""

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 7_264_187_309
"""The PostgreSQL advisory lock under which one process migrates while others wait; an arbitrary number."""

T = TypeVar("T")


class Database(Protocol):
    """Runs transactions. ``work`` may run again if the caller catches what it raised."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on one consistent state of the database."""
        ...

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` and commit: durable when this returns, undone when it raises.

        A commit that fails, fails for all transactions that share the commit.
        """
        ...

    def lock_file(self, owner: str) -> Path:
        """The path of the lock file of a process, where other processes on the same machine find it."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


@asynccontextmanager
async def open_database(database_url: str) -> AsyncIterator[Database]:
    """The database of a URL, at the newest schema.

    Raises:
        SettingsError: the URL is wrong, or nothing usable is there.
    """
    database = database_of(database_url)
    try:
        try:
            await database.write(migrate)
        except (DBAPIError, OSError, TypeError, ValueError) as error:  # asyncpg's for odd parameters
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise SettingsError(f"{variable('database_url')}: cannot be opened: {reason}") from None
        yield database
    finally:
        with CancelScope(shield=True):
            await database.close()


def database_of(database_url: str) -> Database:
    """What runs transactions in the database of a URL, which may not be there.

    Raises:
        SettingsError: the URL is wrong.
    """
    try:
        url = make_url(database_url)
    except ArgumentError:
        raise SettingsError(f"{variable('database_url')}: is no URL of a database") from None
    match url.drivername:
        case "sqlite" if url.database and ":memory:" not in url.database:
            return Sqlite(url)
        case "postgresql" | "postgres":
            return _Postgres(url)
    raise SettingsError(f"{variable('database_url')}: is neither sqlite:///FILE nor postgresql://…")


def migrate(connection: Connection, version: str = "head") -> None:
    """Bring the schema to a version, the newest, in the caller's transaction.

    Raises:
        ValueError: the database has a schema of a version that is unknown here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # It may compute for long.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    if version == "head" and _version(connection) == max(each.name[1:5] for each in MIGRATIONS.glob("versions/v*.py")):
        return
    # Imported here: most starts find the newest schema.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, version)
    except CommandError as error:
        raise ValueError(error) from None


def _version(connection: Connection) -> str | None:
    """The version of the schema; None: nothing is there yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


class _Postgres:
    """A pool of asyncpg connections."""

    def __init__(self, url: URL) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine  # It imports much that SQLite does not need.

        try:
            given = {
                name: convert(str(url.query[libpq]))
                for libpq, (name, convert) in LIBPQ_PARAMETERS.items()
                if libpq in url.query
            }
            self._engine = create_async_engine(
                url.set(drivername="postgresql+asyncpg").difference_update_query(
                    [*LIBPQ_PARAMETERS, "channel_binding"]
                ),
                hide_parameters=True,
                pool_size=POSTGRES_CONNECTIONS,
                max_overflow=0,
                pool_timeout=WAIT_SECONDS,
                pool_pre_ping=True,  # A restarted PostgreSQL costs a round trip here, not a failed answer.
                connect_args={
                    "timeout": WAIT_SECONDS,
                    "command_timeout": POSTGRES_COMMAND_SECONDS,
                    **given,
                },
            )
        except ValueError as error:
            raise SettingsError(f"{variable('database_url')}: {error}") from None
        except ModuleNotFoundError as error:
            raise SettingsError(f"{variable('database_url')}: PostgreSQL needs the package {error.name}") from None
        event.listen(self._engine.sync_engine, "connect", _limit_idle_transactions)
        self._snapshot = self._engine.execution_options(isolation_level="REPEATABLE READ")
        self._under_way = set[asyncio.Task[Any]]()

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._begun(self._snapshot, work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._begun(self._engine, work)

    async def _begun(self, engine: "AsyncEngine", work: Callable[[Connection], T]) -> T:
        """Hand a transaction over: it comes to its end though its caller is cancelled, also by asyncio, as on SQLite.

        asyncpg would lose the connection, and leave an exception that nobody retrieves.
        """
        task = asyncio.create_task(_transact(engine, work))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        with CancelScope(shield=True):
            return await asyncio.shield(task)
        raise AssertionError("a scope that nobody cancels swallows nothing")

    def lock_file(self, owner: str) -> Path:
        return Path(gettempdir(), f"chatserver-{owner}.lock")

    async def close(self) -> None:
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._engine.dispose()


async def _transact(engine: "AsyncEngine", work: Callable[[Connection], T]) -> T:
    async with engine.begin() as connection:
        return await connection.run_sync(work)


def _limit_idle_transactions(connection: Any, _: object) -> None:
    """Not as a parameter of the connection: a PgBouncer refuses those that it does not know."""
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = {round(POSTGRES_IDLE_SECONDS * 1000)}")
    cursor.close()
    connection.commit()
