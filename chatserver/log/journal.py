"""The journal: how the nodes that serve one database share the logs of runs that go on.

Readers are local: on every node they are cursors in logs in its memory. A run is written on one node, its owner. A
node that has readers of the run follows it once, whatever their number. What is appended between two round trips is
handed over together, so that no token has one of its own.
"""

from collections.abc import Sequence
from typing import Protocol

import anyio

from chatserver.log import EventLog, Fenced
from chatserver.log.memory import MemoryLog

CATCH_UP_SECONDS = 2.0


async def catch_up(log: EventLog, seq: int) -> None:
    """Wait until the log of another node's run has come so far here; not for ever, since that may never be."""
    if log.last_seq < seq:
        with anyio.move_on_after(CATCH_UP_SECONDS):
            async for _ in log.read(log.last_seq):
                if log.last_seq >= seq:
                    return


class Journal(Protocol):
    """What a node asks of the others about the logs of runs that go on."""

    async def own(self, run_id: str, is_claimed: bool = False) -> EventLog:
        """A new log, which this node writes; what is appended is handed over to the nodes that follow the run.

        ``is_claimed``: the database has given the run to this node, whatever the journal says of an earlier owner.

        Raises:
            Fenced: another node owns the run.
            Unavailable: nobody can say who does.
        """
        ...

    async def follow(self, run_id: str) -> EventLog | None:
        """A log that grows as the owner's does, from its first event; None: no node has a log of the run.

        Raises:
            Unavailable: nobody can say, and the run is not stored as over.
        """
        ...

    def followed(self) -> Sequence[EventLog]:
        """The logs that are followed and not over, and that somebody here reads."""
        ...

    def lose(self, run_id: str) -> None:
        """The database has the end of a run that is not ours any more: all its readers are told that end."""
        ...

    def release(self, run_id: str) -> None:
        """This node needs the log that it owned no more: it is over and stored, or there never was such a run."""
        ...


class LocalJournal:
    """The ``Journal`` of nodes in one process, as a rule of one: a log is handed over whole, as the object it is."""

    def __init__(self) -> None:
        self._logs: dict[str, EventLog] = {}

    async def own(self, run_id: str, is_claimed: bool = False) -> EventLog:
        if run_id in self._logs and not is_claimed:
            raise Fenced
        self._logs[run_id] = log = MemoryLog(run_id)
        return log

    async def follow(self, run_id: str) -> EventLog | None:
        return self._logs.get(run_id)

    def followed(self) -> Sequence[EventLog]:
        return ()

    def lose(self, run_id: str) -> None:
        """Others cannot be followed: the readers are told that the run was lost."""

    def release(self, run_id: str) -> None:
        self._logs.pop(run_id, None)
