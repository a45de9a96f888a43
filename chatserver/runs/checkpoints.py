"""Checkpoints: how far each answer has come is stored every now and then, and is what a crash leaves of it."""

import logging
from itertools import islice
from time import monotonic

import anyio

from chatserver.errors import Unavailable
from chatserver.runs.run import Run
from chatserver.sessions import Sessions

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 2.0
"""How much of an answer's text a crash can take."""

CHECKPOINT_ANSWERS = 25
SHORTEST_REST_SECONDS, LONGEST_REST_SECONDS = 0.05, 0.5
"""How many answers are stored together, about, and how long a rest is left between: a thousand in one transaction
would hold up all tokens, and one at a time is dear."""

START_SEQ = 1
"""The `seq` of `start`, with which every run begins: up to it there is nothing of an answer to store."""


class _Growing:
    """An answer that grows: when it was last asked for more to store, and how far it is stored."""

    __slots__ = ("looked_at", "run", "stored_seq")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.looked_at = monotonic()
        self.stored_seq = START_SEQ


class Checkpoints:
    """The answers of this process that grow, and what stores them."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._growing: dict[str, _Growing] = {}  # The oldest look first.
        self._urgent: dict[str, None] = {}
        self._call = anyio.Event()

    def add(self, run: Run) -> None:
        """From now on the answer of this run is stored now and then."""
        if not self._growing:
            self._call.set()
        self._growing[run.record.run_id] = _Growing(run)

    def remove(self, run_id: str) -> None:
        """The answer does not grow any more; whoever ended it stores it whole."""
        self._growing.pop(run_id, None)
        self._urgent.pop(run_id, None)

    def hasten(self, run_id: str) -> None:
        """Store an answer as soon as it can be: a tool may have changed the world, and a crash must not hide that."""
        if run_id in self._growing:
            self._urgent[run_id] = None
            self._call.set()

    async def keep(self) -> None:
        """Store what grows, for ever."""
        rest_seconds = LONGEST_REST_SECONDS
        while True:
            with anyio.move_on_after(self._pause(rest_seconds)):
                await self._call.wait()
            began = monotonic()
            try:
                await self.store(self._due(began, rest_seconds))
                wanted = CHECKPOINT_SECONDS * CHECKPOINT_ANSWERS / (len(self._growing) or 1)
                took = monotonic() - began  # A slow disk has other things to write.
                rest_seconds = max(SHORTEST_REST_SECONDS, min(LONGEST_REST_SECONDS, wanted), took)
            except Unavailable:
                await anyio.sleep(CHECKPOINT_SECONDS)  # A database that is down is not asked at every tick.

    def _pause(self, rest_seconds: float) -> float | None:
        """How long there is nothing to look at; None: for as long as no answer grows."""
        if not self._growing:
            return None
        oldest = next(iter(self._growing.values()))
        return max(rest_seconds, oldest.looked_at + CHECKPOINT_SECONDS - rest_seconds - monotonic())

    def _due(self, now: float, rest_seconds: float) -> list[str]:
        """The runs whose answers are to be stored now; those that are not urgent go behind all others."""
        urgent, self._urgent, self._call = self._urgent, {}, anyio.Event()
        share = 2 * rest_seconds / CHECKPOINT_SECONDS  # Twice what comes due on average, to catch up.
        oldest = islice(self._growing.items(), 1 + int(share * len(self._growing)))
        due = [run_id for run_id, each in oldest if now - each.looked_at >= CHECKPOINT_SECONDS - rest_seconds]
        for run_id in due:
            each = self._growing[run_id] = self._growing.pop(run_id)
            each.looked_at = now
        return [*urgent, *(run_id for run_id in due if run_id not in urgent)]

    async def store(self, run_ids: list[str]) -> None:
        """Store those of these answers that have grown; one that cannot be stored takes no other with it.

        Raises:
            Unavailable: none is stored.
        """
        found = [each for run_id in run_ids if (each := self._growing.get(run_id))]
        seqs = {each.run.record.run_id: each.run.log.last_seq for each in found}
        changed = [each for each in found if seqs[each.run.record.run_id] > each.stored_seq]
        if not changed:
            return
        try:
            await self._sessions.checkpoint({each.run.record.run_id: each.run.said() for each in changed})
        except Unavailable:
            raise
        except Exception:
            if len(changed) > 1:
                for each in changed:
                    await self.store([each.run.record.run_id])
                return
            logger.exception("the answer of run %s could not be stored while it grows", changed[0].run.record.run_id)
        for each in changed:
            each.stored_seq = seqs[each.run.record.run_id]
