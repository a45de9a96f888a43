"""How the end of a run is stored, and then said."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import TypeAlias

import anyio

from chatserver.answer import interrupted
from chatserver.endings import INTERNAL, INTERRUPTED, UNSTORED, ending_of
from chatserver.errors import RunLost, Unavailable
from chatserver.events import Done, Record, Terminal, appended
from chatserver.log import Fenced
from chatserver.runs.run import Run
from chatserver.sessions import Sessions
from chatserver.sessions.end import left_log
from chatserver.sessions.sqlite import WAIT_SECONDS

logger = logging.getLogger(__name__)

STORE_AGAIN_SECONDS = 0.5
STORE_AGAIN_AT_MOST_SECONDS = 5.0
"""Between tries to store an answer that the database refuses (a full disk, a lost server). Each wait is longer."""

Pause: TypeAlias = Callable[[float], Awaitable[bool]]
"""Waits for so many seconds; whether it makes sense to try again then."""


class RunEnd:
    """The end of a run that takes no more."""

    def __init__(self, run: Run, sessions: Sessions, billed: int, on_lost: Callable[[], None]) -> None:
        """``billed`` of its tokens are stored as spent; ``on_lost`` is called when it is stored, and not ours."""
        self.run = run
        self._run_id = run.resource.run_id
        self._sessions = sessions
        self._billed = billed
        self._on_lost = on_lost

    async def finish(self, pause: Pause) -> bool:
        """Store the answer, then append the terminal event, an error if it was not stored; whether it was stored.

        A database that cannot be used is waited for, with ``pause`` between two tries. A run that another
        process has ended or deleted ends with an error that says so; then nothing is left to store.
        """
        now = monotonic()
        terminal, is_stored = self.run.ending(now), False
        tell = self.run.observer.ended
        try:
            with suppress(Fenced):
                self.run.close_calls(now)
            terminal = await self._store_in_time(terminal, pause)
            is_stored = True
        except RunLost as lost:
            logger.warning("run %s was lost: %s", self._run_id, lost)
            terminal, is_stored = ending_of(lost), True
            if not lost.is_deleted:
                tell = self.run.observer.lost
                self._on_lost()
        except Unavailable:  # `sessions/trouble.py` logs it once for all runs.
            terminal = UNSTORED
        except Exception:
            logger.exception("the answer of run %s could not be stored", self._run_id)
            terminal = INTERNAL
        try:
            self.run.close(terminal)
        except Fenced:
            """The readers are told what is stored of the run."""
        except Exception:
            # The run is over, whatever the log refused.
            logger.exception("run %s could not be ended", self._run_id)
        tell(terminal, self.run.meter.usage())
        return is_stored

    async def store_late(self) -> None:
        """Go on trying to store the end: as long as a run is stored as running, its session takes no other run.

        An answer that the database never takes is given up, except for its last checkpoint.
        """
        is_told = False
        for wait_seconds in _backoff():
            await anyio.sleep(wait_seconds)
            try:
                await self._store(UNSTORED)
                return
            except RunLost:
                return
            except Unavailable:
                continue
            except Exception:
                if not is_told:
                    logger.exception("of the answer of run %s only its last checkpoint is kept", self._run_id)
            try:
                return await self._sessions.interrupt(self._run_id)
            except Unavailable:
                continue
            except Exception:
                if not is_told:
                    logger.exception("run %s cannot be stored as ended: its session takes no other", self._run_id)
            is_told = True

    async def _store_in_time(self, terminal: Terminal, pause: Pause) -> Terminal:
        """Store the end before readers are told that it is not stored, if the database is back by then; as ``_store``.

        Where the first try has waited for the database itself, there is no second one.
        """
        last = appended(terminal, self._run_id, self.run.writer.last_seq + 1)
        give_up_at = monotonic() + WAIT_SECONDS
        for wait_seconds in _backoff():
            try:
                return await self._store(terminal, last)
            except Unavailable:
                left_seconds = give_up_at - monotonic()
                if left_seconds <= 0 or not await pause(min(wait_seconds, left_seconds)):
                    raise
        raise AssertionError("there is always one more try")

    async def _store(self, terminal: Terminal, *last: Record) -> Terminal:
        """Store this end, or how a run ends that is another node's by now; the end that is stored."""
        run, answer, usage = self.run, self.run.said(), self.run.meter.usage()
        if run.log.is_fenced:
            # Readers elsewhere may have been told more than is confirmed here, so it ends as after a crash. Not only
            # the other node stores that: it may die before it has.
            terminal = terminal if _is_cancelled(terminal) else INTERRUPTED
            answer = interrupted(answer, run.calls.known)
            log = left_log(self._run_id, answer, terminal)
        else:  # A log may have refused its end: but its readers must not wait for ever.
            log = run.writer.stored(*last).ended(self._run_id, terminal)
        await self._sessions.finish(
            self._run_id, ending=terminal, answer=answer, log=log, usage=usage, billed=self._billed
        )
        if run.log.is_fenced:  # The other node may have died before it could tell anybody.
            self._on_lost()
        return terminal


def _is_cancelled(terminal: Terminal) -> bool:
    return isinstance(terminal, Done) and terminal.finish_reason == "cancelled"


def _backoff() -> Iterator[float]:
    """Seconds to wait before each further try."""
    seconds = STORE_AGAIN_SECONDS
    while True:
        yield seconds
        seconds = min(2 * seconds, STORE_AGAIN_AT_MOST_SECONDS)
