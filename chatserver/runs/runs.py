"""All runs: start, find, cancel and delete them, and end them when the server goes down.

A run belongs to the server, not to a request.
"""

from typing import Self

import anyio
from msgspec.structs import replace

from chatserver.agent import Agent
from chatserver.commands import ChatRequest, checked_id, checked_model, checked_request, new_id
from chatserver.errors import BadCursor, BadRequest, ChatError, Draining, NotFound, Unavailable
from chatserver.log import EventLog, EventLogs
from chatserver.resources import MessageResource, RunResource, SessionDetail
from chatserver.runs.life import Life
from chatserver.runs.lives import Lives
from chatserver.runs.places import Place, Places
from chatserver.runs.subscription import Subscription
from chatserver.sessions import Sessions
from chatserver.settings import Settings


class Runs:
    """All runs of this process. Enter it; leaving ends all running runs."""

    def __init__(self, settings: Settings, sessions: Sessions, logs: EventLogs, agent: Agent, places: Places) -> None:
        self._settings = settings
        self._sessions = sessions
        self._logs = logs
        self._places = places
        self._lives = Lives(settings, sessions, logs, agent)
        self._beginning = self._lives.beginning
        self._deleting: dict[str, anyio.Event] = {}
        self.is_draining = False
        sessions.on_loss(self._lives.interrupt)

    async def __aenter__(self) -> Self:
        self._lives.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lives.close()

    async def start(self, user: str, request: ChatRequest) -> Subscription:
        """Begin a run, or find the one that the request's idempotency key names; subscribed from its start.

        The user's message is on disk when this returns.

        Raises:
            BadRequest, TooLarge, NotFound, RunActive, KeyReused, TooMany, Draining, Unavailable: nothing was started.
        """
        request = checked_request(request, self._settings.max_message_bytes)
        if self._settings.models:
            request = checked_model(request, self._settings.models_offered)
        try:
            if self.is_draining:
                raise Draining
            place = await self._places.acquire(user)
        except ChatError:
            # A repeated request starts nothing, so no limit applies.
            if found := await self._sessions.earlier(user, request):
                return await self.subscribe(user, found.run.run_id, 0)
            raise
        return await self._begin(user, request, place)

    async def _begin(self, user: str, request: ChatRequest, place: Place) -> Subscription:
        """Begin a run, which has the place from then on; of a run that is not begun, nothing stays."""
        reader, foreseen, run_id = None, None, new_id()
        try:
            await self._deleted(user)  # Nothing is awaited behind this: a deletion from now on knows of this run.
            self._beginning[run_id] = anyio.Event()
            foreseen = await self._lives.foresee(user, request, place, run_id)
            begun = await self._sessions.begin(user, request, run_id, foreseen.ask)
            if begun.is_new:
                reader = await self._lives.begin(foreseen, begun)
        except BaseException as error:
            # The database may have begun the run all the same: the connection may be lost at the commit.
            if isinstance(error, Unavailable) or not isinstance(error, ChatError):
                self._lives.sweep()
            raise
        finally:
            if beginning := self._beginning.pop(run_id, None):
                beginning.set()
            if reader is None:
                if foreseen is not None:
                    self._lives.refuse(foreseen)
                await place.release()
        return reader or await self.subscribe(user, begun.run.run_id, 0)

    async def resume(self, user: str, request: ChatRequest, after: int) -> Subscription:
        """A reader, from a cursor, of the run that an equal request has started; starts nothing.

        Raises:
            BadRequest: the request has no idempotency key.
            KeyReused, TooLarge: as when a run is started.
            BadCursor: the key has started nothing, or ``after`` is past the end of the run's log.
        """
        request = checked_request(request, self._settings.max_message_bytes)
        if request.idempotency_key is None:
            raise BadRequest("only a request with an `idempotency_key` can be read on", "/idempotency_key")
        found = await self._sessions.earlier(user, request)
        if found is None:
            raise BadCursor("this `idempotency_key` has started nothing that could be read on")
        return await self.subscribe(user, found.run.run_id, after)

    async def subscribe(self, user: str, run_id: str, after: int) -> Subscription:
        """A reader of a run, from a cursor; raises as ``reached``."""
        life, log, is_at_end = await self.reached(user, run_id, after)
        return Subscription(log, after, life, is_at_end=is_at_end)

    async def reached(self, user: str, run_id: str, after: int) -> tuple[Life | None, EventLog, bool]:
        """The run and the log that a reader would read, and whether the cursor is at the end. Counts no reader.

        Raises:
            NotFound: this user has no such run.
            BadCursor: ``after`` is past the end of its log.
        """
        life = await self._find(user, run_id)
        if life is None:
            await self._check_is_over(user, run_id)
        log = await self._logs.open(run_id)
        if log is None:
            raise NotFound
        last_seq = log.last_seq
        if after > last_seq:
            raise BadCursor(f"`after` is past the end of the log, {last_seq}")
        return life, log, after == last_seq and (life is None or life.run.is_over)

    async def _check_is_over(self, user: str, run_id: str) -> None:
        """Check that a run that this process does not have, or has forgotten, is over."""
        if (await self._sessions.run(user, run_id)).finished_at is None:
            await self._sessions.interrupt_abandoned()
            if (await self._sessions.run(user, run_id)).finished_at is None:
                raise NotFound("another server process goes on with this run")

    async def resource(self, user: str, run_id: str) -> RunResource:
        """The run as it is now.

        Raises:
            NotFound: this user has no such run.
        """
        life = await self._find(user, run_id)
        found = await self._sessions.run(user, run_id)
        return found if life is None else replace(found, last_seq=life.log.last_seq)

    async def cancel(self, user: str, run_id: str) -> RunResource:
        """End a run; one that has ended stays as it ended.

        Raises:
            NotFound: this user has no such run, or another server goes on with it.
        """
        if life := await self._find(user, run_id):
            life.cancel()
        else:
            await self._check_is_over(user, run_id)
        return await self.resource(user, run_id)

    async def session(
        self, user: str, session_id: str, all_branches: bool, limit: int, cursor: str | None
    ) -> SessionDetail:
        """A session with a page of messages; a message that is being written, as far as it has come.

        Raises:
            NotFound: this user has no such session.
            BadCursor: no page gave the cursor.
        """
        detail = await self._sessions.session(user, checked_id(session_id), all_branches, limit, cursor)
        return replace(detail, messages=[await self._as_it_is(message) for message in detail.messages])

    async def _as_it_is(self, message: MessageResource) -> MessageResource:
        life = self._lives.lives.get(message.run_id or "")
        if message.status != "streaming" or life is None:
            return message
        answer = life.log.answer()
        return replace(message, content=answer.content, parts=answer.parts)

    async def delete_session(self, user: str, session_id: str) -> None:
        """Delete a session with all it holds; its active run is cancelled first.

        Raises:
            NotFound: this user has no such session.
        """
        session_id = checked_id(session_id)
        await self._deleted(user)
        deleting = self._deleting[user] = anyio.Event()
        try:
            for beginning in list(self._beginning.values()):
                await beginning.wait()
            lives = self._lives.of_session(user, session_id)
            for life in lives:
                life.cancel()
                await life.over()
            await self._sessions.delete(user, session_id)
            for life in lives:
                self._lives.forget(life.run_id)
        finally:
            del self._deleting[user]
            deleting.set()

    async def _deleted(self, user: str) -> None:
        """Wait while a session of the user is being deleted: a run that began in it meanwhile would be an orphan."""
        while deleting := self._deleting.get(user):
            await deleting.wait()

    async def drain(self) -> None:
        """No new runs; those that go on may end by themselves for ``drain_seconds``, then they are interrupted."""
        self.is_draining = True
        await self._lives.drain(self._settings.drain_seconds)

    async def _find(self, user: str, run_id: str) -> Life | None:
        """A run of this process. A run that begins is on disk, and so in reach, before it is in ``lives``."""
        if beginning := self._beginning.get(checked_id(run_id)):
            await beginning.wait()
        life = self._lives.lives.get(run_id)
        return life if life is not None and life.user == user else None
