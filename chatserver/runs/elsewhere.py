"""The runs that go on at other processes: what a process asks of their owners, and does for others as an owner."""

from typing import Protocol

from chatserver.errors import ChatError, NotFound


class Counted(Protocol):
    """A run, as it counts its readers."""

    def count(self, readers: int) -> None:
        """Add so many readers, or remove them (negative)."""
        ...


class Owner(Protocol):
    """The runs of this process, as others may ask for them. Runs that are not here are passed by."""

    def cancel(self, run_id: str) -> None:
        """End the run as cancelled."""
        ...

    def life(self, run_id: str) -> Counted | None:
        """The run, if it is here, for the readers at other processes. One that is lost and revived is another one."""
        ...

    def nudge(self, run_id: str) -> None:
        """Look at once whether a call of the run has been answered."""
        ...

    def lose(self, run_id: str) -> None:
        """Stop the run: another process has taken it over."""
        ...

    def interrupt(self) -> None:
        """End all runs: others have taken this process for dead, or soon will."""
        ...


class Elsewhere(Protocol):
    """The runs of other processes."""

    @property
    def is_reached(self) -> bool:
        """Whether others can be told what is done here; otherwise no run begins."""
        ...

    def serve(self, owner: Owner) -> None:
        """From now on do for others what they ask of the runs of this process."""
        ...

    def count(self, run_id: str, readers: int) -> None:
        """Tell the owner of a run of so many more readers here, or fewer (negative)."""
        ...

    async def cancel(self, run_id: str) -> None:
        """Tell the owner of a run to end it.

        Raises:
            NotFound, Unavailable: as ``unreached``.
        """
        ...

    def nudge(self, run_id: str) -> None:
        """Tell the owner of a run that a call of it has been answered; the owner looks now and then by itself."""
        ...

    async def last_seq(self, run_id: str) -> int:
        """How far a run has come; 0: nobody knows."""
        ...

    def unreached(self) -> ChatError:
        """The refusal of what is asked of a run that goes on at a process which cannot be asked."""
        ...


class Alone:
    """``Elsewhere`` where processes share nothing but the database: the runs of one are out of reach of the others."""

    is_reached = True

    def serve(self, owner: Owner) -> None:
        """Nobody can ask."""

    def count(self, run_id: str, readers: int) -> None:
        """Nobody can be told."""

    async def cancel(self, run_id: str) -> None:
        raise self.unreached()

    def nudge(self, run_id: str) -> None:
        """The owner looks by itself."""

    async def last_seq(self, run_id: str) -> int:
        return 0

    def unreached(self) -> ChatError:
        return NotFound("another server process goes on with this run")
