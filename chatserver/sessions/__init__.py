"""Sessions: durable dialogues of users, their messages and the runs that answer them.

Each method is one transaction, and what it changed is on disk when it returns. A session, message or run of another
user is not found, as if there were none. Nothing is written per token, and no text is logged.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy.exc import IntegrityError

from chatserver.commands import ChatRequest
from chatserver.events import Answer, Record, Terminal, Usage
from chatserver.records import RunRecord, SessionDetail, SessionPage, SessionRecord
from chatserver.sessions import begin, edit, end, read
from chatserver.sessions.begin import Begun
from chatserver.sessions.branches import MESSAGES_LIMIT
from chatserver.sessions.database import Database, open_database
from chatserver.sessions.end import INTERRUPTED

__all__ = ["INTERRUPTED", "Begun", "Sessions", "open_sessions"]

BEGIN_ATTEMPTS = 3
"""A lost race for a key or a session shows in the second attempt; the third is for one deleted in between."""


class Sessions:
    """The store of one database. ``user`` is the owner's id throughout."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, user: str, request: ChatRequest, run_id: str) -> Begun:
        """Start a run, or find the one that the request's idempotency key started.

        Raises:
            KeyReused: the key was used with another request.
            RunActive: the session is busy with another run.
            NotFound: the user has no such message to regenerate.
        """
        work = partial(begin.begin, user=user, request=request, run_id=run_id)
        for _ in range(BEGIN_ATTEMPTS - 1):
            try:
                return await self._database.write(work)
            except IntegrityError:  # Another process, or on PostgreSQL another connection, was first: look again.
                pass
        return await self._database.write(work)

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
        records: Sequence[Record],
        usage: Usage | None,
    ) -> None:
        """Keep a run's end: its outcome, its log as it shall be read from now on, its answer. The first end counts.

        Of a run that was deleted with its session nothing is kept, and nothing is said.
        """
        await self._database.write(
            partial(end.finish, run_id=run_id, ending=ending, answer=answer, records=records, usage=usage)
        )

    async def checkpoint(self, answers: Mapping[str, Answer]) -> None:
        """Keep what active runs, by id, have said so far, for the case that this process dies."""
        await self._database.write(partial(end.checkpoint, answers=answers))

    async def interrupt_unfinished(self) -> list[str]:
        """At start: end every run that an earlier process left active as ``interrupted``; the ids of those runs."""
        return await self._database.write(end.interrupt_unfinished)

    async def run(self, user: str, run_id: str) -> RunRecord:
        """A run; ``last_seq`` is 0 until it is over.

        Raises:
            NotFound: the user has no such run.
        """
        return await self._database.read(partial(read.run, user=user, run_id=run_id))

    async def records(self, run_id: str) -> list[Record]:
        """The log that a finished run left; empty for any other. Whose it is has been asked before (``run``)."""
        return await self._database.read(partial(read.records, run_id=run_id))

    async def spent_on(self, user: str, day: str) -> int:
        """The model tokens of the user's runs that ended on this day (UTC, ISO 8601), deleted ones too."""
        return await self._database.read(partial(read.spent_on, user=user, day=day))

    async def page(self, user: str, limit: int, cursor: str | None, search: str | None = None) -> SessionPage:
        """Up to ``limit`` (1 or more) sessions, the last used one first; ``cursor`` is that of the page before.

        Where ``search`` is given, only sessions whose title has it in it, whatever the case.

        Raises:
            BadCursor: no page gave it.
        """
        work = partial(read.page, user=user, limit=limit, cursor=cursor, search=search)
        return await self._database.read(work)

    async def session(
        self,
        user: str,
        session_id: str,
        all_branches: bool = False,
        limit: int = MESSAGES_LIMIT,
        cursor: str | None = None,
    ) -> SessionDetail:
        """A session with the newest messages of its newest branch, or of all, oldest first; at most ``limit`` of them.

        ``cursor`` is that of the page after.

        Raises:
            NotFound: the user has no such session.
            BadCursor: no page gave it.
        """
        work = partial(
            read.session, user=user, session_id=session_id, all_branches=all_branches, limit=limit, cursor=cursor
        )
        return await self._database.read(work)

    async def rename(self, user: str, session_id: str, title: str) -> SessionRecord:
        """Give a session another title.

        Raises:
            NotFound: the user has no such session.
        """
        return await self._database.write(partial(edit.rename, user=user, session_id=session_id, title=title))

    async def delete(self, user: str, session_id: str) -> None:
        """Delete a session with its messages and runs.

        Raises:
            NotFound: the user has no such session.
        """
        await self._database.write(partial(edit.remove, user=user, session_id=session_id))


@asynccontextmanager
async def open_sessions(database_url: str) -> AsyncIterator[Sessions]:
    """The sessions in the database of a URL (``sqlite:///FILE`` or ``postgresql://…``), at the newest schema.

    Raises:
        SettingsError: the URL is wrong, or nothing usable is there.
    """
    async with open_database(database_url) as database:
        yield Sessions(database)
