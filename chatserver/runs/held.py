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
        """How many stores are under way before which calls must not be shown."""

        self.news = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None

    @property
    def is_stored(self) -> bool:
        """Whether all that is to be stored of it is."""
        return self.has_stored_calls and self.stored_seq == self.life.run.writer.last_seq

    @property
    def has_stored_calls(self) -> bool:
        """Whether its calls are stored, and that it waits."""
        return self.stored.issuperset(self.futures) and self.is_waiting is (self.life.run.state is State.WAITING)

    def waits_for(self, call_id: str) -> bool:
        """Whether the call has no answer yet."""
        return call_id in self.futures and not self.futures[call_id].done()

    @property
    def is_idle(self) -> bool:
        """Whether it can be let go of at no loss: nobody reads it, and no tool of this process waits for a reply."""
        return self.is_waiting and not self.life.run.subscribers and not self.life.run.calls.questions
