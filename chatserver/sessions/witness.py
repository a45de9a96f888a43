"""What is known, beside the database, of processes that may be gone: who is gone, and what is left of their runs."""

from collections.abc import Sequence, Set
from typing import Protocol

from chatserver.answer import Answer


class Witness(Protocol):
    """Who is gone, and what is left of the runs of those who are, as far as others know it than the database."""

    async def gone(self, owners: Set[str | None], silent: Set[str | None]) -> Set[str | None]:
        """Which of these owners of runs are gone, and can store nothing more; the database takes ``silent`` for gone.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    async def left(self, run_id: str) -> Answer | None:
        """What a run has said whose owner is gone; None: no more than the database has.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    async def ended(self, run_ids: Sequence[str]) -> None:
        """These runs are over, stored and can be read."""
        ...


class DatabaseAlone:
    """The ``Witness`` of processes that share nothing but the database."""

    async def gone(self, owners: Set[str | None], silent: Set[str | None]) -> Set[str | None]:
        return silent

    async def left(self, run_id: str) -> Answer | None:
        return None

    async def ended(self, run_ids: Sequence[str]) -> None:
        """Nobody waits for it."""
