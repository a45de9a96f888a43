"""What is known, beside the database, of processes that may be gone: who is gone, and what is left of their runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Protocol

from msgspec import Struct

from chatserver.answer import Answer


class Left(Struct, frozen=True):
    """What is known, beside the database, of a run that its owner has left."""

    said: Answer | None = None
    """None: no more than the database has."""

    is_cancelled: bool = False
    """Whether its user was told that it is being cancelled."""


class Witness(Protocol):
    """Who is gone, and what is left of the runs of those who are, as far as others know it than the database."""

    is_fence: bool
    """Whether an owner can do nothing more with a run that was taken; else the database says whether it is back."""

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call this when somebody may be gone whom the database still takes for alive."""
        ...

    async def gone(self, owners: Set[str | None], silent: Set[str | None], dead: Set[str | None]) -> Set[str | None]:
        """Which of these owners of runs are gone, and can store nothing more.

        Of them, the database takes ``silent`` for gone, and may be wrong; the processes of ``dead`` have ended.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    async def take(self, run_ids: Sequence[str], owner: str | None) -> Mapping[str, Left]:
        """Take runs over whose owner is gone: those that it does not own again. Others may take the same runs.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    async def ended(self, run_ids: Iterable[str]) -> None:
        """These runs are over and stored."""
        ...

    def mistaken(self) -> None:
        """Another process has taken this one for gone: find out which of its runs the other has taken."""
        ...


class DatabaseAlone:
    """The ``Witness`` of processes that share nothing but the database."""

    is_fence = False

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Only the database knows."""

    async def gone(self, owners: Set[str | None], silent: Set[str | None], dead: Set[str | None]) -> Set[str | None]:
        return silent | dead

    async def take(self, run_ids: Sequence[str], owner: str | None) -> Mapping[str, Left]:
        return dict.fromkeys(run_ids, Left())

    async def ended(self, run_ids: Iterable[str]) -> None:
        """Nobody waits for it."""

    def mistaken(self) -> None:
        """Only the database knows."""
