"""One turn as its bytes come: what is said, that the server lives, and how it ends."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import anyio

from chatserver.providers import Delta, TakeText
from chatserver.providers.chat_completions.turn_decoder import TurnDecoder
from chatserver.providers.faults import cut, nonsense, silent
from chatserver.upstream.sse_decoder import EventTooLong, SSEDecoder

if TYPE_CHECKING:
    import httpx2

Leave: TypeAlias = Callable[[], Awaitable[None]]

LAST_WORDS_SECONDS = 2.0
"""How long a turn that has its finish_reason waits for more, usage and [DONE]: some servers never send them."""

END_SECONDS = 0.1
"""How long after [DONE] the end of the body is waited for: only then can the connection be used again."""

LIFE_LIMIT = 10
"""For how many times the longest silence a server may say only that it lives: comments, blank lines, pings."""


class Turn:
    """What has come of a turn so far."""

    def __init__(self, take: TakeText, idle_seconds: float) -> None:
        self.events, self.decoder = SSEDecoder(), TurnDecoder()
        self._take = take
        self._idle_seconds = idle_seconds
        self._heard_at = self._lived_at = monotonic()
        self._lines = 0

    def take(self, chunk: bytes) -> bool:
        """Take a chunk that is one event and has nothing but text."""
        event = self.events.single(chunk)
        if event is None:
            return False
        text = self.decoder.text(event)
        if text is None or not self._take(text):
            return False
        self.decoder.took(text)
        self._heard_at = monotonic()
        return True

    def heard(self, pieces: int = -1) -> None:
        """All that came was read: the silence begins now. ``pieces``: so many had come of the answer before."""
        self._lived_at = monotonic()
        self._lines = self.events.lines
        if self.decoder.pieces > pieces:
            self._heard_at = self._lived_at

    def check(self) -> None:
        """After bytes that made no event.

        Raises:
            Fault: they are silence, since no line has ended for too long, or nothing but signs of life has come.
        """
        now = monotonic()
        if self.events.lines > self._lines:
            self._lines, self._lived_at = self.events.lines, now
        if now - max(self._lived_at, self._heard_at) > self._idle_seconds:
            raise silent(self._idle_seconds)
        if now - self._heard_at > self._idle_seconds * LIFE_LIMIT:
            raise silent(self._idle_seconds * LIFE_LIMIT)

    async def rest(self, reads: AsyncIterator[bytes]) -> AsyncGenerator[Delta, None]:
        """What follows a finish_reason or the end of the body, as far as it comes in time, and the end of the turn.

        Raises:
            Fault: this was no end.
        """
        import httpx2

        events, decoder = self.events, self.decoder
        if not decoder.has_finished:
            for delta in decoder.feed(events.flush()):
                yield delta
        if not decoder.has_finished:
            raise cut(decoder.has_begun)
        self.heard()
        # The answer is whole, whatever befalls its rest.
        with suppress(httpx2.TransportError, httpx2.DecodingError, EventTooLong):
            while not decoder.is_over:
                # Of a server that went on behind an end, the next end is no better.
                patience = self._idle_seconds if decoder.went_on else LAST_WORDS_SECONDS
                chunk, pieces = b"", decoder.pieces
                with anyio.move_on_after(self._heard_at + patience - monotonic()):
                    chunk = await anext(reads, b"")
                for delta in decoder.feed(events.feed(chunk) if chunk else events.flush()):
                    yield delta
                if not chunk:
                    break
                self.heard(pieces)
            if decoder.is_over:
                with anyio.move_on_after(END_SECONDS):
                    await anext(reads, b"")
        for delta in decoder.finish():
            yield delta


class Reading:
    """The bytes of an answer as they come; leaving ends it, and whatever goes wrong in it is a fault.

    Where it can be, they are the connection's own: past the iterators that only count, and without the response and its
    request, which would be 6 KB of an open stream, and the whole dialogue once more.
    """

    def __init__(self, response: "httpx2.Response", turn: Turn, idle_seconds: float) -> None:
        from chatserver.upstream.transport import BODY, Body

        self._turn = turn
        self._idle_seconds = idle_seconds
        self._reads: AsyncIterator[bytes]
        self._leave: Leave
        body: Body | None = response.extensions.get(BODY)
        if body is None or response.headers.get("content-encoding", "identity").lower() != "identity":
            decoded = response.aiter_bytes()
            self._reads, self._leave = decoded, partial(_leave, decoded, response)
        else:
            body.take = turn.take
            self._reads, self._leave = body, body.aclose

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._reads

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        import httpx2

        await self._leave()
        if isinstance(error, EventTooLong):
            raise nonsense("an event without end") from None
        if isinstance(error, httpx2.ReadTimeout):
            raise silent(self._idle_seconds) from None
        if isinstance(error, httpx2.TransportError | httpx2.DecodingError):
            raise cut(self._turn.decoder.has_begun) from None


async def _leave(reads: AsyncGenerator[bytes, None], response: "httpx2.Response") -> None:
    try:
        await reads.aclose()
    finally:
        await close(response)


async def close(response: "httpx2.Response") -> None:
    with anyio.CancelScope(shield=True):
        await response.aclose()
