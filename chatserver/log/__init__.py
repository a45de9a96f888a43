"""The event log: what a run has said, append-only, read by cursors.

An event is kept before any reader sees it. A reader is a cursor and nothing else: first attach, late join, reconnect
and a switch of transport are all ``cursor(after)``. A reader takes from the log until nothing is left, and is woken
only after that, so no wake-up can be lost.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from chatserver.answer import Answer
from chatserver.events import Event, Record

READ_RECORDS_LIMIT = 256
READ_BYTES_LIMIT = 64 * 1024
"""What one batch holds at most, so that one replay neither fills a socket's memory nor holds the loop."""

SEQ_LIMIT = 1_000_000
"""Events of one run at most. What a crash leaves is numbered above it: no write per token says how far it came."""

EVENTS_LIMIT = SEQ_LIMIT - 1000
"""Where a run is ended: what is appended last must still be numbered below what a crash leaves."""


class Fenced(Exception):
    """Another owner has taken the log over; this one must stop."""


class Cursor(Protocol):
    """A reader's place in a log. It waits from a ``take`` that found nothing until it is woken."""

    after: int
    """The ``seq`` of the last record that was taken."""

    wake: Callable[[], None]
    """Called once a wait: there is something to take, or the log is over. It may be called before ``append`` returns,
    and must not wait."""

    def take(self) -> Sequence[Record]:
        """The next batch of what is ready; empty: there is nothing now, and ``wake`` will tell.

        Readers that are equally far are given the same object.
        """
        ...

    @property
    def is_at_end(self) -> bool:
        """The log is over, and all of it was taken."""
        ...

    def close(self) -> None:
        """Leave; ``wake`` is not called any more."""
        ...


class EventLog(Protocol):
    """One run's log. One owner appends, anybody on any node reads."""

    run_id: str
    last_seq: int
    """The ``seq`` of the newest record; 0: there is none."""

    is_over: bool
    """Nothing follows any more."""

    def append(self, draft: Event) -> Record:
        """Give the draft its ``run_id`` and ``seq``, keep it, wake the readers; the record, of a long text the last.

        Raises:
            Fenced: this is not the owner any more.
        """
        ...

    def cursor(self, after: int) -> Cursor:
        """A reader of all records with a ``seq`` over ``after``.

        Where ``after`` is older than what is kept, a snapshot comes first.
        """
        ...

    def read(self, after: int) -> AsyncGenerator[Sequence[Record], None]:
        """What a cursor is given, until the terminal record. Cancelling or closing it is all that leaving takes."""
        ...

    def answer(self) -> Answer:
        """The fold of all that was appended."""
        ...

    async def records(self) -> list[Record]:
        """All that is kept, the oldest first."""
        ...

    def close(self) -> None:
        """Let go of what this node holds for the log; readers still waiting are ended."""
        ...


class EventLogs(Protocol):
    """Where logs live: in this process, or in a store that all nodes share."""

    async def create(self, run_id: str) -> EventLog:
        """A new log, owned by the caller."""
        ...

    async def open(self, run_id: str) -> EventLog | None:
        """The log of a run, wherever it is owned or stored; None: nobody has it."""
        ...

    def retain(self, run_id: str, forget: Callable[[str], None]) -> None:
        """The log is over, and can still be read. ``forget`` is called for those that there is no room for any more.

        It has to ``forget`` them here too.
        """
        ...

    def forget(self, run_id: str) -> None:
        """Let go of a log that is over: from now on it is what was stored of it."""
        ...
