"""A PostgreSQL that is slow, or has no connection left: whoever asks is refused soon, and served when it is over."""

import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import Connection, text

from chatserver.errors import Unavailable
from chatserver.sessions import Sessions, database, open_sessions
from chatserver.sessions.trouble import Troubled
from chatserver.telemetry import UNOBSERVED
from tests.databases import answered

pytestmark = pytest.mark.anyio

SECONDS = 0.5
"""How long PostgreSQL may be silent, and a caller waits for a connection."""

CALLERS = 3 * database.POSTGRES_CONNECTIONS


@pytest.fixture
async def hasty(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sessions]:
    """Sessions that wait for PostgreSQL for ``SECONDS``."""
    monkeypatch.setattr(database, "POSTGRES_COMMAND_SECONDS", SECONDS)
    monkeypatch.setattr(database, "WAIT_SECONDS", SECONDS)
    async with open_sessions(postgres_url) as sessions:
        yield sessions


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """Every statement about sessions waits, as in a migration of somebody's own."""
    other = await asyncpg.connect(url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


@asynccontextmanager
async def full(url: str) -> AsyncIterator[None]:
    """Other programs have all connections."""
    others = list[asyncpg.Connection]()
    try:
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.append(await asyncpg.connect(url))
        yield
    finally:
        for each in others:
            await each.close()


async def outcomes(sessions: Sessions) -> Counter[bool]:
    """How many callers are answered, and how many refused, of more than there are connections."""
    counted = Counter[bool]()

    async def ask() -> None:
        try:
            await sessions.page("ann", 10, None)
            counted[True] += 1
        except Unavailable:
            counted[False] += 1

    with anyio.fail_after(20 * SECONDS):
        async with anyio.create_task_group() as tasks:
            for _ in range(CALLERS):
                tasks.start_soon(ask)
    return counted


async def served_again(sessions: Sessions) -> None:
    with anyio.fail_after(20):
        while (await outcomes(sessions))[False]:  # noqa: ASYNC110 - PostgreSQL tells nobody
            await anyio.sleep(0.05)
    await answered(sessions, "Hi", "Yes", user="ann")


async def test_who_stands_still_within_a_transaction_loses_its_locks(
    hasty: Sessions, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await answered(hasty, "Hi", "Yes", user="ann")
    monkeypatch.setattr(database, "POSTGRES_IDLE_SECONDS", 0.2)
    lock = text("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
    has_locked, goes_on = threading.Event(), threading.Event()

    def stand_still(connection: Connection) -> None:
        connection.execute(lock)
        has_locked.set()
        goes_on.wait()
        connection.execute(lock)

    async def frozen() -> None:
        async with database.open_database(postgres_url) as opened:
            frozen = Troubled(opened, UNOBSERVED)
            with pytest.raises(Unavailable):
                await frozen.write(stand_still)
            await frozen.write(lambda connection: connection.execute(lock))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, anyio.run, frozen)
        await anyio.to_thread.run_sync(has_locked.wait)
        try:
            await answered(hasty, "And now?", "Yes", user="ann")
        finally:
            goes_on.set()


async def test_whoever_waits_for_a_slow_postgres_is_refused_soon(hasty: Sessions, postgres_url: str) -> None:
    await answered(hasty, "Hi", "Yes", user="ann")
    async with locked(postgres_url):
        assert await outcomes(hasty) == {False: CALLERS}
    await served_again(hasty)


async def test_where_no_connection_is_left_those_there_are_go_on(hasty: Sessions, postgres_url: str) -> None:
    await answered(hasty, "Hi", "Yes", user="ann")
    async with full(postgres_url):
        counted = await outcomes(hasty)
        assert counted.total() == CALLERS and counted[False] > 0
    await served_again(hasty)
