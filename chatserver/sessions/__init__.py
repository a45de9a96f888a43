"""Sessions: durable dialogues of users, their messages and the runs that answer them.

Each method is one transaction, and what it changed is on disk when it returns. A session, message or run of another
user is not found, as if there were none. Nothing is written per token, and no text is logged.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from chatserver.answer import Answer
from chatserver.commands import ChatRequest, new_id
from chatserver.dialogue import PastMessage
from chatserver.errors import Unavailable
from chatserver.events import Terminal, Usage
from chatserver.log import StoredLog
from chatserver.resources import PAGE_LIMIT, RunResource, SessionDetail, SessionPage, SessionResource
from chatserver.sessions import begin, branches, edit, end, leases, queries
from chatserver.sessions.begin import Begun
from chatserver.sessions.database import Database, open_database
from chatserver.sessions.end import Progress
from chatserver.sessions.holdings import Quota
from chatserver.sessions.leases import Lease
from chatserver.sessions.trouble import Troubled
from chatserver.sessions.waits import Parked, Waits
from chatserver.sessions.witness import DatabaseAlone, Left, Witness
from chatserver.telemetry import UNOBSERVED, Observer

__all__ = ["DATABASE_ALONE", "Begun", "Parked", "Progress", "Quota", "Sessions", "Witness", "open_sessions"]

PROBE_SECONDS = 1.0
"""How old the knowledge may be that the database can be written, and how long it may take to get."""

NO_QUOTA = Quota()
DATABASE_ALONE = DatabaseAlone()

BEGIN_ATTEMPTS = 3
"""A lost race for a key or a session shows in the second attempt; the third is for one deleted in between."""


class Sessions:
    """The store of one database. ``user`` is the owner's id throughout."""

    def __init__(self, database: Database, lease: Lease, quota: Quota) -> None:
        self._database = database
        self._lease = lease
        self._quota = quota
        self.waits = Waits(database, lease)
        self._probe: asyncio.Task[bool] | None = None
        self._probed_at = 0.0

    async def is_writable(self) -> bool:
        """Whether the database takes what is written, as of now or a second ago; answered within a second."""
        if self._probe is None or (self._probe.done() and monotonic() - self._probed_at >= PROBE_SECONDS):
            self._probed_at = monotonic()
            self._probe = asyncio.create_task(self._touched())
        done, _ = await asyncio.wait([self._probe], timeout=PROBE_SECONDS)
        return bool(done) and self._probe.result()

    async def _touched(self) -> bool:
        with suppress(Unavailable):
            await self._lease.touch()
            return True
        return False

    def on_loss(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Call this when other processes have taken this one for dead: ``unfinished`` says what they have not ended.

        It is called again later where it raises ``Unavailable``.
        """
        self._lease.on_loss = tell

    def on_taken(self, tell: Callable[[], None]) -> None:
        """Call this when runs of a dead process were ended or parked here."""
        self._lease.on_taken = tell

    async def begin(
        self,
        user: str,
        request: ChatRequest,
        run_id: str,
        on_begun: Callable[[Begun], None] | None = None,
        context_bytes: int = 0,
    ) -> Begun:
        """Start a run, or find the one that the request's idempotency key started.

        Of what precedes it in its branch, the newest messages are read that take ``context_bytes`` upstream: at least
        one.

        ``on_begun`` is called in the loop, before this returns, when nothing but the disk can refuse the new run any
        more. Where the transaction has to be repeated it is called again, and what it was given first is void.

        Raises:
            KeyReused: the key was used with another request.
            RunActive: the session is busy with another run.
            NotFound: the user has no such message to regenerate or to go on from.
            TooMany, QuotaExceeded: the user has as much stored as one may have.
            Unavailable: other processes may be about to take this one for dead.
        """
        if self._lease.is_stale:
            raise Unavailable("the database was not reached for a while", retry_after=1)
        loop, owner, quota = asyncio.get_running_loop(), self._lease.owner, self._quota

        def work(connection: Connection) -> Begun:
            begun = begin.begin(connection, user, request, run_id, owner, quota, context_bytes)
            if begun.is_new and on_begun is not None:
                loop.call_soon_threadsafe(on_begun, begun)
            return begun

        for _ in range(BEGIN_ATTEMPTS - 1):
            try:
                return await self._database.write(work)
            except IntegrityError:  # Another process, or on PostgreSQL another connection, was first: look again.
                pass
        return await self._database.write(work)

    async def context(self, message_id: str, bytes_limit: int) -> list[PastMessage]:
        """What goes upstream of a branch, oldest first: it ends with this message, and begins where it is too long.

        Whose the messages are has been asked before (``begin``).
        """
        work = partial(branches.context, message_id=message_id, bytes_limit=bytes_limit)
        return await self._database.read(work)

    async def earlier(self, user: str, request: ChatRequest) -> Begun | None:
        """The run that the request's idempotency key has started, if it has.

        Raises:
            KeyReused: the key was used with another request.
        """
        return await self._database.read(partial(begin.earlier, user=user, request=request))

    async def finish(
        self,
        run_id: str,
        *,
        ending: Terminal,
        answer: Answer,
        log: StoredLog,
        usage: Usage | None,
        billed: int = 0,
    ) -> None:
        """Keep a run's end: its outcome, its whole log, its answer. The first end counts.

        ``billed`` of its tokens were counted while it waited.

        Raises:
            RunLost: another process has ended the run, or deleted it with its session; nothing is kept.
        """
        progress = Progress(answer, log, usage, billed)
        work = partial(end.finish, ending=ending, progress=progress, owner=self._lease.owner)
        try:
            await self._database.write(partial(work, run_id=run_id))
        except Unavailable:
            # If the connection was lost at the commit, the end is kept all the same.
            if not await self._database.read(partial(end.has_ended, run_id=run_id, owner=self._lease.owner)):
                raise

    async def checkpoint(self, answers: Mapping[str, Answer]) -> None:
        """Keep what active runs, by id, have said so far, for the case that this process dies."""
        await self._database.write(partial(end.checkpoint, answers=answers))

    async def interrupt_abandoned(self) -> list[str]:
        """End every run whose process is gone as ``interrupted``; the ids of those runs."""
        return await self._lease.end_abandoned()

    async def unfinished(self) -> list[str]:
        """The ids of the runs that this process has begun and not ended."""
        return await self._database.read(partial(leases.unfinished, owner=self._lease.owner))

    async def interrupt(self, run_id: str) -> None:
        """End a run as ``interrupted`` with what was stored of its answer; one that waits, or is over, stays so."""
        owner = self._lease.owner
        await self._database.write(partial(end.interrupt, left={run_id: Left()}, left_by=owner, owner=owner))

    async def run(self, user: str, run_id: str) -> RunResource:
        """A run; ``last_seq`` is 0 until it is over.

        Raises:
            NotFound: the user has no such run.
        """
        return await self._database.read(partial(queries.run, user=user, run_id=run_id))

    async def log(self, run_id: str) -> StoredLog | None:
        """The log that a finished run left; None: it goes on. Whose it is has been asked before (``run``).

        Raises:
            NotFound: there is no such run.
        """
        return await self._database.read(partial(queries.log, run_id=run_id))

    async def spent_on(self, user: str, day: str) -> int:
        """The model tokens of the user's runs that ended on this day (UTC, ISO 8601), deleted ones too."""
        return await self._database.read(partial(queries.spent_on, user=user, day=day))

    async def page(self, user: str, limit: int, cursor: str | None, search: str | None = None) -> SessionPage:
        """Up to ``limit`` (1 or more) sessions, the last used one first; ``cursor`` is that of the page before.

        Where ``search`` is given, only sessions whose title has it in it, whatever the case.

        Raises:
            BadCursor: no page gave it.
        """
        work = partial(queries.page, user=user, limit=limit, cursor=cursor, search=search)
        return await self._database.read(work)

    async def session(
        self,
        user: str,
        session_id: str,
        all_branches: bool = False,
        limit: int = PAGE_LIMIT,
        cursor: str | None = None,
    ) -> SessionDetail:
        """A session with the newest messages of its newest branch, or of all, oldest first; at most ``limit`` of them.

        ``cursor`` is that of the page after.

        Raises:
            NotFound: the user has no such session.
            BadCursor: no page gave it.
        """
        work = partial(
            queries.session, user=user, session_id=session_id, all_branches=all_branches, limit=limit, cursor=cursor
        )
        return await self._database.read(work)

    async def rename(self, user: str, session_id: str, title: str) -> SessionResource:
        """Give a session another title.

        Raises:
            NotFound: the user has no such session.
        """
        return await self._database.write(partial(edit.rename, user=user, session_id=session_id, title=title))

    async def delete(self, user: str, session_id: str, ended: Collection[str] = ()) -> str | None:
        """Delete a session with its messages and runs, unless a run goes on in it that is none of ``ended``.

        The id of that run; None: the session is deleted.

        Raises:
            NotFound: the user has no such session.
        """
        work = partial(edit.remove, user=user, session_id=session_id, ended=frozenset(ended))
        return await self._database.write(work)


@asynccontextmanager
async def open_sessions(
    database_url: str,
    quota: Quota = NO_QUOTA,
    owner: str | None = None,
    witness: Witness = DATABASE_ALONE,
    observer: Observer = UNOBSERVED,
) -> AsyncIterator[Sessions]:
    """The sessions in the database of a URL (``sqlite:///FILE`` or ``postgresql://…``), at the newest schema.

    ``owner`` is the id of this process as the owner of runs, None: a new one; ``witness`` knows who else lives.

    Raises:
        SettingsError: the URL is wrong, or nothing usable is there.
    """
    async with open_database(database_url) as opened:
        database = Troubled(opened, observer)
        async with Lease(database, owner or new_id(), witness, observer) as lease:
            yield Sessions(database, lease, quota)
