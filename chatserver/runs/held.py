"""A run that is held: calls of it wait for an answer."""

import asyncio

from chatserver.runs.life import Life
from chatserver.runs.states import State
from chatserver.waiting import Resolution, WaitingCall


class HeldRun:
    """A run with calls that wait: each call with its future, and how much of that is stored."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.futures: dict[str, asyncio.Future[Resolution]] = {}
        self.calls: dict[str, WaitingCall] = {}
        self.stored: frozenset[str] = frozenset()
        self.stored_seq = 0
        """Up to which event it is stored."""

        self.is_waiting = False
        """Whether the run is stored as one that waits."""

        self.asking = 0
        """How many calls are being told that must be stored before they are shown."""

        self.news = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None

    def withhold(self) -> None:
        """A call waits: nothing is shown before it is stored with all that a continuation needs, and only so stored."""
        self.life.run.writer.withhold()
        self.life.checkpoints.remove(self.life.run_id)

    def show(self) -> None:
        """Show all from now on, unless a call waits: if the process dies, the run ends."""
        run = self.life.run
        if not self.asking and not run.calls.held and run.state is State.RUNNING:
            run.writer.show()
            self.life.checkpoints.add(run)

    @property
    def waiting(self) -> list[str]:
        """The calls that have no answer yet."""
        return [call_id for call_id in self.futures if self.waits_for(call_id)]

    @property
    def is_stored(self) -> bool:
        """Whether all that another process needs to go on is stored."""
        run = self.life.run
        is_state_stored = self.is_waiting is (run.state is State.WAITING)
        return self.stored.issuperset(self.waiting) and is_state_stored and self.stored_seq == run.writer.last_seq

    @property
    def has_stored_call(self) -> bool:
        """Whether a call waits, also in the store: another process can go on. What is not stored, nobody was shown."""
        return not self.stored.isdisjoint(self.waiting)

    def waits_for(self, call_id: str) -> bool:
        """Whether the call has no answer yet."""
        return call_id in self.futures and not self.futures[call_id].done()

    @property
    def is_idle(self) -> bool:
        """Whether it can be let go of at no loss: nobody reads it, and no tool of this process waits for a reply."""
        return self.is_waiting and not self.life.run.subscribers and not self.life.run.calls.questions
