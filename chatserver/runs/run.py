"""One run as a state machine, without event loop, clock and database: time is an argument, in seconds of any one clock.

    RUNNING ⇄ WAITING ──end──▶ ENDING ──close──▶ OVER ──keep──▶ KEPT ──time──▶ FORGOTTEN
                 └───────────────────────park───────────────────────────────────▲

The first ending counts. When the last subscriber has left, over all transports, a run that was told so is cancelled
after the grace period. What is due by time alone is due at ``deadline``. A run is parked from RUNNING, too, where a
call of it waits.
"""

import logging
from collections.abc import Collection
from itertools import islice
from typing import NoReturn

from msgspec.structs import replace

from chatserver.answer import Answer, is_open, result_of
from chatserver.dialogue import TurnOrigin
from chatserver.endings import WRONG
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    TEXT_CHARS_PER_EVENT,
    TEXTS,
    Done,
    Error,
    Event,
    FinishReason,
    Reasoning,
    Terminal,
    Token,
    ToolCall,
    pieces,
    to_json,
)
from chatserver.log import EVENTS_LIMIT, EventLog
from chatserver.log.writer import Writer
from chatserver.meter import Meter, Spent
from chatserver.parts import ToolCallPart
from chatserver.resources import RunResource
from chatserver.runs.states import SPEAKING, TRANSITIONS, CannotHappen, Cause, State
from chatserver.runs.told_calls import CallStep, ToldCalls
from chatserver.steps import Step
from chatserver.telemetry import UNOBSERVED_RUN, RunObserver

logger = logging.getLogger(__name__)

ADDRESS_BYTES = 100
"""How many bytes an event is longer than its draft, by its run's id and its number."""

PARTS_LIMIT = 10_000
"""Texts of an answer at most, where words and reasoning alternate: each checkpoint builds and stores them all."""

CLOSED_CALLS_LIMIT = 900
"""Calls that are given a result when their run ends: fewer than the events that ``EVENTS_LIMIT`` leaves for the end."""


