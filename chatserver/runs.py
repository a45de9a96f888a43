"""All runs: which ones there are, who may start one, and what becomes of them when the server goes down.

A run belongs to the server, not to a request.
"""

import asyncio
from collections.abc import Coroutine
from typing import Self

import anyio
from msgspec.structs import replace

from chatserver.agent import Agent
from chatserver.checkpoints import keep
from chatserver.commands import ChatRequest, checked, known_form, new_id, offered
from chatserver.context import dialogue
from chatserver.errors import BadCursor, BadRequest, ChatError, Draining, NotFound
from chatserver.events import PROTOCOL_VERSION, Start
from chatserver.limits import Meter, Places
from chatserver.log import EventLog, EventLogs
from chatserver.providers import ModelRequest
from chatserver.records import MessageRecord, RunRecord, SessionDetail
from chatserver.run import Run, Subscription
from chatserver.sessions import Begun, Sessions
from chatserver.settings import Settings

SHUTDOWN_SECONDS = 2.0
"""How long a server that is going down anyway waits for the last answers to be stored."""


class Runs:
    """All runs of this process. Enter it: leaving ends what still goes on."""

    def __init__(self, settings: Settings, sessions: Sessions, logs: EventLogs, agent: Agent) -> None:
        self._settings = settings
        self._sessions = sessions
        self._logs = logs
        self._agent = agent
        self._runs: dict[str, Run] = {}
        self._unfinished: dict[str, Run] = {}
        self._beginning: dict[str, anyio.Event] = {}
        self._deleting: dict[str, anyio.Event] = {}
        self._places = Places(settings, sessions.spent_on)
        self._lives: set[asyncio.Task[None]] = set()
        self._chores: set[asyncio.Task[None]] = set()  # Those would never end by themselves.
        self.is_draining = False
        sessions.on_loss(self._lose)

    async def __aenter__(self) -> Self:
        _spawn(keep(self._unfinished, self._sessions), self._chores)
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            while self._lives:  # What is being stored is waited for; and a last one may just have begun.
                await self._interrupt()
                await asyncio.gather(*self._lives, return_exceptions=True)
            for chore in self._chores:
                chore.cancel()
            await asyncio.gather(*self._chores, return_exceptions=True)
        for run in self._runs.values():
            run.release()

    async def start(self, user: str, request: ChatRequest) -> Subscription:
        """Begin a run, or find the one that the request's idempotency key names; subscribed from its start.

        The user's message is on disk when this returns.

        Raises:
            BadRequest, TooLarge, NotFound, RunActive, KeyReused, TooMany, Draining: nothing was started.
        """
        request = checked(request, self._settings.max_message_bytes)
        if self._settings.models:
            request = offered(request, self._settings.models_offered)
        await self._deleted(user)
        try:
            if self.is_draining:
                raise Draining
            meter = await self._places.take(user)
        except ChatError:
            # A repeated request starts nothing, so no limit can be against it.
            if found := await self._sessions.earlier(user, request):
                return await self.subscribe(user, found.run.run_id, 0)
            raise
        run, run_id = None, new_id()
        self._beginning[run_id] = anyio.Event()
        try:
            begun = await self._sessions.begin(user, request, run_id)
            if begun.is_new:
                run = await self._begin(user, begun, request, meter)
        finally:
            if run is None:
                self._places.leave(user)
            self._beginning.pop(run_id).set()
        if run is None:
            return await self.subscribe(user, begun.run.run_id, 0)
        _spawn(self._live(run, self._asked(begun, request)), self._lives)
        await asyncio.sleep(0)  # The model is asked first: while it thinks, there is time to answer the reader.
        return Subscription(run.log, 0, run, is_at_end=False)

    async def resume(self, user: str, request: ChatRequest, after: int) -> Subscription:
        """A reader of the run that an equal request has started, from a cursor; starts nothing.

        Raises:
            BadRequest: the request has no idempotency key.
            KeyReused, TooLarge: as when a run is started.
            BadCursor: the key has started nothing, or ``after`` is past the end of the run's log.
        """
        request = checked(request, self._settings.max_message_bytes)
        if request.idempotency_key is None:
            raise BadRequest("only a request with an `idempotency_key` can be read on", "/idempotency_key")
        found = await self._sessions.earlier(user, request)
        if found is None:
            raise BadCursor("this `idempotency_key` has started nothing that could be read on")
        return await self.subscribe(user, found.run.run_id, after)

    async def subscribe(self, user: str, run_id: str, after: int) -> Subscription:
        """A reader of a run, from a cursor; raises as ``reached``."""
        run, log, is_at_end = await self.reached(user, run_id, after)
        return Subscription(log, after, run, is_at_end=is_at_end)

    async def reached(self, user: str, run_id: str, after: int) -> tuple[Run | None, EventLog, bool]:
        """What a reader from this cursor would read, and whether that is nothing. Nobody is counted as a reader for it.

        Raises:
            NotFound: this user has no such run.
            BadCursor: ``after`` is past the end of its log.
        """
        run = await self._find(user, run_id)
        if run is None:
            await self._check_is_over(user, run_id)
        log = await self._logs.open(run_id)
        if log is None:
            raise NotFound("there is nothing with this id")
        last_seq = await log.last_seq()
        if after > last_seq:
            raise BadCursor(f"`after` is past the end of the log, {last_seq}")
        return run, log, after == last_seq and (run is None or run.is_over)

    async def _check_is_over(self, user: str, run_id: str) -> None:
        """A run that this process has not, or has forgotten, is one that is over."""
        if (await self._sessions.run(user, run_id)).finished_at is None:
            await self._sessions.interrupt_abandoned()
            if (await self._sessions.run(user, run_id)).finished_at is None:
                raise NotFound("another server process goes on with this run")

    async def record(self, user: str, run_id: str) -> RunRecord:
        """The run as it is now.

        Raises:
            NotFound: this user has no such run.
        """
        run = await self._find(user, run_id)
        found = await self._sessions.run(user, run_id)
        return found if run is None else replace(found, last_seq=await run.log.last_seq())

    async def cancel(self, user: str, run_id: str) -> RunRecord:
        """End a run; one that has ended stays as it ended.

        Raises:
            NotFound: this user has no such run, or another server goes on with it.
        """
        if run := await self._find(user, run_id):
            run.cancel()
        else:
            await self._check_is_over(user, run_id)
        return await self.record(user, run_id)

    async def session(
        self, user: str, session_id: str, all_branches: bool, limit: int, cursor: str | None
    ) -> SessionDetail:
        """A session with a page of messages, the one that is being written as far as it has come.

        Raises:
            NotFound: this user has no such session.
            BadCursor: no page gave the cursor.
        """
        detail = await self._sessions.session(user, known_form(session_id), all_branches, limit, cursor)
        return replace(detail, messages=[await self._as_it_is(message) for message in detail.messages])

    async def _as_it_is(self, message: MessageRecord) -> MessageRecord:
        run = self._runs.get(message.run_id or "")
        if message.status != "streaming" or run is None:
            return message
        answer = await run.log.answer()
        return replace(message, content=answer.content, reasoning=answer.reasoning, tool_calls=answer.tool_calls)

    async def delete_session(self, user: str, session_id: str) -> None:
        """Delete a session with all it holds; its active run is cancelled first.

        Raises:
            NotFound: this user has no such session.
        """
        session_id = known_form(session_id)
        await self._deleted(user)
        deleting = self._deleting[user] = anyio.Event()
        try:
            for beginning in list(self._beginning.values()):
                await beginning.wait()
            runs = [run for run in self._runs.values() if (run.user, run.record.session_id) == (user, session_id)]
            for run in runs:
                run.cancel()
                await run.over.wait()
            await self._sessions.delete(user, session_id)
            for run in runs:
                self._forget(run.run_id)
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
        with anyio.move_on_after(self._settings.drain_seconds):
            for run in list(self._unfinished.values()):
                await run.over.wait()
        await self._interrupt()

    async def _find(self, user: str, run_id: str) -> Run | None:
        """A run of this process. One that is being begun is on disk, and so in reach, before it is here."""
        if beginning := self._beginning.get(known_form(run_id)):
            await beginning.wait()
        run = self._runs.get(run_id)
        return run if run is not None and run.user == user else None

    def _lose(self) -> None:
        """Others have taken this process for dead: whatever goes on has been ended."""
        for run in list(self._unfinished.values()):
            run.interrupt()

    async def _interrupt(self) -> None:
        with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
            for run in list(self._unfinished.values()):
                run.interrupt()
            for run in list(self._unfinished.values()):
                await run.over.wait()

    async def _begin(self, user: str, begun: Begun, request: ChatRequest, meter: Meter) -> Run:
        settings = self._settings
        grace_seconds = settings.grace_seconds if request.on_disconnect == "cancel" else None
        log = await self._logs.create(begun.run.run_id)
        await log.append(
            Start(
                session_id=begun.run.session_id,
                message_id=begun.run.message_id,
                user_message_id=begun.user_message_id,
                model=request.model or settings.model,
                protocol=PROTOCOL_VERSION,
                heartbeat_ms=round(settings.heartbeat_seconds * 1000),
            )
        )
        run = self._runs[log.run_id] = self._unfinished[log.run_id] = Run(user, begun.run, log, meter, grace_seconds)
        return run

    def _asked(self, begun: Begun, request: ChatRequest) -> ModelRequest:
        return ModelRequest(
            model=request.model or self._settings.model,
            messages=dialogue(begun.context, request.system, self._settings.max_context_tokens),
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
            run_id=begun.run.run_id,
        )

    async def _live(self, run: Run, request: ModelRequest) -> None:
        ending = await run.answer(self._agent, request, self._sessions)
        run.meter.told(None)
        is_stored = await run.finish(ending, self._sessions)
        del self._unfinished[run.run_id]
        self._places.leave(run.user)
        if is_stored:
            self._retain(run)
        else:
            _spawn(self._store_late(run), self._chores)

    async def _store_late(self, run: Run) -> None:
        await run.store_late(self._sessions)
        self._retain(run)

    def _retain(self, run: Run) -> None:
        run.retain(self._settings.retention_seconds, lambda: self._forget(run.run_id))
        self._logs.retain(run.run_id, self._forget)

    def _forget(self, run_id: str) -> None:
        """From now on the run is read from where it is stored."""
        if run := self._runs.pop(run_id, None):
            run.release()
        self._logs.forget(run_id)


def _spawn(life: Coroutine[None, None, None], among: set[asyncio.Task[None]]) -> None:
    # Not in a task group of anyio: a scope, a handle and an event are 2 KB of each run.
    task = asyncio.create_task(life)
    among.add(task)
    task.add_done_callback(among.discard)
