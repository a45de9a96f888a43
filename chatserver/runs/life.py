"""The life of one run: the task of its agent, the timer of its deadline, and how its end is stored."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeAlias

import anyio

from chatserver.agent import Agent
from chatserver.calls import Calls, Toolbox
from chatserver.context import RunContext
from chatserver.endings import INTERNAL, INTERRUPTED, UNSTORED, ending_of
from chatserver.errors import RunLost, Unavailable, UpstreamError
from chatserver.events import Error, FinishReason, Terminal, ToolCall, ToolResult, appended
from chatserver.log import Fenced, StoredLog
from chatserver.meter import Spent
from chatserver.providers import ModelRequest
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.run import CannotHappen, Run, State
from chatserver.sessions import Sessions
from chatserver.steps import Step

logger = logging.getLogger(__name__)

STORE_AGAIN_SECONDS = 0.5
STORE_AGAIN_AT_MOST_SECONDS = 5.0
"""Between tries to store an answer that the database refuses (a full disk, a lost server). Each wait is longer."""

EARLY_SECONDS = 0.001
"""How much too early uvloop's timers may be, whose clock counts whole milliseconds: a timer that is early would be set
again, dozens of times, until the deadline has passed."""

HASTENING = ToolCall, ToolResult
"""The steps that are stored soon."""

Ask: TypeAlias = Callable[[], Awaitable[ModelRequest]]
"""Builds the request to the model."""


class Life:
    """A ``Run`` of this process, with the task and the timer that drive it."""

    def __init__(self, user: str, run: Run, sessions: Sessions, checkpoints: Checkpoints, toolbox: Toolbox) -> None:
        self.user = user
        self.run = run
        self.log = run.log
        self.run_id = run.resource.run_id
        self.on_lost: Callable[[], None] = lambda: None
        """Called when another process has ended the run: what that process has stored is the run's log."""

        self._sessions = sessions
        self._checkpoints = checkpoints
        self._toolbox = toolbox
        self._scope: anyio.CancelScope | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_forget: Callable[[], None] | None = None
        self._over: anyio.Event | None = (
            None  # Made only where something waits for the end: an event takes 1 KB of each run.
        )
        self._settling: anyio.Event | None = anyio.Event()

    # Readers, ends and time.

    def count(self, readers: int) -> None:
        """Add so many subscribers, or remove them (negative)."""
        self.run.count(readers, monotonic())
        self._set_timer()

    def cancel(self) -> None:
        """End the run as cancelled, if it is not ending already."""
        self._end("cancelled")

    def interrupt(self) -> None:
        """End the run because the server goes down."""
        self._end(INTERRUPTED)

    def keep(self, seconds: float, on_forget: Callable[[], None]) -> None:
        """The answer is stored: keep the log for so long, then call ``on_forget``."""
        self._on_forget = on_forget
        self.run.keep(monotonic() + seconds)
        self._set_timer()

    def forget(self) -> None:
        """The run is read from the database from now on: stop the timer."""
        self.run.forget()
        self._set_timer()

    def stop(self) -> None:
        """Stop the timer: the server ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def settle(self) -> None:
        """The run is on disk."""
        if self._settling is not None:
            self._settling.set()
            self._settling = None
            self.run.observer.began()

    @property
    def is_settled(self) -> bool:
        """Whether the run is on disk; before that, it may never be."""
        return self._settling is None

    async def settled(self) -> None:
        """Wait until the run is on disk."""
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
            self._timer = asyncio.get_running_loop().call_at(deadline + EARLY_SECONDS, self._pass_time)

    def _pass_time(self) -> None:
        self.run.pass_time(monotonic())
        if self.run.state is State.ENDING:
            self._cancel()
        if self.run.state is State.FORGOTTEN and self._on_forget is not None:
            return self._on_forget()
        self._set_timer()

    # The task.

    async def live(self, agent: Agent, ask: Ask) -> bool:
        """Let the agent answer, store the answer, append the terminal event; whether the answer was stored.

        Nothing is stored, and no end is said, before the run itself is on disk (``settle``).
        """
        await self._answer(agent, ask)
        await self.settled()
        self.run.meter.end_turn(None)
        return await self._finish()

    async def _answer(self, agent: Agent, ask: Ask) -> None:
        run = self.run
        try:
            with anyio.CancelScope() as self._scope:
                if run.state is not State.ENDING:
                    run.end(await agent(await ask(), self._context()))
            self._scope = None
        except Spent:
            run.end("length")
        except (UpstreamError, Unavailable) as error:
            run.end(ending_of(error))
        except Exception as error:
            if run.state is not State.ENDING:
                logger.exception("run %s failed", self.run_id)
            run.end(ending_of(error))

    def _context(self) -> RunContext:
        run, resource = self.run, self.run.resource
        return RunContext(
            user=self.user,
            session_id=resource.session_id,
            run_id=resource.run_id,
            meter=run.meter,
            emit=self._say,
            settled=self.settled,
            calls=Calls(self._toolbox, self._say, self.settled, run.observer),
            observer=run.observer,
        )

    def _say(self, step: Step) -> None:
        try:
            self.run.say(step)
        except CannotHappen:
            self._cancel()  # So that an agent that catches this exception ends too.
            raise
        if isinstance(step, HASTENING):
            self._checkpoints.hasten(self.run_id)

    async def _finish(self) -> bool:
        """Store the answer, then append the terminal event, an error if it was not stored; whether it was stored.

        A run that another process has ended or deleted ends with an error that says so; then nothing is left to store.
        """
        terminal, is_stored = self.run.ending(monotonic()), False
        try:
            last = appended(terminal, self.run_id, self.log.last_seq + 1)
            await self._store(terminal, self.log.stored(last))
            is_stored = True
        except RunLost as lost:
            logger.warning("run %s was lost: %s", self.run_id, lost)
            terminal, is_stored = ending_of(lost), True
            if not lost.is_deleted:
                self.on_lost()
        except Unavailable:  # `sessions/trouble.py` logs it once for all runs.
            terminal = UNSTORED
        except Exception:
            logger.exception("the answer of run %s could not be stored", self.run_id)
            terminal = INTERNAL
        try:
            self.run.close(terminal)
        except Fenced:
            """The readers here are told what the new owner of the run has stored."""
        except Exception:
            # The run is over, whatever the log refused.
            logger.exception("run %s could not be ended", self.run_id)
        self.run.observer.ended(terminal, self.run.meter.usage())
        if self._over is not None:
            self._over.set()
        return is_stored

    async def store_late(self) -> None:
        """Go on trying to store the end: as long as a run is stored as running, its session takes no other run.

        An answer that the database never takes is given up, except for its last checkpoint.
        """
        wait_seconds, is_told = STORE_AGAIN_SECONDS, False
        while True:
            await anyio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, STORE_AGAIN_AT_MOST_SECONDS)
            try:
                return await self._store(UNSTORED, self.log.stored())
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

    async def _store(self, terminal: Terminal, log: StoredLog) -> None:
        answer, usage = self.run.said(), self.run.meter.usage()
        await self._sessions.finish(self.run_id, ending=terminal, answer=answer, log=log, usage=usage)