class Run:
    """One run, from its start until its log is forgotten."""

    __slots__ = (
        "_began", "_ending", "_forget_at", "_grace_seconds", "_held_seconds", "_kind", "_left_at", "_parts",
        "_transcript", "calls", "log", "meter", "observer", "resource", "state", "subscribers", "writer",
    )  # fmt: skip

    def __init__(
        self,
        resource: RunResource,
        log: EventLog,
        meter: Meter,
        grace_seconds: float | None,
        now: float,
        observer: RunObserver = UNOBSERVED_RUN,
        held_seconds: float | None = None,
    ) -> None:
        """``grace_seconds`` None: the run goes on without readers.

        ``held_seconds``: how long a waiting run without readers stays in memory; None: as long as it waits.
        """
        self.observer = observer
        self.resource = resource
        self.log = log
        self.writer = Writer(log)
        self.meter = meter
        self.state = State.RUNNING
        self.subscribers = 0
        self._grace_seconds = grace_seconds
        self._held_seconds = held_seconds
        self._began = now
        self._left_at: float | None = now
        self._forget_at: float | None = None
        self._ending: FinishReason | Error | None = None
        self.calls = ToldCalls()
        self._transcript: list[TurnOrigin] = []
        self._kind: type[Event] | None = None  # Of the newest step, while it is text that may go on.
        self._parts = 0

    def _happens(self, cause: Cause) -> None:
        after = TRANSITIONS[self.state].get(cause)
        if after is None:
            raise CannotHappen(f"{cause}: not in a run that is {self.state}")
        if after is not self.state:
            self.state = after
            if after not in SPEAKING:
                self._kind = None
            self.observer.moved(after)

    # What the agent says.

    def say(self, step: Step) -> bool:
        """The one entry for the steps of an agent: what is allowed of a step is appended to the log.

        Returns whether it is more than text, or is said while calls wait.

        Raises:
            CannotHappen: the run has ended, or this step ends it: a limit is reached, or the agent breaks a rule.
        """
        if not isinstance(step, TEXTS):
            self._say_more(step)
            return True
        if len(content := step.content) > TEXT_CHARS_PER_EVENT:
            return [self.say(piece) for piece in pieces(step)][-1]
        if type(step) is not self._kind:
            self._begin_text(type(step))
        try:
            fitting = self.meter.add_text(content)
        except Spent:
            self._stop("length")
        if fitting:
            self._append(step if fitting is content else type(step)(content=fitting))
        if fitting is not content:
            self._stop("length")
        return bool(self.calls.held)

    def _begin_text(self, kind: type[Token | Reasoning]) -> None:
        self._happens(Cause.SAY)
        if self._parts == PARTS_LIMIT:
            self._stop("length")
        if not self._parts:
            self.observer.spoke()
        self._kind, self._parts = kind, self._parts + 1

    def _say_more(self, step: TurnOrigin | CallStep) -> None:
        self._happens(Cause.SAY)
        if isinstance(step, TurnOrigin):
            return self._transcript.append(step)
        if not self.calls.allow(step):
            self._refuse(f"{type(step).__name__} cannot be told here")
        if len(to_json(step)) > EVENT_BYTES_LIMIT - ADDRESS_BYTES:
            self._refuse(f"{type(step).__name__} is too long")
        if isinstance(step, ToolCall):
            self._kind = None
        self.calls.tell(step)
        self._append(step)
        if self.state is State.WAITING or self.calls.held:
            self._rest()

    def _append(self, event: Event) -> None:
        if self.writer.append(event).seq >= EVENTS_LIMIT:
            self._stop("length")

    def said(self) -> Answer:
        """The answer so far, as it is stored."""
        return replace(self.writer.answer(), transcript=tuple(self._transcript))

    def _refuse(self, problem: str) -> NoReturn:
        """A wrong agent fails its run, and nothing else."""
        logger.error("the agent of run %s breaks the rules: %s", self.resource.run_id, problem)
        self._stop(WRONG)

    def _stop(self, ending: FinishReason | Error) -> NoReturn:
        self.end(ending)
        raise CannotHappen("the run takes no more")

    # How it waits.

    def resume(self, said: Answer, waiting: Collection[str]) -> None:
        """Wait on where an earlier process has waited: with what was said, and with these calls that wait."""
        calls = [part for part in said.parts if isinstance(part, ToolCallPart)]
        self.calls.resume(calls, waiting)
        self._transcript = list(said.transcript)
        self._parts = len(said.parts) - len(calls)
        self.wait()

    def hold(self, call_id: str, asker: str | None = None) -> None:
        """The call waits for an answer, and the one whose tool asks, for this call.

        The run waits as soon as all its calls without a result do.
        """
        if self.state not in SPEAKING:
            self._happens(Cause.WAIT)
        self.calls.hold(call_id, asker)
        self._rest()

    def release(self, call_id: str, now: float) -> None:
        """The call has been answered, and goes on."""
        self.calls.release(call_id)
        if self.state is State.WAITING:
            self.go_on(now)

    def _rest(self) -> None:
        """Wait, or go on, as the calls without a result have it."""
        is_resting = self.calls.is_resting
        if is_resting is not (self.state is State.WAITING):
            self._happens(Cause.WAIT if is_resting else Cause.GO_ON)

    def wait(self) -> None:
        """The agent waits for a person."""
        self._happens(Cause.WAIT)

    def go_on(self, now: float) -> None:
        """The wait is over. If the run has no reader now, its grace period begins."""
        self._happens(Cause.GO_ON)
        if self._left_at is not None:
            self._left_at = now

    def park(self) -> None:
        """Let go of a run with calls that wait: whoever needs it takes it from the database."""
        self._happens(Cause.PARK)
        self.writer.drop()

    # How it ends.

    def end(self, ending: FinishReason | Error) -> None:
        """End the run like this, unless it is ending already."""
        self._happens(Cause.END)
        if self._ending is None:
            self._ending = ending

    def ending(self, now: float) -> Terminal:
        """The terminal event of a run that is ending."""
        if isinstance(self._ending, Error):
            return self._ending
        usage = self.meter.usage()
        return Done(
            session_id=self.resource.session_id,
            message_id=self.resource.message_id,
            finish_reason=self._ending or "stop",
            total_tokens=usage.input_tokens + usage.output_tokens,
            usage=usage,
            duration_ms=round((now - self._began) * 1000),
        )

    def close_calls(self, now: float) -> None:
        """The run is ending: tell of each call without a result what is known of it."""
        if self.calls.has_open:
            for part in islice(filter(is_open, self.writer.answer().parts), CLOSED_CALLS_LIMIT):
                self.writer.append(result_of(self.calls.closed(part, now, self._began)))

    def close(self, terminal: Terminal) -> None:
        """Append the terminal event."""
        self._happens(Cause.CLOSE)
        self.writer.show()
        self.writer.append(terminal)

    def keep(self, until: float) -> None:
        """The answer is stored: keep the log until then."""
        self._happens(Cause.KEEP)
        self._forget_at = until

    def forget(self) -> None:
        """Keep the log no longer."""
        self._happens(Cause.FORGET)

    @property
    def is_over(self) -> bool:
        """Whether the terminal event is appended."""
        return self.state in (State.OVER, State.KEPT, State.FORGOTTEN)

    # Readers and time.

    def count(self, readers: int, now: float) -> None:
        """The one entry for readers: so many more subscribe to the run, or fewer (negative)."""
        self.subscribers += readers
        self._left_at = None if self.subscribers else now

    @property
    def deadline(self) -> float | None:
        """When ``pass_time`` has to be called, if nothing else happens before; None: never."""
        if self.state is State.KEPT:
            return self._forget_at
        if self.state not in SPEAKING or self._left_at is None:
            return None
        if self.state is State.WAITING and self.calls.questions:  # Their tools do not go on in another process.
            return None
        seconds = self._grace_seconds if self.state is State.RUNNING else self._held_seconds
        return None if seconds is None else self._left_at + seconds

    def pass_time(self, now: float) -> None:
        """Do what is due by now."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return
        match self.state:
            case State.KEPT:
                self.forget()
            case State.WAITING:
                self._left_at = now  # Whoever drives the run lets go of it, and tries again later if that fails.
            case _:
                self.end("cancelled")
