"""One run: from its start to its one terminal event, whoever comes and goes.

    running ──▶ waiting ──▶ running ──▶ completed | cancelled | failed

Subscribers are counted over all transports; when the last one has left, a run is cancelled after the grace period,
unless it was told to continue.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import NoReturn, TypeAlias

import anyio

from chatserver.agent import Agent, Step
from chatserver.compaction import compact
from chatserver.endings import INTERNAL, INTERRUPTED, UNSTORED, WRONG, ending_of
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
from chatserver.limits import Meter, Spent
from chatserver.log import EVENTS_LIMIT, EventLog
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


Ask: TypeAlias = Callable[[], Awaitable[ModelRequest]]
"""Puts together what the model is asked."""


class RunOverError(Exception):
    """The run takes no more."""


class Run:
    """One run of this process, from its start until its log is forgotten."""

    def __init__(
        self,
        user: str,
        record: RunRecord,
        log: EventLog,
        meter: Meter,
        grace_seconds: float | None,
        on_result: Callable[[str], None],
    ) -> None:
        """``on_result`` is called with the run's id when a tool has given a result."""
        self.user = user
        self.record = record
        self.log = log
        self.meter = meter
        self.status: RunStatus = "running"
        self.began = monotonic()
        self.subscribers = 0
        self._grace_seconds = grace_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._scope: anyio.CancelScope | None = None
        self._on_result = on_result
        self._calls: dict[str, bool] = {}  # The tool calls, and whether each has its result.
        self._ending: Terminal | None = None
        self.over = LeanEvent()

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

    async def answer(self, agent: Agent, ask: Ask) -> Terminal:
        """Let the agent answer; the terminal event that it, a failure or a cancel calls for."""
        try:
            with anyio.CancelScope() as self._scope:
                if self._ending is None:
                    self._end(self.done(await agent(await ask(), self.meter, self.say)))
        except Spent:
            self._end(self.done("length"))
        except (UpstreamError, Unavailable) as error:
            self._end(ending_of(error))
        except Exception as error:
            if self._ending is None:
                logger.exception("run %s failed", self.run_id)
                self._end(ending_of(error))
        return self._ending or INTERNAL

    def say(self, step: Step) -> None:
        """The one entry for what an agent says.

        Raises:
            RunOverError: the run takes no more.
        """
        if self._ending is not None:
            raise RunOverError
        match step:
            case Token() | Reasoning():
                self._say(step)
            case ToolCall() if step.call_id not in self._calls:
                self._calls[step.call_id] = False
                self._append(step)
            case ToolResult() if self._calls.get(step.call_id) is False:
                self._calls[step.call_id] = True
                self._append(step)
                self._on_result(self.run_id)
            case _:
                self._refuse(step)

    def _say(self, text: Token | Reasoning) -> None:
        try:
            fitting = self.meter.say(text.content)
        except Spent:
            fitting = ""
        if fitting:
            self._append(text if fitting is text.content else type(text)(content=fitting))
        if len(fitting) < len(text.content):
            self._stop(self.done("length"))

    def _append(self, step: Step) -> None:
        if self.log.append(step).seq >= EVENTS_LIMIT:
            self._stop(self.done("length"))

    def _refuse(self, step: object) -> NoReturn:
        """A wrong agent fails its run, and nothing else."""
        logger.error("run %s failed: its agent says %s, where none can be", self.run_id, type(step).__name__)
        self._stop(WRONG)

    def _stop(self, ending: Terminal) -> NoReturn:
        self._end(ending)
        raise RunOverError

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
