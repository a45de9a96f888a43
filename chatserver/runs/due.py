"""Due runs: no process has them, and they are to go on, since a call was answered or has expired."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from chatserver.errors import Unavailable
from chatserver.sessions import Sessions

DUE_LOOK_SECONDS = 30.0
"""How often this process looks for them, at least."""


class Due:
    """Looks for due runs, and has this process take them."""

    def __init__(self, sessions: Sessions, approval_seconds: float, revive: Callable[[str], Awaitable[bool]]) -> None:
        self._sessions = sessions
        self._pause_seconds = min(DUE_LOOK_SECONDS, approval_seconds)
        self._revive = revive
        self._call = asyncio.Event()

    def look(self) -> None:
        """Look at once: a dead process may have left some."""
        self._call.set()

    async def take_forever(self) -> None:
        """Take them, for ever."""
        while True:
            self._call.clear()
            with suppress(Unavailable):
                for run_id in await self._sessions.waits.due():
                    await self._revive(run_id)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds):
                    await self._call.wait()
