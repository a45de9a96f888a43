"""The life of one run: the task of its agent, the timer of its deadline, and how its end is stored."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeAlias

import anyio

from chatserver.agent import Agent, Step
from chatserver.compaction import compact
from chatserver.endings import INTERNAL, INTERRUPTED, UNSTORED, ending_of
from chatserver.errors import RunLost, Unavailable, UpstreamError
from chatserver.events import Error, FinishReason, Record, Terminal, ToolResult, appended
from chatserver.meter import Spent
from chatserver.providers import ModelRequest
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.run import CannotHappen, Run, State
from chatserver.sessions import Sessions

logger = logging.getLogger(__name__)

STORE_AGAIN_SECONDS = 0.5
STORE_AGAIN_AT_MOST_SECONDS = 5.0
"""Between tries to store an answer that the database does not take: a full disk, a lost server. Each waits longer."""

Ask: TypeAlias = Callable[[], Awaitable[ModelRequest]]
"""Puts together what the model is asked."""


class Life:
    """A ``Run`` of this process with what drives it."""

    def __init__(self, user: str, run: Run, sessions: Sessions, checkpoints: Checkpoints) -> None:
        self.user = user
        self.run = run
        self.log = run.log
        self.run_id = run.record.run_id
        self._sessions = sessions
        self._checkpoints = checkpoints
        self._scope: anyio.CancelScope | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_forget: Callable[[], None] | None = None
        self._over: anyio.Event | None = None  # Only where somebody waits: it is a KB of each run.
        self._settling: anyio.Event | None = anyio.Event()

    # Readers, ends and time.

    def count(self, readers: int) -> None:
        """So many more subscribers, or fewer."""
        self.run.count(readers, monotonic())
        self._set_timer()

    def cancel(self) -> None:
        """End the run as cancelled, if it is not ending already."""
        self._end("cancelled")

    def interrupt(self) -> None:
        """End the run because the server goes down."""
        self._end(INTERRUPTED)

    def keep(self, seconds: float, on_forget: Callable[[], None]) -> None:
        """The answer is stored: ``on_forget`` is called when the log has been kept long enough."""
        self._on_forget = on_forget
        self.run.keep(monotonic() + seconds)
        self._set_timer()

    def forget(self) -> None:
        """The run is read from elsewhere: let go of what it has here."""
        self.run.forget()
        self._set_timer()

    def stop(self) -> None:
        """The server is at its end: nothing is due any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def settle(self) -> None:
        """The run is on disk."""
        if self._settling is not None:
            self._settling.set()
            self._settling = None

    async def _settled(self) -> None:
        if self._settling is not None:
            await self._settling.wait()

    async def over(self) -> None:
        """Wait until the terminal event is said."""
        if not self.run.is_over:
            self._over = self._over or anyio.Event()
            await self._over.wait()

    def _end(self, ending: FinishReason | Error) -> None:
        self.run.end(ending)
        self._cancel()
        self._set_timer()

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def _set_timer(self) -> None:
        self.stop()
        if (deadline := self.run.deadline) is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._pass_time)

    def _pass_time(self) -> None:
        self.run.pass_time(monotonic())
        if self.run.state is State.ENDING:
            self._cancel()
        if self.run.state is State.FORGOTTEN and self._on_forget is not None:
            return self._on_forget()
        self._set_timer()

    # The task.

    async def live(self, agent: Agent, ask: Ask) -> bool:
        """Let the agent answer, store the answer, say its end; whether it was stored.

        Nothing is stored, and no end is said, before the run itself is on disk (``settle``).
        """
        await self._answer(agent, ask)
        await self._settled()
        self.run.meter.told(None)
        return await self._finish()

    async def _answer(self, agent: Agent, ask: Ask) -> None:
        run = self.run
        try:
            with anyio.CancelScope() as self._scope:
                if run.state is not State.ENDING:
                    run.end(await agent(await ask(), run.meter, self._say, self._settled))
            self._scope = None
        except Spent:
            run.end("length")
        except (UpstreamError, Unavailable) as error:
            run.end(ending_of(error))
        except Exception as error:
            if run.state is not State.ENDING:
                logger.exception("run %s failed", self.run_id)
            run.end(ending_of(error))

    def _say(self, step: Step) -> None:
        try:
            self.run.say(step)
        except CannotHappen:
            self._cancel()  # Also an agent that catches what it should not comes to its end.
            raise
        if isinstance(step, ToolResult):
            self._checkpoints.hasten(self.run_id)

    async def _finish(self) -> bool:
        """Store the answer, then say that it is over; whether it was stored. If not, the end tells a failure.

        The end of a run that another process has ended or deleted tells that; there is nothing to store then.
        """
        terminal, is_stored = self.run.ending(monotonic()), False
        try:
            last = appended(terminal, self.run_id, self.log.last_seq + 1)
            await self._store(terminal, [*await self.log.records(), last])
            is_stored = True
        except RunLost as lost:
            logger.warning("run %s was lost: %s", self.run_id, lost)
            terminal, is_stored = ending_of(lost), True
        except Unavailable:  # The store says so in its log, once for all runs.
            terminal = UNSTORED
        except Exception:
            logger.exception("the answer of run %s could not be stored", self.run_id)
            terminal = INTERNAL
        try:
            self.run.close(terminal)
        except Exception:
            # Whatever the log has against it: the run is over.
            logger.exception("run %s could not be ended", self.run_id)
        if self._over is not None:
            self._over.set()
        return is_stored

    async def store_late(self) -> None:
        """Go on trying: as long as a run is stored as running, its session takes no other.

        What the database would never take is given up, all but what was stored of the answer before.
        """
        wait_seconds, is_told = STORE_AGAIN_SECONDS, False
        while True:
            await anyio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, STORE_AGAIN_AT_MOST_SECONDS)
            try:
                return await self._store(UNSTORED, await self.log.records())
            except RunLost:
                return
            except Unavailable:
                continue
            except Exception:
                if not is_told:
                    logger.exception("of the answer of run %s only its last checkpoint is kept", self.run_id)
            try:
                return await self._sessions.interrupt(self.run_id)
            except Unavailable:
                continue
            except Exception:
                if not is_told:
                    logger.exception("run %s cannot be stored as ended: its session takes no other", self.run_id)
            is_told = True

    async def _store(self, terminal: Terminal, records: list[Record]) -> None:
        answer = self.run.said()
        kept = compact(records, self.run_id, whole=answer)
        usage = self.run.meter.usage()
        await self._sessions.finish(self.run_id, ending=terminal, answer=answer, records=kept, usage=usage)
