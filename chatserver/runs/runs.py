"""All runs: start, find, cancel and delete them, and end them when the server goes down.

A run belongs to the server, not to a request.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Self

import anyio
from anyio import to_thread
from msgspec.structs import replace

from chatserver.client_tools import checked_client_tools
from chatserver.commands import (
    CallAnswer,
    ChatRequest,
    checked_id,
    checked_model,
    checked_request,
    new_id,
)
from chatserver.errors import BadCursor, BadRequest, ChatError, Draining, NotFound, Unavailable
from chatserver.json_schema import check_schemas
from chatserver.log import EventLog, EventLogs
from chatserver.log.journal import catch_up
from chatserver.resources import MessageResource, RunResource, SessionDetail
from chatserver.runs.answers import Answers
from chatserver.runs.asking import context_bytes
from chatserver.runs.elsewhere import Elsewhere
from chatserver.runs.leaving import leave_followed
from chatserver.runs.life import Life
from chatserver.runs.lives import Lives
from chatserver.runs.places import Place, Places
from chatserver.runs.reach import Reach
from chatserver.runs.states import State
from chatserver.runs.subscription import Subscription
from chatserver.sessions import Sessions
from chatserver.settings import Settings
from chatserver.telemetry import NOTHING

CANCEL_SECONDS = 10.0
"""How long a deletion waits for the end of a run at another process; by then a dead process's run has ended."""


