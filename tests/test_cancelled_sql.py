"""Operations of the database that are cancelled at any moment: what one user asked for never comes to another."""

import asyncio
import gc
from random import Random

import pytest
from anyio import CancelScope, create_task_group, fail_after, sleep
from anyio.lowlevel import checkpoint
from sqlalchemy import Connection

from chatserver.errors import RunActive
from chatserver.sessions import Sessions, leases
from tests.conftest import Scale
from tests.databases import ask, ended, texts
from tests.proving import seeded, tell

pytestmark = [pytest.mark.anyio, pytest.mark.proof, pytest.mark.timeout(900)]

USERS = 20
AT_ONCE = 40


class Crowd:
    """Users who ask for what is theirs, all at once, and are cancelled at random."""

    def __init__(self, sessions: Sessions, rng: Random) -> None:
        self._sessions = sessions
        self._rng = rng
        self.answered = 0
        self.disturbed = 0
        """Operations that were cancelled before they were over; PostgreSQL's are over all the same."""

    async def begin(self) -> None:
        for user in map(str, range(USERS)):
            await self._write(user)

    async def _write(self, user: str) -> None:
        begun = await ask(self._sessions, f"asked by {user}", user=user, session_id="s")
        assert begun.is_new
        await ended(self._sessions, begun, f"told {user}")

    async def _read(self, user: str) -> None:
        found = await texts(self._sessions, "s", user=user)
        assert set(found) <= {f"asked by {user}", f"told {user}", ""}, f"{user} was told {found}"

    async def _list(self, user: str) -> None:
        (only,) = (await self._sessions.page(user, 10, None)).sessions
        assert only.title == f"asked by {user}"

    async def once(self) -> None:
        """One operation of any user; a write may meet a run whose end was cancelled."""
        user = str(self._rng.randrange(USERS))
        operation = self._rng.choice([self._write, self._read, self._read, self._list])
        try:
            await operation(user)
        except RunActive as active:
            await self._sessions.interrupt(active.run_id)
        self.answered += 1

    async def once_or_never(self, scope: CancelScope) -> None:
        with scope:
            try:
                await self.once()
            finally:
                self.disturbed += scope.cancel_called


async def cancels_at_random(sessions: Sessions, rng: Random, count: int) -> None:
    """Of so many operations half are cancelled; afterwards every user has what is theirs, and connections are free."""
    crowd = Crowd(sessions, rng)
    await crowd.begin()
    for _ in range(count // AT_ONCE):
        scopes = [CancelScope() for _ in range(AT_ONCE)]
        async with create_task_group() as tasks:
            for scope in scopes:
                tasks.start_soon(crowd.once_or_never, scope)
            for scope in rng.sample(scopes, AT_ONCE // 2):
                await sleep(rng.choice([0, 0, 0.0005, 0.002]))
                scope.cancel()
    tell(f"{crowd.answered} answered, {crowd.disturbed} cancelled before")
    assert min(crowd.answered, crowd.disturbed) > count / 20
    for _ in range(USERS):
        await crowd.once()


async def test_a_cancelled_operation_leaves_nothing_behind_for_another(sessions: Sessions, scale: Scale) -> None:
    with fail_after(800):
        await cancels_at_random(sessions, seeded(), scale(400, 20_000))


async def test_an_operation_that_asyncio_cancels_comes_to_its_end_and_leaves_no_exception_behind(
    sessions: Sessions,
) -> None:
    """As tasks are cancelled when the server ends. On PostgreSQL the connection was lost with the transaction."""
    loop, told = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        for number in range(20):
            begun = asyncio.Event()

            def work(connection: Connection, owner: str = f"process {number}", begun: asyncio.Event = begun) -> None:
                loop.call_soon_threadsafe(begun.set)
                leases._beat(connection, owner)

            writing = asyncio.create_task(sessions._database.write(work))
            with fail_after(20):
                await begun.wait()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        await until_written(sessions, {f"process {number}" for number in range(20)})
        gc.collect()
        await checkpoint()
    finally:
        loop.set_exception_handler(None)
    assert told == []


async def until_written(sessions: Sessions, processes: set[str]) -> None:
    with fail_after(20):
        while not processes <= (await sessions._database.read(leases._owners_and_beats))[1].keys():  # noqa: ASYNC110
            await sleep(0.01)
