"""One run as a state machine, without event loop, clock and database: time is an argument, in seconds of any one clock.

    RUNNING ⇄ WAITING ──end──▶ ENDING ──close──▶ OVER ──keep──▶ KEPT ──time──▶ FORGOTTEN

The first ending counts. When the last subscriber has left, over all transports, a run that was told so is cancelled
after the grace period. What is due by time alone is due at ``deadline``.
"""

import logging
from enum import StrEnum
from typing import NoReturn

from msgspec.structs import replace

from chatserver.answer import Answer
from chatserver.commands import is_id
from chatserver.dialogue import TurnOrigin
from chatserver.endings import WRONG
from chatserver.events import (
    EVENT_BYTES_LIMIT,
    TEXTS,
    Done,
    Error,
    Event,
    FinishReason,
    Reasoning,
    Terminal,
    Token,
    ToolCall,
    ToolResult,
    to_json,
)
from chatserver.log import EVENTS_LIMIT, EventLog
from chatserver.meter import Meter, Spent
from chatserver.resources import RunResource
from chatserver.steps import Step
from chatserver.telemetry import UNOBSERVED_RUN, RunObserver

logger = logging.getLogger(__name__)

ADDRESS_BYTES = 100
"""How many bytes an event is longer than its draft, by its run's id and its number."""


PARTS_LIMIT = 10_000
"""Texts of an answer at most, where words and reasoning alternate: each checkpoint builds and stores them all."""


class State(StrEnum):
    """Where a run is in its life."""

    RUNNING = "running"
    """The agent answers."""

    WAITING = "waiting"
    """The agent waits for a person, for example for an approval; meanwhile there is no grace period."""

    ENDING = "ending"
    """The agent says no more; the answer is being stored."""

    OVER = "over"
    """The terminal event is appended. The answer may still have to be stored."""

    KEPT = "kept"
    """The answer is stored; the log is kept in memory for late readers."""

    FORGOTTEN = "forgotten"
    """The run is read from the database."""


class Cause(StrEnum):
    """What can happen to a run, beside readers who come and go."""

    SAY = "say"
    WAIT = "wait"
    GO_ON = "go on"
    END = "end"
    CLOSE = "close"
    KEEP = "keep"
    FORGET = "forget"


TRANSITIONS: dict[State, dict[Cause, State]] = {
    State.RUNNING: {Cause.SAY: State.RUNNING, Cause.WAIT: State.WAITING, Cause.END: State.ENDING},
    State.WAITING: {Cause.SAY: State.WAITING, Cause.GO_ON: State.RUNNING, Cause.END: State.ENDING},
    State.ENDING: {Cause.END: State.ENDING, Cause.CLOSE: State.OVER},
    State.OVER: {Cause.END: State.OVER, Cause.KEEP: State.KEPT, Cause.FORGET: State.FORGOTTEN},
    State.KEPT: {Cause.END: State.KEPT, Cause.FORGET: State.FORGOTTEN},
    # A session may be deleted with its runs while the end of such a run is still to be stored.
    State.FORGOTTEN: {Cause.END: State.FORGOTTEN, Cause.KEEP: State.FORGOTTEN, Cause.FORGET: State.FORGOTTEN},
}
"""The next state of a run, by its state and a cause. A pair that is missing here cannot happen."""

SPEAKING = frozenset(state for state, causes in TRANSITIONS.items() if causes.get(Cause.SAY) is state)
"""The states that each step of the agent leaves as they are."""


class CannotHappen(RuntimeError):
    """A cause that the state of the run does not allow; raised to an agent, it means that the run takes no more."""


