"""The owner's side of the journal: all that is new of all runs of a node goes out in one script call at a time.

What is appended while a call is under way, or shortly after it was sent, goes out with the next one. So a token that
comes alone is confirmed after one round trip, and under load a round trip is shared by all that came meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from redis.exceptions import ResponseError

from chatserver.nodes.follower import STORED
from chatserver.nodes.keys import node_key, run_key
from chatserver.nodes.link import Link, Script
from chatserver.nodes.owned_log import OwnedLog
from chatserver.nodes.wire import Word
from chatserver.telemetry import UNOBSERVED, Observer

logger = logging.getLogger(__name__)

CALL_BYTES = 1024 * 1024
"""What one call carries about at most: Redis does nothing else while it runs, also for other nodes."""

RUN_TTL_SECONDS = 6 * 3600
"""How long what is kept of a run outlives its last renewal: only a run that all nodes have left comes to that."""

GATHER_SECONDS = 0.0009
"""How long after a call was sent what is new waits for more. What is appended later is sent at once, with all that has
waited: the process is awake then. A timer would wake it once more, and that costs as much as the call itself."""

GATHER_LIMIT_SECONDS = 0.002
"""How long what is new waits at most where nothing follows."""

PUBLISH_AGAIN_SECONDS = 0.25
"""After a call that was refused."""

BROKEN = "run %s cannot be published"

PUBLISH = Script("publish")


class Publisher:
    """Publishes the logs that this node owns."""

    def __init__(self, link: Link, node: str, observer: Observer = UNOBSERVED) -> None:
        self.on_fenced: Callable[[OwnedLog], None] = _nothing
        """Called when another node owns a run of ours, or when a fault here keeps a run from being published.

        What was not confirmed is gone already.
        """

        self._link = link
        self._node = node
        self._keys = (node_key(node),)
        self._observer = observer
        self._behind: dict[OwnedLog, None] = {}  # In the order in which they fell behind.
        self._sent: list[tuple[OwnedLog, int]] = []  # With the number of the last event that was sent.
        self._is_busy = False
        """A call is under way, or is going to be made."""

        self._called_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """Calls where nothing follows what waits, and tries again after a refusal."""

    def publish(self, log: OwnedLog) -> None:
        """There is something new of this log."""
        self._behind[log] = None
        if not self._is_busy:
            self._gather()

    def _gather(self) -> None:
        if monotonic() - self._called_at >= GATHER_SECONDS:
            self._is_busy = True
            if self._timer is not None:
                self._timer.cancel()
            asyncio.get_running_loop().call_soon(self._call)
        elif self._timer is None:
            self._call_in(GATHER_LIMIT_SECONDS)

    def _call_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._call)

    def _call(self) -> None:
        """Send what is new; there is no other call under way."""
        self._timer = None
        args: list[Word] = [self._node, RUN_TTL_SECONDS]
        room, behind, self._behind = CALL_BYTES, self._behind, {}
        for log in behind:
            if room < 0:
                self._behind[log] = None
            elif log.is_behind:
                try:
                    last, chunk = log.chunk()
                except Exception:  # Others wait behind it.
                    logger.exception(BROKEN, log.run_id)
                    self._lose(log)
                    continue
                args += (log.run_id, log.tail, last, chunk)
                self._sent.append((log, last))
                room -= len(chunk)
        self._is_busy = bool(self._sent)
        if self._sent:
            self._called_at = monotonic()
            self._link.post(PUBLISH, self._keys, args, self._replied)

    def _replied(self, reply: Any) -> None:
        sent, self._sent = self._sent, []
        if isinstance(reply, list):
            self._observer.journal_confirmed(monotonic() - self._called_at)
            self._is_busy = False
            self._confirm(sent, reply)
            if self._behind and not self._is_busy:
                self._gather()
        else:
            self._refuse(sent, reply)

    def _confirm(self, sent: list[tuple[OwnedLog, int]], others: Sequence[int]) -> None:
        if others:
            for place, tail in zip(others[::2], others[1::2], strict=True):
                sent[place] = sent[place][0], tail
            if taken := [log for log, tail in sent if tail < 0 and not log.is_fenced]:
                logger.error("other nodes have taken runs of this one over, so they end here: %d", len(taken))
        for log, tail in sent:
            try:
                self._confirm_one(log, tail)
            except Exception:  # Others wait behind it.
                logger.exception(BROKEN, log.run_id)
                self._lose(log)

    def _confirm_one(self, log: OwnedLog, tail: int) -> None:
        if log.is_fenced:
            return
        if not 0 <= tail <= log.last_seq:
            return self._lose(log)
        if tail < log.tail:
            logger.warning("the journal has lost run %s behind %d: it is filled again", log.run_id, tail)
        log.confirm(tail)
        if log.is_behind:
            self._behind[log] = None

    def _lose(self, log: OwnedLog) -> None:
        log.fence()
        try:
            self.on_fenced(log)
        except Exception:
            logger.exception("nobody could be told that run %s is lost", log.run_id)

    def _refuse(self, sent: Sequence[tuple[OwnedLog, int]], reply: object) -> None:
        """Nothing is confirmed, whatever has happened in Redis: try again."""
        if isinstance(reply, ResponseError):
            logger.error("nothing can be published: %s", reply)
        for log, _ in sent:
            self._behind[log] = None
            if log.has_ended and not log.is_over:  # The database has it; a full Redis still passes words on.
                log.show_all()
                self._link.publish(run_key(log.run_id), STORED)
        self._call_in(PUBLISH_AGAIN_SECONDS)


def _nothing(log: OwnedLog) -> None:
    """Nobody is told."""
