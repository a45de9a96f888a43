"""One turn from its bytes: the deltas, how long the server may be silent, and how the turn ends.

``Turn`` does no I/O: it takes bytes and tells its deadline. ``finish_of`` feeds it with the bytes of a response.
"""

import zlib
from contextlib import aclosing, suppress
from time import monotonic
from typing import TYPE_CHECKING

import anyio

from chatserver.log.waking import WAKES
from chatserver.providers import Finish
from chatserver.providers.api import TurnDecoder
from chatserver.providers.faults import Fault, cut, nonsense, silent
from chatserver.telemetry import Pace
from chatserver.upstream.encodings import unpacked
from chatserver.upstream.sse_decoder import EventTooLong, SSEDecoder

if TYPE_CHECKING:
    import httpx2

    from chatserver.upstream.connection import Sink

LAST_WORDS_SECONDS = 2.0
"""How long a turn waits for usage and [DONE] behind its finish_reason: some servers never send these."""

END_SECONDS = 0.1
"""How long the end of the body is waited for after [DONE]: only then can the connection be used again."""

LIFE_LIMIT = 10
"""How many times the longest silence a server may send only signs of life: comments, blank lines, pings."""


class Turn:
    """A turn as far as it has come. The decoder hands on each delta from within ``receive`` or ``end``."""

    __slots__ = ("_decoder", "_events", "_heard_at", "_idle_seconds", "_lived_at", "pace")

    def __init__(self, decoder: TurnDecoder, idle_seconds: float) -> None:
        self._events, self._decoder = SSEDecoder(), decoder
        self._idle_seconds = idle_seconds
        self._heard_at = self._lived_at = monotonic()
        self.pace = Pace()

    @property
    def has_begun(self) -> bool:
        """Something of the answer has come."""
        return self._decoder.pieces > 0

    def receive(self, data: bytes) -> bool:
        """Read a part of the body; whether the end of the answer was said, which brings the deadline nearer.

        Raises:
            Fault: the upstream reports a failure, or sends what makes no sense.
            EventTooLong: an event has no end.
            Exception: what ``on_delta`` raised.
        """
        events, decoder = self._events, self._decoder
        lines, pieces = events.lines, decoder.pieces
        found = events.feed(data)
        if len(found) > 1:
            with WAKES:
                is_ending = decoder.feed(found)
        else:
            is_ending = decoder.feed(found)
        # Silence begins only now: the time that `on_delta` took is no silence of the upstream.
        now = monotonic()
        if decoder.pieces > pieces:
            self._heard_at = self._lived_at = now
            moments = self.pace.moments
            moments.append(now)
            if len(moments) > Pace.MOMENTS:
                self.pace.fold()
        elif is_ending:
            self._heard_at = self._lived_at = now
        elif found or events.lines > lines:  # Bytes that end no line are silence.
            self._lived_at = now
        return is_ending

    def deadline(self) -> float:
        """When the wait for more bytes ends; behind the end of the answer, the wait is short."""
        decoder = self._decoder
        if decoder.is_over:
            return self._heard_at + END_SECONDS
        if decoder.has_finished:
            # A server that went on behind its finish_reason may do so again.
            return self._heard_at + (self._idle_seconds if decoder.went_on else LAST_WORDS_SECONDS)
        return min(self._lived_at + self._idle_seconds, self._heard_at + self._idle_seconds * LIFE_LIMIT)

    def silence(self) -> Fault | None:
        """The fault of a turn whose deadline has passed; None: its answer had ended."""
        if self._decoder.has_finished:
            return None
        times = LIFE_LIMIT if self._lived_at - self._heard_at > self._idle_seconds * (LIFE_LIMIT - 1) else 1
        return silent(self._idle_seconds * times)

    def end(self, fault: Fault | None) -> Finish:
        """The response has ended, by a ``fault`` or regularly: hand on the last deltas; how the turn has finished.

        Raises:
            Fault: the answer had not ended. A fault behind the end of the answer changes nothing.
        """
        if fault is None:
            with suppress(EventTooLong):
                self._decoder.feed(self._events.flush())
        if not self._decoder.has_finished:
            raise fault or cut(self.has_begun)
        return self._decoder.finish()


async def finish_of(response: "httpx2.Response", turn: Turn) -> Finish:
    """Read a response to the end of its turn; cancelling closes the response at once.

    Where possible, the bytes come from the connection itself. The response and its request are then let go of: they
    take 6 KB of an open stream, and the whole dialogue once more.

    Raises:
        Fault: whatever went wrong with the response.
        Exception: what the turn's ``on_delta`` raised.
    """
    import httpx2

    from chatserver.upstream.transport import BODY, Body

    body: Body | None = response.extensions.get(BODY)
    encoding = encoding_of(response)
    receive = unpacked(encoding, turn.receive) if encoding else turn.receive
    fault = None
    try:
        if body is not None:
            del response
            async with aclosing(body):
                await body.pour(receive, turn.deadline)
        else:
            await _read(response, turn, receive)
    except httpx2.ReadTimeout:
        fault = turn.silence()
    except EventTooLong:
        fault = nonsense("an event without end")
    except (httpx2.TransportError, zlib.error):
        fault = cut(turn.has_begun)
    return turn.end(fault)


def encoding_of(response: "httpx2.Response") -> str:
    """How the body is compressed; empty: it is not."""
    encoding: str = response.headers.get("content-encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


async def _read(response: "httpx2.Response", turn: Turn, receive: "Sink") -> None:
    """Read a body that comes through a proxy."""
    import httpx2

    reads = response.aiter_raw()
    try:
        async with aclosing(reads):
            while True:
                try:
                    with anyio.fail_after(turn.deadline() - monotonic()):
                        data = await anext(reads, None)
                except TimeoutError:
                    raise httpx2.ReadTimeout("the peer is silent") from None
                if data is None:
                    return
                receive(data)
    finally:
        await close(response)


async def close(response: "httpx2.Response") -> None:
    with anyio.CancelScope(shield=True):
        await response.aclose()