class Run:
    """One run, from its start until its log is forgotten."""

    __slots__ = (
        "_began", "_calls", "_ending", "_forget_at", "_grace_seconds", "_kind", "_left_at", "_parts", "_transcript",
        "log", "meter", "observer", "resource", "state", "subscribers",
    )  # fmt: skip

    def __init__(
        self,
        resource: RunResource,
        log: EventLog,
        meter: Meter,
        grace_seconds: float | None,
        now: float,
        observer: RunObserver = UNOBSERVED_RUN,
    ) -> None:
        """``grace_seconds`` None: the run goes on without readers."""
        self.observer = observer
        self.resource = resource
        self.log = log
        self.meter = meter
        self.state = State.RUNNING
        self.subscribers = 0
        self._grace_seconds = grace_seconds
        self._began = now
        self._left_at: float | None = now
        self._forget_at: float | None = None
        self._ending: FinishReason | Error | None = None
        self._calls: dict[str, bool] = {}  # The tool calls, and whether each has its result.
        self._transcript: list[TurnOrigin] = []
        self._kind: type[Event] | None = None  # Of the newest step, while it is text that may grow.
        self._parts = 0

    def _happens(self, cause: Cause) -> None:
        after = TRANSITIONS[self.state].get(cause)
        if after is None:
            raise CannotHappen(f"{cause}: not in a run that is {self.state}")
        if after is not self.state:
            self.state = after
            self.observer.moved(after)

    # What the agent says.

    def say(self, step: Step) -> None:
        """The one entry for the steps of an agent: what is allowed of a step is appended to the log.

        Raises:
            CannotHappen: the run has ended, or this step ends it: a limit is reached, or the agent breaks a rule.
        """
        if self.state not in SPEAKING:
            self._happens(Cause.SAY)
        if isinstance(step, TEXTS):
            return self._say_text(step)
        if isinstance(step, TurnOrigin):
            return self._transcript.append(step)
        if isinstance(step, ToolCall) and is_id(step.call_id) and step.call_id not in self._calls:
            self._calls[step.call_id], self._kind = False, None
        elif isinstance(step, ToolResult) and self._calls.get(step.call_id) is False:
            self._calls[step.call_id] = True
        else:
            self._refuse(f"{type(step).__name__} cannot be told here")
        if len(to_json(step)) > EVENT_BYTES_LIMIT - ADDRESS_BYTES:
            self._refuse(f"{type(step).__name__} is too long")
        self._append(step)

    def said(self) -> Answer:
        """The answer so far, as it is stored."""
        return replace(self.log.answer(), transcript=tuple(self._transcript))

    def _say_text(self, text: Token | Reasoning) -> None:
        if type(text) is not self._kind:
            if self._parts == PARTS_LIMIT:
                self._stop("length")
            if not self._parts:
                self.observer.spoke()
            self._kind, self._parts = type(text), self._parts + 1
        try:
            fitting = self.meter.add_text(text.content)
        except Spent:
            self._stop("length")
        if fitting:
            self._append(text if fitting is text.content else type(text)(content=fitting))
        if fitting is not text.content:
            self._stop("length")

    def _append(self, event: Event) -> None:
        if self.log.append(event).seq >= EVENTS_LIMIT:
            self._stop("length")

    def _refuse(self, problem: str) -> NoReturn:
        """A wrong agent fails its run, and nothing else."""
        logger.error("the agent of run %s breaks the rules: %s", self.resource.run_id, problem)
        self._stop(WRONG)

    def _stop(self, ending: FinishReason | Error) -> NoReturn:
        self.end(ending)
        raise CannotHappen("the run takes no more")

    def wait(self) -> None:
        """The agent waits for a person."""
        self._happens(Cause.WAIT)

    def go_on(self, now: float) -> None:
        """The wait is over. If the run has no reader now, its grace period begins."""
        self._happens(Cause.GO_ON)
        if self._left_at is not None:
            self._left_at = now

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

    def close(self, terminal: Terminal) -> None:
        """Append the terminal event."""
        self._happens(Cause.CLOSE)
        self.log.append(terminal)

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
        if self.state is not State.RUNNING or self._left_at is None or self._grace_seconds is None:
            return None
        return self._left_at + self._grace_seconds

    def pass_time(self, now: float) -> None:
        """Do what is due by now."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return
        if self.state is State.KEPT:
            self.forget()
        else:
            self.end("cancelled")
