"""The event log: what a run has said, append-only, read by cursors.

An event is kept before any reader sees it. A reader is a cursor and nothing else: first attach, late join,
reconnect and a switch of transport are all ``read(after)``. A woken reader always reads the log again, so no wake-up
can be lost in a way that matters.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol, TypeAlias

from chatserver.events import Answer, Event, Record

READ_RECORDS_LIMIT = 256
READ_BYTES_LIMIT = 64 * 1024
"""What one batch holds at most, so that one replay neither fills a socket's memory nor holds the loop."""

SEQ_LIMIT = 1_000_000
"""Events of one run at most. What a crash leaves is numbered above it: no write per token says how far it came."""

EVENTS_LIMIT = SEQ_LIMIT - 1000
"""Where a run is ended: what is appended last must still be numbered below what a crash leaves."""


Take: TypeAlias = Callable[[Sequence[Record]], bool]
"""Send a batch at once, without waking its reader; False: that cannot be done now, and nothing was sent."""


class Fenced(Exception):
    """Another owner has taken the log over; this one must stop."""


class EventLog(Protocol):
    """One run's log. One owner appends, anybody on any node reads."""

    run_id: str

    async def append(self, draft: Event) -> int:
        """Give the draft its ``run_id`` and ``seq`` and keep it; readers see it when this returns its ``seq``.

        Raises:
            Fenced: this is not the owner any more.
        """
        ...

    def append_now(self, draft: Event) -> int | None:
        """As ``append``, without waiting; readers that wait with a ``take`` may be offered it before this returns.

        None: it would have to wait, and nothing was done.
        """
        ...

    def read(self, after: int, take: Take | None = None) -> AsyncGenerator[Sequence[Record], None]:
        """All records with a ``seq`` over ``after``, in batches of what is ready, until the terminal one.

        Where ``after`` is older than what is kept, as of a run that was stored, a snapshot comes first. Cancelling or
        closing the iterator is all that leaving takes. While it waits, ``take`` is offered what comes, if the log can:
        what it takes does not come out here. The terminal record always does.
        """
        ...

    async def last_seq(self) -> int:
        """The ``seq`` of the newest record."""
        ...

    async def answer(self) -> Answer:
        """The fold of all that was appended."""
        ...

    async def records(self) -> list[Record]:
        """All that is kept, the oldest first."""
        ...

    async def close(self) -> None:
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
