"""One run: from its start to its one terminal event, whoever comes and goes; and one reader of it.

    running ──▶ waiting ──▶ running ──▶ completed | cancelled | failed

Subscribers are counted over all transports; when the last one has left, a run is cancelled after the grace period,
unless it was told to continue.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from time import monotonic
from typing import Self, TypeAlias

import anyio
from anyio.abc import TaskGroup

from chatserver.agent import Agent, Finished
from chatserver.compaction import compact
from chatserver.endings import INTERNAL, INTERRUPTED, UNREAD, UNSTORED, ending_of
from chatserver.errors import RunLost, Unavailable, UpstreamError
from chatserver.events import (
    Done,
    FinishReason,
    Reasoning,
    Record,
    Terminal,
    Token,
    ToolCall,
    ToolResult,
    appended,
)
from chatserver.lean_event import LeanEvent
from chatserver.limits import Meter
from chatserver.log import EVENTS_LIMIT, Cursor, EventLog
from chatserver.providers import ModelRequest
from chatserver.records import RunRecord, RunStatus, status_after
from chatserver.sessions import Sessions

logger = logging.getLogger(__name__)

TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    "running": frozenset({"waiting", "completed", "cancelled", "failed"}),
    "waiting": frozenset({"running", "cancelled", "failed"}),
    "completed": frozenset(),
    "cancelled": frozenset(),
    "failed": frozenset(),
}

STORE_AGAIN_SECONDS = 0.5
STORE_AGAIN_AT_MOST_SECONDS = 5.0
"""Between tries to store an answer that the database does not take: a full disk, a lost server. Each waits longer."""

START_SEQ = 1
"""The `seq` of `start`, with which every run begins: up to it there is nothing of an answer to store."""

SAYABLE = (Token, Reasoning, ToolCall, ToolResult)
"""What an agent may say; how a run begins and ends is the run's to say."""

Ask: TypeAlias = Callable[[], Awaitable[ModelRequest]]
"""Puts together what the model is asked."""


