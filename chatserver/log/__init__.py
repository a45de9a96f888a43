"""The event log: what a run has said, append-only, read by cursors.

An event is kept before any reader sees it. A reader is a cursor and nothing else: first attach, late join, reconnect
and a switch of transport are all ``cursor(after)``. A reader takes from the log until nothing is left, and is woken
only after that, so no wake-up can be lost.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from itertools import islice
from struct import pack
from typing import Protocol, Self

from msgspec import Struct
from msgspec.structs import replace

from chatserver.answer import Answer
from chatserver.events import Event, Record, Terminal, appended, decode

BATCH_RECORDS_LIMIT = 256
BATCH_BYTES_LIMIT = 64 * 1024
"""What one batch holds at most, so that one replay neither fills a socket's memory nor holds the loop."""

SEQ_LIMIT = 1_000_000
"""Events of one run at most. What a crash leaves is numbered above it: no write per token says how far it came."""

EVENTS_LIMIT = SEQ_LIMIT - 1000
"""Where a run is ended: what is appended last must still be numbered below what a crash leaves."""


def batch_of(records: Iterable[Record]) -> Sequence[Record]:
    """As many of the records as one batch holds, at least the first; the others are not asked for."""
    found, room = list[Record](), BATCH_BYTES_LIMIT
    for each in islice(records, BATCH_RECORDS_LIMIT):
        room -= len(each.data)
        if room < 0 and found:
            break
        found.append(each)
    return found


class StoredLog(Struct, frozen=True):
    """A log as it is stored."""

    last_seq: int
    documents: bytes
    """The documents of its events, merged, one a line: JSON has no line end of its own."""

    lengths: bytes = b""
    """The characters of each text that was merged, in their order, as 16 bits with the low byte first."""

    @classmethod
    def of(cls, records: Sequence[Record], lengths: Sequence[int] = ()) -> Self:
        """A log of records, of which there is one at least, with the lengths of what they have merged."""
        documents = b"\n".join([each.data for each in records])
        return cls(records[-1].seq, documents, pack(f"<{len(lengths)}H", *lengths))

    def ended(self, run_id: str, ending: Terminal) -> Self:
        """This log, if it has its end, or else with this one behind it."""
        newest = self.documents[self.documents.rfind(b"\n") + 1 :]
        if isinstance(decode(newest), Terminal):
            return self
        last = appended(ending, run_id, self.last_seq + 1)
        return replace(self, last_seq=last.seq, documents=b"\n".join([self.documents, last.data]))


class Fenced(Exception):
    """Another owner has taken the log over; this one must stop."""


class Cursor(Protocol):
    """A reader's place in a log. It waits from a ``take`` that leaves nothing until it is woken."""

    after: int
    """The ``seq`` of the last record that was taken."""

    is_waiting: bool
    """Everything was taken, and ``wake`` will tell when there is more."""

    wake: Callable[[], None]
    """Called once a wait: there is something to take, or the log is over. It may be called before ``append`` returns,
    and must not wait."""

    def take(self) -> Sequence[Record]:
        """The next batch of what is ready; empty: there is nothing now.

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

    @property
    def is_fenced(self) -> bool:
        """Whether another owner has taken it over. Others may have been told more of it than is shown here."""
        ...

    @property
    def last_seq(self) -> int:
        """The ``seq`` of the newest record; 0: there is none."""
        ...

    @property
    def is_over(self) -> bool:
        """Nothing follows any more."""
        ...

    @property
    def size_bytes(self) -> int:
        """About what it takes of the memory, without what is fresh."""
        ...

    async def restore(self, stored: StoredLog) -> None:
        """Begin with what was stored of a log; it is over if that was."""
        ...

    def append(self, draft: Event) -> Record:
        """Give the draft its ``run_id`` and ``seq``, keep it, wake the readers; a text must fit into one event.

        Raises:
            Fenced: this is not the owner any more.
        """
        ...

    def cursor(self, after: int) -> Cursor:
        """A reader of all events with a ``seq`` over ``after``; old ones come merged, cut where the reader is.

        Where ``after`` is in what a crash took, a snapshot comes first.
        """
        ...

    def read(self, after: int) -> AsyncGenerator[Sequence[Record], None]:
        """What a cursor is given, until the terminal record. Cancelling or closing it is all that leaving takes."""
        ...

    def answer(self) -> Answer:
        """The fold of all that was appended."""
        ...

    def stored(self, *last: Record) -> StoredLog:
        """The log as it is stored, with records behind it that are not appended yet."""
        ...

    def close(self) -> None:
        """Let go of what this node holds for the log; readers still waiting are ended."""
        ...


class EventLogs(Protocol):
    """Where logs live: in this process, or in a store that all nodes share."""

    async def create(self, run_id: str) -> EventLog:
        """A new log, owned by the caller."""
        ...

    async def revive(self, run_id: str, stored: StoredLog) -> EventLog:
        """A log that goes on where a stored one ends, owned by the caller."""
        ...

    async def open(self, run_id: str) -> EventLog | None:
        """The log of a run, wherever it is owned or stored; None: nobody has it."""
        ...

    async def restore(self, run_id: str) -> EventLog | None:
        """The log of a run that is over, as it is stored; None: it is not."""
        ...

    def followed(self) -> Sequence[EventLog]:
        """The logs with readers here whose runs go on at other processes."""
        ...

    def lose(self, run_id: str) -> None:
        """The database has the end of the run, which is another process's by now: all who read it are told that end.

        Where its log can be followed, ``append`` raises ``Fenced`` from now on.
        """
        ...

    def retain(self, run_id: str, forget: Callable[[str], None]) -> None:
        """The log is over, and can still be read. ``forget`` is called for those that there is no room for any more.

        It has to ``forget`` them here too.
        """
        ...

    def forget(self, run_id: str) -> None:
        """Let go of a log that is over: from now on it is what was stored of it."""
        ...
