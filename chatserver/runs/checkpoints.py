"""Checkpoints: growing answers are stored at intervals; the last checkpoint is what a crash leaves of an answer."""

import asyncio
import logging
from contextlib import suppress
from itertools import islice
from time import monotonic

import anyio

from chatserver.errors import Unavailable
from chatserver.runs.run import Run
from chatserver.sessions import Sessions

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 2.0
"""How much of an answer a crash can destroy."""

CHECKPOINT_ANSWERS = 25
SHORTEST_REST_SECONDS, LONGEST_REST_SECONDS = 0.05, 0.5
"""About how many answers are stored in one transaction, and how long the rest between two transactions is: a thousand
answers in one transaction would delay all tokens, and a transaction for each answer costs too much."""

START_SEQ = 1
"""The `seq` of `start`: with no event behind it, there is no answer to store."""


class _Growing:
    """An answer that grows: when it was last looked at, and up to which `seq` it is stored."""

    __slots__ = ("looked_at", "run", "stored_seq")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.looked_at = monotonic()
        self.stored_seq = START_SEQ


class Checkpoints:
    """The growing answers of this process, and the task that stores them."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._growing: dict[str, _Growing] = {}  # In the order of the last look, the oldest first.
        self._urgent: dict[str, None] = {}
        self._call = anyio.Event()
        self.order = asyncio.Lock()
        """Is held while answers are stored: whoever stores an answer elsewise, holds it, or an older answer may be the
        last one on disk."""

    def add(self, run: Run) -> None:
        """Store the answer of this run at intervals from now on."""
        if not self._growing:
            self._call.set()
        self._growing[run.resource.run_id] = _Growing(run)

    def remove(self, run_id: str) -> None:
        """Stop: the answer grows no more, and the run's end stores it whole."""
        self._growing.pop(run_id, None)
        self._urgent.pop(run_id, None)

    def hasten(self, run_id: str) -> None:
        """Store an answer as soon as it can be: a tool may have changed the world, and a crash must not hide that."""
        if run_id in self._growing:
            self._urgent[run_id] = None
            self._call.set()

    async def store_forever(self) -> None:
        """Store what grows, for ever."""
        rest_seconds = LONGEST_REST_SECONDS
        while True:
            # Not anyio's timeout: near its end it asks uvloop's clock, of whole milliseconds, some 70 times over.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause(rest_seconds)):
                    await self._call.wait()
            began = monotonic()
            try:
                await self.store(self._due(began, rest_seconds))
                wanted = CHECKPOINT_SECONDS * CHECKPOINT_ANSWERS / (len(self._growing) or 1)
                took = monotonic() - began  # A slow disk has other transactions to write.
                rest_seconds = max(SHORTEST_REST_SECONDS, min(LONGEST_REST_SECONDS, wanted), took)
            except Unavailable:
                await anyio.sleep(CHECKPOINT_SECONDS)  # No try at every tick while the database is down.

    def _pause(self, rest_seconds: float) -> float | None:
        """How long there is nothing to do; None: as long as no answer grows."""
        if not self._growing:
            return None
        oldest = next(iter(self._growing.values()))
        return max(rest_seconds, oldest.looked_at + CHECKPOINT_SECONDS - rest_seconds - monotonic())

    def _due(self, now: float, rest_seconds: float) -> list[str]:
        """The runs whose answers are stored now: the urgent ones, and the due ones, which move behind all others."""
        urgent, self._urgent, self._call = self._urgent, {}, anyio.Event()
        share = 2 * rest_seconds / CHECKPOINT_SECONDS  # Twice what comes due on average, to catch up.
        oldest = islice(self._growing.items(), 1 + int(share * len(self._growing)))
        due = [run_id for run_id, each in oldest if now - each.looked_at >= CHECKPOINT_SECONDS - rest_seconds]
        for run_id in due:
            each = self._growing[run_id] = self._growing.pop(run_id)
            each.looked_at = now
        return [*urgent, *(run_id for run_id in due if run_id not in urgent)]

    async def store(self, run_ids: list[str]) -> None:
        """Store those of these answers that have grown; an answer that cannot be stored does not keep others from it.

        Raises:
            Unavailable: no answer is stored.
        """
        found = [each for run_id in run_ids if (each := self._growing.get(run_id))]
        seqs = {each.run.resource.run_id: each.run.log.last_seq for each in found}
        changed = [each for each in found if seqs[each.run.resource.run_id] > each.stored_seq]
        if not changed:
            return
        try:
            async with self.order:
                growing = [each for each in changed if self._growing.get(each.run.resource.run_id) is each]
                await self._sessions.checkpoint({each.run.resource.run_id: each.run.said() for each in growing})
        except Unavailable:
            raise
        except Exception:
            if len(changed) > 1:
                for each in changed:
                    await self.store([each.run.resource.run_id])
                return
            logger.exception("the answer of run %s could not be stored while it grows", changed[0].run.resource.run_id)
        for each in changed:
            each.stored_seq = seqs[each.run.resource.run_id]