class Run:
    """One run of this process, from its start until its log is forgotten."""

    def __init__(self, user: str, record: RunRecord, log: EventLog, meter: Meter, grace_seconds: float | None) -> None:
        self.user = user
        self.record = record
        self.log = log
        self.meter = meter
        self.status: RunStatus = "running"
        self.began = monotonic()
        self.subscribers = 0
        self._grace_seconds = grace_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._last_seq = 0
        self._scope: anyio.CancelScope | None = None  # Its task group's: one of its own would be a KB more a stream.
        self._ending: Terminal | None = None
        self.over = LeanEvent()
        self.looked_at, self.stored_seq = self.began, START_SEQ
        """When it was last asked whether there is more to store of its answer, and how far that is stored."""

    @property
    def run_id(self) -> str:
        return self.record.run_id

    @property
    def is_over(self) -> bool:
        return not TRANSITIONS[self.status]

    def become(self, status: RunStatus) -> None:
        if status not in TRANSITIONS[self.status]:
            raise RuntimeError(f"a run that is {self.status} cannot become {status}")
        self.status = status

    def join(self) -> None:
        """A subscriber has come."""
        self.subscribers += 1
        if not self.is_over:
            self.release()

    def leave(self) -> None:
        """A subscriber has gone, for whatever reason."""
        self.subscribers -= 1
        if self.subscribers == 0:
            self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        """Nobody reads: the grace period begins."""
        if self._grace_seconds is not None and not self.is_over:
            self._timer = asyncio.get_running_loop().call_later(self._grace_seconds, self.cancel)

    def retain(self, seconds: float, forget: Callable[[], None]) -> None:
        """The run is over: ``forget`` it when its log has been kept long enough."""
        self.release()
        self._timer = asyncio.get_running_loop().call_later(seconds, forget)

    def release(self) -> None:
        """Stop the timer that is going, of the grace period or the retention."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def cancel(self) -> None:
        """End the run as cancelled, if it is not ending already."""
        self._end(self.done("cancelled"))

    def interrupt(self) -> None:
        """End the run because the server goes down."""
        self._end(INTERRUPTED)

    def _end(self, ending: Terminal) -> None:
        if self._ending is None and not self.is_over:
            self._ending = ending
            if self._scope is not None:
                self._scope.cancel()

    def done(self, reason: FinishReason) -> Done:
        usage, run = self.meter.usage(), self.record
        return Done(
            session_id=run.session_id,
            message_id=run.message_id,
            finish_reason=reason,
            total_tokens=usage.input_tokens + usage.output_tokens,
            usage=usage,
            duration_ms=round((monotonic() - self.began) * 1000),
        )

    async def answer(self, agent: Agent, ask: Ask, sessions: Sessions) -> Terminal:
        """Append the agent's steps to the log; the terminal event that they, a failure or a cancel call for."""
        ending: Terminal = INTERNAL
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                if self._ending is None:
                    ending = await self._follow(agent, await ask(), sessions, tasks)
        except Unavailable:
            ending = UNREAD
        except Exception:
            logger.exception("run %s failed", self.run_id)
        return self._ending or ending

    async def _follow(self, agent: Agent, request: ModelRequest, sessions: Sessions, tasks: TaskGroup) -> Terminal:
        try:
            async with aclosing(agent.answer(request, self.meter, tasks, self._append_now)) as steps:
                async for step in steps:
                    if isinstance(step, Finished):
                        return self.done(step.reason)
                    for event in step if isinstance(step, tuple) else (step,):
                        if not isinstance(event, SAYABLE):
                            raise TypeError(f"an agent says texts, calls and results, no {type(event).__name__}")
                        self._last_seq = self.log.append(event).seq
                    if self._last_seq >= EVENTS_LIMIT:
                        return self.done("length")
                    if isinstance(step, tuple):
                        # A tool may have changed the world: that it was called must survive a crash.
                        with suppress(Unavailable):  # Then it is stored with the others, when the database is back.
                            await sessions.checkpoint({self.run_id: self.log.answer()})
        except UpstreamError as error:
            return ending_of(error)
        raise AssertionError("an agent's last step is Finished")

    def _append_now(self, token: Token) -> bool:
        # The last event that there is room for is left to `_follow`, which then ends the run.
        if self._ending is not None or self._last_seq >= EVENTS_LIMIT - 1:
            return False
        self._last_seq = self.log.append(token).seq
        return True

    async def finish(self, ending: Terminal, sessions: Sessions) -> bool:
        """Store the answer, then say that it is over; whether it was stored. If not, the end tells a failure.

        The end of a run that another process has ended or deleted tells that; there is nothing to store then.
        """
        is_stored = False
        try:
            last = appended(ending, self.run_id, self.log.last_seq + 1)
            await self._store(ending, [*await self.log.records(), last], sessions)
            is_stored = True
        except RunLost as lost:
            logger.warning("run %s was lost: %s", self.run_id, lost)
            ending, is_stored = ending_of(lost), True
        except Unavailable:  # The store says so in its log, once for all runs.
            ending = UNSTORED
        except Exception:
            logger.exception("the answer of run %s could not be stored", self.run_id)
            ending = INTERNAL
        self.become(status_after(ending))
        try:
            self.log.append(ending)
        except Exception:
            # Whatever the log has against it: the run is over.
            logger.exception("run %s could not be ended", self.run_id)
        self.over.set()
        return is_stored

    async def store_late(self, sessions: Sessions) -> None:
        """Go on trying: as long as a run is stored as running, its session takes no other.

        What the database would never take is given up, all but what was stored of the answer before.
        """
        wait_seconds = STORE_AGAIN_SECONDS
        while True:
            await anyio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, STORE_AGAIN_AT_MOST_SECONDS)
            try:
                return await self._store(UNSTORED, await self.log.records(), sessions)
            except RunLost:
                return
            except Unavailable:
                continue
            except Exception:
                logger.exception("of the answer of run %s only its last checkpoint is kept", self.run_id)
            with suppress(Exception):
                return await sessions.interrupt(self.run_id)

    async def _store(self, ending: Terminal, records: list[Record], sessions: Sessions) -> None:
        answer = self.log.answer()
        kept = compact(records, self.run_id, whole=answer)
        await sessions.finish(self.run_id, ending=ending, answer=answer, records=kept, usage=self.meter.usage())


class Subscription:
    """One reader of one run. Made, it counts; leaving it is a disconnect, never a cancel."""

    def __init__(self, log: EventLog, after: int, run: Run | None, is_at_end: bool) -> None:
        self.run_id = log.run_id
        self.is_at_end = is_at_end
        self._log = log
        self._after = after
        self._run = run
        self._has_left = False
        if run is not None:
            run.join()

    @property
    def is_over(self) -> bool:
        """The run has ended; what is still unread is all there will be."""
        return self._run is None or self._run.is_over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; once is enough."""
        if self._run is not None and not self._has_left:
            self._has_left = True
            self._run.leave()

    def cursor(self) -> Cursor:
        """What a pump sends from."""
        return self._log.cursor(self._after)

    def read(self) -> AsyncGenerator[Sequence[Record], None]:
        """What the cursor is given, as a generator."""
        return self._log.read(self._after)
