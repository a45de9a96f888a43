"""Pumps: what a log has ready goes to a peer, as long as the peer takes bytes."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from chatserver.events import Record
from chatserver.log import BATCH_BYTES_LIMIT
from chatserver.runs.subscription import Subscription
from chatserver.transports.connections import Connection

logger = logging.getLogger(__name__)


class Pump:
    """Sends one run to one connection. It is called when the log has something, and when the peer takes bytes again.

    ``frame`` makes the bytes of a batch; ``over`` is called with the last record, or with None when this fails.
    """

    __slots__ = ("_connection", "_cursor", "_frame", "_is_due", "_over", "is_sending", "subscription")

    def __init__(
        self,
        subscription: Subscription,
        connection: Connection,
        frame: Callable[[Sequence[Record]], bytes],
        over: Callable[["Pump", Record | None], None],
    ) -> None:
        self.subscription = subscription
        self._connection = connection
        self._frame = frame
        self._over = over
        self._is_due = False
        self.is_sending = True
        self._cursor = subscription.cursor()
        self._cursor.wake = self.run

    def run(self) -> None:
        """Send what is ready: about one batch, then the event loop runs other callbacks."""
        if not self.is_sending:
            return
        connection, cursor, last, sent_bytes = self._connection, self._cursor, None, 0
        try:
            while connection.peer.is_writable and (batch := cursor.take()):
                connection.write(data := self._frame(batch))
                if cursor.is_waiting:
                    return  # As nearly always: that was all.
                last = batch[-1]
                sent_bytes += len(data)
                if sent_bytes >= BATCH_BYTES_LIMIT:
                    break
            if cursor.is_at_end:
                # Otherwise the log was closed before its run had ended.
                self._over(self, last if last is not None and last.is_terminal else None)
            elif sent_bytes >= BATCH_BYTES_LIMIT:
                self._run_later()
        except Exception:
            logger.exception("a reader of run %s failed", self.subscription.run_id)
            self._over(self, None)

    def _run_later(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._run_again)

    def _run_again(self) -> None:
        self._is_due = False
        self.run()

    def close(self) -> None:
        """Send no more: this reader has left."""
        self.is_sending = False
        self._cursor.close()
        self.subscription.close()
