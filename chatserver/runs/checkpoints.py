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


async def keep(unfinished: dict[str, Run], sessions: Sessions) -> None:
    """Store the answers of these runs, for ever. Their order in the dictionary is kept: the oldest look first."""
    rest_seconds = LONGEST_REST_SECONDS
    while True:
        await anyio.sleep(rest_seconds)
        now = monotonic()
        share = 2 * rest_seconds / CHECKPOINT_SECONDS  # Twice what comes due on average, to catch up.
        oldest = islice(unfinished.values(), 1 + int(share * len(unfinished)))
        due = [run for run in oldest if now - run.looked_at >= CHECKPOINT_SECONDS - rest_seconds]
        for run in due:
            run.looked_at = now
            unfinished[run.run_id] = unfinished.pop(run.run_id)  # Behind all others.
        try:
            await store(due, sessions)
            wanted = CHECKPOINT_SECONDS * CHECKPOINT_ANSWERS / (len(unfinished) or 1)
            took = monotonic() - now  # A slow disk has other things to write.
            rest_seconds = max(SHORTEST_REST_SECONDS, min(LONGEST_REST_SECONDS, wanted), took)
        except Unavailable:
            rest_seconds = CHECKPOINT_SECONDS  # A database that is down is not asked at every tick.


async def store(runs: list[Run], sessions: Sessions) -> None:
    """Store the answers of these runs that have grown; one that cannot be stored takes no other with it.

    Raises:
        Unavailable: none is stored.
    """
    seqs = {run.run_id: run.log.last_seq for run in runs}
    changed = [run for run in runs if seqs[run.run_id] > run.stored_seq]
    if not changed:
        return
    try:
        await sessions.checkpoint({run.run_id: run.log.answer() for run in changed})
    except Unavailable:
        raise
    except Exception:
        if len(changed) > 1:
            for run in changed:
                await store([run], sessions)
            return
        logger.exception("the answer of run %s could not be stored while it is written", changed[0].run_id)
    for run in changed:
        run.stored_seq = seqs[run.run_id]
