"""The life of one run: the task of its agent, the timer of its deadline, and how its end is stored."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from time import monotonic
from typing import TypeAlias

import anyio
from msgspec.structs import replace

from chatserver.agent import Agent
from chatserver.answer import Answer
from chatserver.call_checks import Toolbox
from chatserver.calls import Calls, Hold
from chatserver.commands import ChatRequest
from chatserver.context import RunContext
from chatserver.endings import INTERRUPTED, ending_of
from chatserver.errors import Unavailable, UpstreamError
from chatserver.events import Error, Event, FinishReason, ToolCall, ToolResult
from chatserver.log.merged import events_of
from chatserver.meter import Spent
from chatserver.providers import ModelRequest
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.ends import RunEnd
from chatserver.runs.places import Place
from chatserver.runs.run import Run
from chatserver.runs.states import SPEAKING, CannotHappen, State
from chatserver.sessions import Sessions
from chatserver.steps import Step
from chatserver.tools.context import ToolContext

logger = logging.getLogger(__name__)

EARLY_SECONDS = 0.001
"""How much too early uvloop's timers may be, whose clock counts whole milliseconds: a timer that is early would be set
again, dozens of times, until the deadline has passed."""

HASTENING = ToolCall, ToolResult
"""The steps that are stored soon."""

Ask: TypeAlias = Callable[[RunContext], Awaitable[ModelRequest]]
"""Builds the request to the model; in a run that was taken from the database, when its open calls are completed."""


class Life:
    """A ``Run`` of this process, with the task and the timer that drive it."""

    def __init__(self, user: str, run: Run, sessions: Sessions, checkpoints: Checkpoints, toolbox: Toolbox) -> None:
        self.user = user
        self.run = run
        self.log = run.log
        self.run_id = run.resource.run_id
        self.on_lost: Callable[[], None] = lambda: None
        """Called when the run is another process's, and over: what is stored of it is the run's log."""

        self.request = ChatRequest()
        """What the client has asked for."""

        self.place: Place | None = None
        """The run's place, while it goes on."""

        self.billed = 0
        """How many of its tokens are stored as spent."""

        self.hold: Callable[[Life], Hold]
        """Makes what has the run's calls wait. A life does not keep it: it refers to the life, a cycle."""

        self.on_rest: Callable[[], None] = lambda: None
        """Called when a call waits, and when a run that has calls which wait says something."""

        self.on_idle: Callable[[Life], None] = lambda _: None
        """Called when the run waits and has had no reader for long."""

        self.checkpoints = checkpoints
        self._sessions = sessions
        self._toolbox = toolbox
        self._turns: int | None = None  # Of a run that was taken from the database: how many turns it has had.
        self._scope: anyio.CancelScope | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_forget: Callable[[], None] | None = None
        self._is_interrupted = False
        self._over: asyncio.Event | None = None
        """Made only where something waits for the end: an event takes 1 KB of each run."""
        self._settling: asyncio.Event | None = asyncio.Event()

    # Readers, ends and time.

    def count(self, readers: int) -> None:
        """Add so many subscribers, or remove them (negative)."""
        self.run.count(readers, monotonic())
        self._set_timer()

    def cancel(self) -> None:
        """End the run as cancelled, if it is not ending already."""
        self.end("cancelled")

    def interrupt(self) -> None:
        """End the run because the server goes down, which waits for no database."""
        self._is_interrupted = True
        self.end(INTERRUPTED)

    def keep(self, seconds: float, on_forget: Callable[[], None]) -> None:
        """The answer is stored: keep the log for so long, then call ``on_forget``."""
        self._on_forget = on_forget
        self.run.keep(monotonic() + seconds)
        self._set_timer()

    def forget(self) -> None:
        """The run is read from the database from now on: stop the timer."""
        self.run.forget()
        self._set_timer()

    # Waiting.

    def stored_request(self) -> ChatRequest:
        """What was asked for, as far as a continuation needs it: the message is stored in the session."""
        return replace(self.request, message=None, idempotency_key=None, regenerate=None, parent_id=None)

    def resume(self, said: Answer, waiting: Collection[str]) -> None:
        """The run was taken from the database, where these calls wait."""
        self.run.resume(said, waiting)
        self._turns = sum(1 for origin in said.transcript if origin.call_ids)

    def rested(self) -> None:
        """A call of the run waits, or beside calls that wait something was said."""
        self._set_timer()
        self.on_rest()

    async def leave_place(self) -> None:
        """Give the place back: the run waits, and takes another one to go on."""
        place, self.place = self.place, None
        if place is not None:
            await place.release()

    def take(self, place: Place) -> None:
        """Have this place, as a run that goes on."""
        self.place = place
        self.run.meter.day = place.day
        self.count(0)

    def go_on(self, call_id: str, place: Place | None) -> Place | None:
        """A call that waited has been answered; the place, where it is not needed."""
        self.run.release(call_id, monotonic())
        if place is not None and self.place is None and self.run.state is State.RUNNING:
            self.take(place)
            return None
        self._set_timer()
        return place

    def let_go(self) -> None:
        """The run waits on in the database, or at another process: end its task, and say nothing."""
        self.run.park()
        self._cancel()
        self.stop()
        self.run.observer.parked()
        if self._over is not None:
            self._over.set()

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
            self._over = self._over or asyncio.Event()
            await self._over.wait()

    def end(self, ending: FinishReason | Error) -> None:
        """End the run like this, if it is not ending already."""
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
        now, deadline = monotonic(), self.run.deadline
        is_idle = self.run.state is State.WAITING and deadline is not None and now >= deadline
        self.run.pass_time(now)
        if is_idle:
            self.on_idle(self)
        if self.run.state is State.ENDING:
            self._cancel()
        if self.run.state is State.FORGOTTEN and self._on_forget is not None:
            return self._on_forget()
        self._set_timer()

    # The task.

    async def live(self, agent: Agent, ask: Ask) -> bool | None:
        """Let the agent answer, store the answer, append the terminal event; whether the answer was stored.

        None: the run waits, and was let go of.

        Nothing is stored, and no end is said, before the run itself is on disk (``settle``).
        """
        await self._answer(agent, ask)
        if self.run.state is State.FORGOTTEN:
            return None
        await self.settled()
        self.run.meter.end_turn(None)
        return await self._finish()

    async def _answer(self, agent: Agent, ask: Ask) -> None:
        run = self.run
        try:
            with anyio.CancelScope() as self._scope:
                if run.state in SPEAKING:
                    context = self._context()
                    run.end(await agent(await ask(context), context))
            self._scope = None
        except Spent:
            run.end("length")
        except (UpstreamError, Unavailable) as error:
            run.end(ending_of(error))
        except Exception as error:
            if run.state in SPEAKING:
                logger.exception("run %s failed", self.run_id)
            run.end(ending_of(error))

    def _context(self) -> RunContext:
        run, resource = self.run, self.run.resource
        told = ToolContext(user=self.user, session_id=resource.session_id, run_id=resource.run_id)
        client_tools = self.request.tools or ()
        return RunContext(
            user=self.user,
            session_id=resource.session_id,
            run_id=resource.run_id,
            meter=run.meter,
            emit=self.say,
            settled=self.settled,
            calls=Calls(self._toolbox, self.say, self.settled, run.observer, told, self.hold(self), client_tools),
            told=self._told,
            observer=run.observer,
            is_resumed=self._turns is not None,
            turns=self._turns or 0,
        )

    def _told(self) -> Sequence[Event]:
        return [event for event, _, _ in events_of(self.run.writer.stored())]

    def say(self, step: Step) -> None:
        """Tell the run a step of its agent; raises as ``Run.say``."""
        try:
            if not self.run.say(step):
                return
        except CannotHappen:
            self._cancel()  # So that an agent that catches this exception ends too.
            raise
        if type(step) is ToolCall:
            self.run.calls.begun[step.call_id] = monotonic()
        if type(step) in HASTENING:
            self.checkpoints.hasten(self.run_id)
        if self.run.calls.held:
            self.rested()

    async def _finish(self) -> bool:
        is_stored = await RunEnd(self.run, self._sessions, self.billed, self.on_lost).finish(self._pause)
        if self._over is not None:
            self._over.set()
        return is_stored

    async def _pause(self, seconds: float) -> bool:
        """Wait before the end is stored again; whether that makes sense: not where the server goes down."""
        if not self._is_interrupted:
            with anyio.CancelScope() as self._scope:
                await anyio.sleep(seconds)
        return not self._is_interrupted

    async def store_late(self) -> None:
        """Go on trying to store the end, as ``RunEnd`` does."""
        await RunEnd(self.run, self._sessions, self.billed, self.on_lost).store_late()
