"""The journal: how the nodes that serve one database share the logs of runs that go on.

Readers are local: on every node they are cursors in logs in its memory. A run is written on one node, its owner. A
node that has readers of the run follows it once, whatever their number. A journal takes what it hands over from the
owner's log by a cursor, as any reader does: all that is ready at once, so that no token pays for it.
"""

from typing import Protocol

from chatserver.log import EventLog, Fenced


class Journal(Protocol):
    """What a node asks of the others about the logs of runs that go on."""

    async def own(self, log: EventLog) -> None:
        """From now on this node writes the log; what is appended is handed over to the nodes that follow its run.

        Raises:
            Fenced: another node owns the run.
        """
        ...

    async def follow(self, run_id: str) -> EventLog | None:
        """A log that grows as the owner's does, from its first event; None: nobody owns the run."""
        ...

    def release(self, run_id: str) -> None:
        """The log that this node owned is over and stored; whoever comes from now on reads it from there."""
        ...


class LocalJournal:
    """The ``Journal`` of nodes in one process, as a rule of one: a log is handed over whole, as the object it is."""

    def __init__(self) -> None:
        self._logs: dict[str, EventLog] = {}

    async def own(self, log: EventLog) -> None:
        if self._logs.setdefault(log.run_id, log) is not log:
            raise Fenced

    async def follow(self, run_id: str) -> EventLog | None:
        return self._logs.get(run_id)

    def release(self, run_id: str) -> None:
        self._logs.pop(run_id, None)
