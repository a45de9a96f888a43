"""SQLite: one thread writes, so that no thread polls for SQLite's lock; a few threads read beside it."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic, sleep
from typing import Any, TypeAlias, TypeVar, cast

from anyio import CancelScope, CapacityLimiter, to_thread
from anyio.lowlevel import checkpoint_if_cancelled
from sqlalchemy import URL, Connection, create_engine, event

READERS = 4
"""How many threads and connections read at once. Readers never wait for the writer (WAL), only for a processor."""

WAIT_SECONDS = 5.0
"""How long a database that is locked or gone is waited for: here the writer of another process. Within a process,
writes queue up."""

RETRY_SECONDS = 0.01
"""Between two tries of what SQLite does not wait for by itself."""

WRITES_AT_ONCE = 64
"""How many transactions share a commit at most: the first of many need not wait for the last."""

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], Any]


class _Write:
    """A transaction, the future of its caller, and its outcome."""

    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Work, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():
            return  # The caller's task was cancelled, and not by anyio.
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Sqlite:
    """The ``Database`` in a file.

    Transactions that come while the disk is busy share the next commit (group commit), each in a savepoint of its own.
    Measured with ten runs at a time: 430 µs of this thread's CPU a run, 720 µs with a commit for each transaction.
    """

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(
            url,
            hide_parameters=True,  # An error's text would quote messages into the server's log.
            pool_size=1 + READERS,
            max_overflow=0,
            connect_args={"timeout": WAIT_SECONDS},
        )
        event.listen(self._engine, "connect", _prepare)
        self._path = Path(str(url.database)).absolute()
        self._file: tuple[int, int] | None = None
        """Device and inode of the file, from the first commit on."""

        self._has_been_away = False
        """Another file may have had its name: whoever had that open may have removed what the connections share."""

        self._readers = CapacityLimiter(READERS)
        self._writes: SimpleQueue[_Write | None] = SimpleQueue()
        self._writer: Thread | None = None
        self._writing: Connection | None = None
        """The writer's, as long as nothing fails: to take one from the pool costs half as much as to begin with it."""

        self._is_closed = False

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await to_thread.run_sync(self._read, work, limiter=self._readers)

    async def write(self, work: Callable[[Connection], T]) -> T:
        await checkpoint_if_cancelled()
        # From here on the write will happen, and the caller must know of it: so anyio's cancellation waits.
        with CancelScope(shield=True):
            return await self._enqueued(work)
        raise AssertionError("a scope that nobody cancels swallows nothing")

    def _enqueued(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        if self._is_closed:
            raise RuntimeError("the database is closed")
        loop = asyncio.get_running_loop()
        if self._writer is None:
            self._writer = Thread(target=self._write_all, args=(loop,), name="sqlite-writer", daemon=True)
            self._writer.start()
        future: asyncio.Future[T] = loop.create_future()
        self._writes.put(_Write(work, future))
        return future

    def lock_file(self, owner: str) -> Path:
        return self._path.with_name(f"{self._path.name}-{owner}.lock")

    async def close(self) -> None:
        self._is_closed = True
        if self._writer is not None:
            self._writes.put(None)
            await to_thread.run_sync(self._writer.join)
        await to_thread.run_sync(self._engine.dispose)

    # In the threads.

    def _check_file(self) -> None:
        # SQLite would go on in a file without a name, or begin an empty file beside the open one.
        if self._file is not None and self._file != _identity(self._path):
            self._has_been_away = True
            raise FileNotFoundError("the database file was removed or replaced")

    def _read(self, work: Callable[[Connection], T]) -> T:
        self._check_file()
        with self._engine.begin() as connection:
            # Not by a listener: an engine with listeners calls them at each statement.
            _execute(connection, "BEGIN")
            return work(connection)

    def _write_all(self, loop: asyncio.AbstractEventLoop) -> None:
        while (first := self._writes.get()) is not None:
            batch: list[_Write] = [first]
            while len(batch) < WRITES_AT_ONCE and not self._writes.empty():
                if (another := self._writes.get()) is None:
                    self._writes.put(None)
                    break
                batch.append(another)
            self._commit(batch)
            loop.call_soon_threadsafe(_settle, batch)
        self._let_go()

    def _commit(self, batch: list[_Write]) -> None:
        """Commit a batch at once. If this fails, commit each write alone: a full disk refuses only the large ones."""
        has_begun = False
        try:
            self._check_file()
            connection = self._writing = self._connected()
            with connection.begin():
                # Lock first: a transaction that reads and then writes fails if another has written meanwhile.
                _execute(connection, "BEGIN IMMEDIATE")
                has_begun = True
                if len(batch) == 1:  # A single write needs no savepoint: two statements less.
                    batch[0].result = batch[0].work(connection)
                else:
                    for write in batch:
                        _write_in_savepoint(connection, write)
            self._file = self._file or _identity(self._path)
        except BaseException as error:  # noqa: BLE001 - each caller gets it
            self._let_go()
            if has_begun and len(batch) > 1:
                for write in batch:
                    write.error = None
                    self._commit([write])
            else:
                for write in batch:
                    write.error = error

    def _connected(self) -> Connection:
        """The writer's connection."""
        if self._has_been_away:
            self._has_been_away = False
            self._let_go()
            self._engine.dispose()
        return self._writing or self._engine.connect()

    def _let_go(self) -> None:
        """Give the writer's connection back to the pool, which rolls back whatever is open there."""
        if self._writing is not None:
            self._writing.close()
            self._writing = None


def _write_in_savepoint(connection: Connection, write: _Write) -> None:
    """Undo a failing write alone. If SQLite has rolled the whole transaction back, there is no savepoint any more."""
    _execute(connection, "SAVEPOINT one")
    try:
        write.result = write.work(connection)
    except Exception as error:  # noqa: BLE001 - the caller gets it
        write.error = error
        _execute(connection, "ROLLBACK TO one")
    _execute(connection, "RELEASE one")


def _execute(connection: Connection, statement: str) -> None:
    """Have the driver do it, in a third of SQLAlchemy's time."""
    cast(sqlite3.Connection, connection.connection.driver_connection).execute(statement)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _settle(batch: list[_Write]) -> None:
    for write in batch:
        write.settle()


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # The driver must not begin transactions: it would begin them too late.
    _use_wal(connection)
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite refuses this at once while another process does it: two that begin a file would wait for each other."""
    deadline = monotonic() + WAIT_SECONDS
    while True:
        try:
            return connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # The other bits say why.
            if not is_busy or monotonic() > deadline:
                raise
        sleep(RETRY_SECONDS)
