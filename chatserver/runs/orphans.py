"""Orphans: runs that have begun in the database and have no task, since the connection was lost at the commit."""

from collections.abc import Callable

import anyio

from chatserver.errors import Unavailable
from chatserver.sessions import Sessions

SWEEP_AGAIN_SECONDS = 5.0
"""Between tries while the database cannot be used."""


class Orphans:
    """Ends orphans: as long as one is stored as running, its session takes no other run."""

    def __init__(self, sessions: Sessions, is_cared_for: Callable[[str], bool]) -> None:
        """``is_cared_for`` tells whether a run of this process goes on, or is about to begin."""
        self._sessions = sessions
        self._is_cared_for = is_cared_for
        self._may_be_more = self._is_sweeping = False

    async def sweep(self) -> None:
        """End all orphans; calls that come meanwhile share one sweep."""
        self._may_be_more = True
        if self._is_sweeping:
            return
        self._is_sweeping = True
        try:
            while self._may_be_more:
                self._may_be_more = False
                try:
                    for run_id in await self._sessions.unfinished():
                        if not self._is_cared_for(run_id):
                            await self._sessions.interrupt(run_id)
                except Unavailable:
                    self._may_be_more = True
                    await anyio.sleep(SWEEP_AGAIN_SECONDS)
        finally:
            self._is_sweeping = False
