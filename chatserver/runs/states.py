"""The states of a run, and what leads from one to the next."""

from enum import StrEnum


class State(StrEnum):
    """Where a run is in its life."""

    RUNNING = "running"
    """The agent answers."""

    WAITING = "waiting"
    """Calls wait for a person or for a client, and no other call goes on; meanwhile there is no grace period."""

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
    PARK = "park"


TRANSITIONS: dict[State, dict[Cause, State]] = {
    State.RUNNING: {
        Cause.SAY: State.RUNNING,
        Cause.WAIT: State.WAITING,
        Cause.END: State.ENDING,
        Cause.PARK: State.FORGOTTEN,
    },
    State.WAITING: {
        Cause.SAY: State.WAITING,
        Cause.GO_ON: State.RUNNING,
        Cause.END: State.ENDING,
        Cause.PARK: State.FORGOTTEN,
    },
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