class Runs:
    """All runs, those of other processes too. Enter it; leaving ends all running runs."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        logs: EventLogs,
        lives: Lives,
        places: Places,
        elsewhere: Elsewhere,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._logs = logs
        self._places = places
        self._lives = lives
        self._elsewhere = elsewhere
        self._reach = Reach(sessions, logs, lives, elsewhere)
        self._answers = Answers(sessions, places, lives, elsewhere, settings.max_tool_result_bytes)
        self._beginning = self._lives.beginning
        self._deleting: dict[str, asyncio.Event] = {}
        self._one_check = anyio.CapacityLimiter(1)
        """Schemas of clients are checked for one request at a time: many threads would hold the event loop up."""

        self.is_draining = False
        sessions.on_loss(self._lives.end_lost)
        sessions.on_taken(self._lives.due.look)
        elsewhere.serve(self._lives)

    async def __aenter__(self) -> Self:
        self._lives.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lives.close()

    @property
    def are_welcome(self) -> bool:
        """Whether new runs can begin, as far as others have to agree."""
        return self._elsewhere.is_reached

    async def start(self, user: str, request: ChatRequest, carrier: Mapping[str, str] = NOTHING) -> Subscription:
        """Begin a run, or find the one that the request's idempotency key names; subscribed from its start.

        The user's message is on disk when this returns. ``carrier`` names the trace that the request belongs to.

        Raises:
            BadRequest, TooLarge, NotFound, RunActive, KeyReused, TooMany, Draining, Unavailable: nothing was started.
        """
        request = checked_request(request, self._settings.max_message_bytes, self._settings.max_inline_bytes)
        request = checked_client_tools(request, self._lives.toolbox.tools)
        if self._settings.models:
            request = checked_model(request, self._settings.models_offered)
        if schemas := request.schemas():
            await to_thread.run_sync(check_schemas, schemas, limiter=self._one_check)
        try:
            if self.is_draining:
                raise Draining
            place = await self._places.acquire(user)
        except ChatError:
            # A repeated request starts nothing, so no limit applies.
            if found := await self._sessions.earlier(user, request):
                return await self.subscribe(user, found.run.run_id, 0)
            raise
        return await self._begin(user, request, place, carrier)

    async def _begin(self, user: str, request: ChatRequest, place: Place, carrier: Mapping[str, str]) -> Subscription:
        """Begin a run, which has the place from then on; of a run that is not begun, nothing stays."""
        reader, foreseen, run_id = None, None, new_id()
        try:
            await self._deleted(user)  # Nothing is awaited behind this: a deletion from now on knows of this run.
            if self.is_draining:  # Since the place was asked for. The drain waits for no run that begins behind it.
                raise Draining
            self._beginning[run_id] = asyncio.Event()
            foreseen = await self._lives.foresee(user, request, place, run_id, carrier)
            begun = await self._sessions.begin(user, request, run_id, foreseen.ask, context_bytes(self._settings))
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
        request = checked_request(request, self._settings.max_message_bytes, self._settings.max_inline_bytes)
        if request.idempotency_key is None:
            raise BadRequest("only a request with an `idempotency_key` can be read on", "/idempotency_key")
        found = await self._sessions.earlier(user, request)
        if found is None:
            raise BadCursor("this `idempotency_key` has started nothing that could be read on")
        return await self.subscribe(user, found.run.run_id, after)

    async def subscribe(self, user: str, run_id: str, after: int) -> Subscription:
        """A reader of a run, from a cursor; raises as ``reached``."""
        log, life = await self.reached(user, run_id, after)
        if life is not None:
            return Subscription(log, after, life.count)
        return Subscription(log, after, None if log.is_over else partial(self._elsewhere.count, run_id))

    async def reached(self, user: str, run_id: str, after: int) -> tuple[EventLog, Life | None]:
        """The log that a reader would read, and the run if it is one of this process. Counts no reader.

        Raises:
            NotFound: this user has no such run, or another process goes on with it.
            BadCursor: ``after`` is past the end of its log.
            Unavailable: the process that goes on with the run cannot be reached now.
        """
        log, life = await self._reach.log_of(user, run_id)
        if life is None:
            await catch_up(log, after)
        elif life.run.state is State.KEPT:  # Another process may have deleted it.
            await self._sessions.run(user, run_id)
        if after > log.last_seq:
            raise BadCursor(f"`after` is past the end of the log, {log.last_seq}")
        return log, life

    async def resource(self, user: str, run_id: str) -> RunResource:
        """The run as it is now.

        Raises:
            NotFound: this user has no such run.
        """
        life = await self._reach.find(user, run_id)
        found = await self._sessions.run(user, run_id)
        if found.finished_at is not None:
            return found
        if life is not None:
            return replace(found, last_seq=life.log.last_seq)
        return replace(found, last_seq=max(found.last_seq, await self._elsewhere.last_seq(run_id)))

    async def answer(self, user: str, run_id: str, call_id: str, answer: CallAnswer) -> RunResource:
        """Answer a call that waits; the first answer counts. The run as it is then.

        Raises:
            NotFound: the user has no such run, or the run no such call.
            AlreadyAnswered: the call waits for no answer.
            BadRequest, TooLarge: the answer does not fit the call.
            TooMany: no place is left for the run to go on.
            Draining, Unavailable: nothing was recorded.
        """
        is_recorded = False
        while not is_recorded:
            if self.is_draining:
                raise Draining
            await self._reach.here(user, run_id)
            is_recorded = await self._answers.record(user, run_id, call_id, answer)
        return await self.resource(user, run_id)

    async def cancel(self, user: str, run_id: str) -> RunResource:
        """End a run; one that has ended stays as it ended.

        Raises:
            NotFound: this user has no such run, or another process goes on with it.
            Unavailable: the process that goes on with the run cannot be reached now.
        """
        life, goes_on = await self._reach.anywhere(user, run_id)
        if life is not None:
            life.cancel()
        elif goes_on:
            await self._elsewhere.cancel(run_id)
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
        if message.status != "streaming" or message.run_id is None:
            return message
        try:
            log = await self._logs.open(message.run_id)
        except Unavailable:  # The checkpoint is there.
            log = None
        if log is None:
            return message
        answer = log.answer()
        return replace(message, content=answer.content, parts=answer.parts)

    async def delete_session(self, user: str, session_id: str) -> None:
        """Delete a session with all it holds; its active run is cancelled first.

        Raises:
            NotFound: this user has no such session.
        """
        session_id = checked_id(session_id)
        await self._deleted(user)
        deleting = self._deleting[user] = asyncio.Event()
        try:
            for beginning in list(self._beginning.values()):
                await beginning.wait()
            ended = set[str]()
            while (active := await self._sessions.delete(user, session_id, ended)) is not None:
                await self._end(user, active)
                ended.add(active)
            for life in self._lives.of_session(user, session_id):
                self._lives.forget(life.run_id)
        finally:
            del self._deleting[user]
            deleting.set()

    async def _end(self, user: str, run_id: str) -> None:
        """Cancel a run and wait until it is over. One that nobody can reach ends when its owner wants to store it."""
        with suppress(NotFound), anyio.move_on_after(CANCEL_SECONDS):
            life, goes_on = await self._reach.anywhere(user, run_id)
            if life is not None:
                life.cancel()
                return await life.over()
            if goes_on:
                await self._elsewhere.cancel(run_id)
                log, _ = await self._reach.log_of(user, run_id)
                async for _ in log.read(log.last_seq):
                    """What its readers are told."""

    async def _deleted(self, user: str) -> None:
        """Wait while a session of the user is being deleted: a run that began in it meanwhile would be an orphan."""
        while deleting := self._deleting.get(user):
            await deleting.wait()

    async def drain(self) -> None:
        """No new runs; those that go on may end by themselves for ``drain_seconds``, then they are interrupted.

        Those of other processes go on, without their readers here.
        """
        self.is_draining = True
        seconds = self._settings.drain_seconds
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._lives.drain, seconds)
            tasks.start_soon(leave_followed, self._logs, self._sessions.waits, seconds)
