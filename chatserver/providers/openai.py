"""Chat Completions through the openai SDK: it builds, sends, authenticates and classifies; the bytes are read here.

This is the seam for other APIs of the SDK: another decoder beside ``chunks``, another path and body.
"""

import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import anyio
import msgspec

from chatserver.errors import UpstreamError
from chatserver.providers import Delta, ModelRequest, TakeText
from chatserver.providers.chunks import TurnDecoder
from chatserver.providers.client import address, make_client
from chatserver.providers.refusals import Lost, refusal
from chatserver.providers.sse_decoder import EventTooLong, SSEDecoder

if TYPE_CHECKING:
    import httpx2
    import openai

logger = logging.getLogger(__name__)

Leave: TypeAlias = Callable[[], Awaitable[None]]

RETRIES_LIMIT = 2
RETRY_DEADLINE_SECONDS = 5.0
LAST_WORDS_SECONDS = 2.0
"""How long a turn that has its finish_reason waits for usage and [DONE]: some servers never send them."""

END_SECONDS = 0.1
"""How long after [DONE] the end of the body is waited for: only then can the connection be used again."""

OPTIONS: Any = {
    "headers": {"Content-Type": "application/json", "Accept-Encoding": "identity"},
    "idempotency_key": "",  # No key is sent either way; left out, one is made up for each request all the same.
}


class OpenAIProvider:
    """A ``Provider`` for any OpenAI-compatible server. Enter it before use; leaving closes all connections."""

    def __init__(
        self,
        *,
        api_key: str | None,
        base_url: str | None,
        idle_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._headers = headers
        self._idle_seconds = idle_seconds
        self._sdk: openai.AsyncOpenAI | None = None
        self._address = ""
        self._making = Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sdk is not None:
            await self._sdk.close()

    async def warm_up(self) -> None:
        """Import the SDK (about a second) beside the loop, before the first run needs it."""
        try:
            await self._client()
        except Exception:
            logger.exception("no model server can be asked")

    async def _client(self) -> "openai.AsyncOpenAI":
        if self._sdk is None:
            return await anyio.to_thread.run_sync(self._made_client)
        return self._sdk

    def _made_client(self) -> "openai.AsyncOpenAI":
        with self._making:  # The first run may come while `warm_up` is still at it.
            if self._sdk is None:
                sdk = make_client(
                    api_key=self._api_key,
                    base_url=self._base_url,
                    headers=self._headers,
                    idle_seconds=self._idle_seconds,
                )
                self._address = address(sdk, "chat/completions")
                self._sdk = sdk
            return self._sdk

    async def stream(self, request: ModelRequest, take: TakeText) -> AsyncGenerator[Delta, None]:
        """The turn's deltas, tried again as long as nothing of the answer has come."""
        began, delays = monotonic(), backoff()
        while True:
            turn = _Turn(take)
            try:
                async with _Reading(await self._open(self._body(request)), turn) as reads:
                    turn.heard_at = monotonic()
                    async for chunk in reads:
                        if found := turn.events.feed(chunk):
                            for delta in turn.decoder.feed(found):
                                yield delta
                            if turn.decoder.has_finished:
                                break
                            turn.heard_at = monotonic()  # Only now: how long the consumer took is no silence upstream.
                        elif monotonic() - turn.heard_at > self._idle_seconds:
                            raise _silent()  # The client's read timeout ends silence; comments alone are silence too.
                        del chunk, found  # A KB of each stream, until more comes.
                    async with aclosing(_rest(reads, turn)) as rest:
                        async for delta in rest:
                            yield delta
                    return
            except Lost:
                delay = next(delays, None)
                if delay is None or monotonic() + delay - began > RETRY_DEADLINE_SECONDS:
                    raise UpstreamError(
                        "upstream_unavailable", "the model server is not available", retryable=True
                    ) from None
                await anyio.sleep(delay)

    def _body(self, request: ModelRequest) -> bytes:
        """The request's JSON, encoded once: given a dict, the SDK would walk through every message of the session."""
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = request.tools
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_output_tokens is not None:
            # OpenAI's newer models refuse the old name, other servers may not know the new one.
            body["max_tokens" if self._base_url else "max_completion_tokens"] = request.max_output_tokens
        return msgspec.json.encode(body)

    async def _open(self, body: bytes) -> "httpx2.Response":
        """Send the request and wait for the head of a stream."""
        import httpx2
        import openai

        client = await self._client()
        try:
            with anyio.fail_after(self._idle_seconds):
                response: httpx2.Response = await client.post(
                    self._address,
                    content=body,
                    cast_to=httpx2.Response,
                    options=OPTIONS,
                    stream=True,
                    stream_cls=cast(Any, None),
                )
        except TimeoutError:
            raise _silent() from None
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise Lost from None
            raise _silent() from None
        except openai.APIConnectionError:
            raise Lost from None
        except openai.APIStatusError as error:
            raise refusal(error) from None
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type in ("text/html", "application/json"):
            await _close(response)
            raise UpstreamError("llm_error", "the model server did not answer with a stream")
        return response


class _Turn:
    """What has come of a turn so far."""

    def __init__(self, take: TakeText) -> None:
        self.events, self.decoder = SSEDecoder(), TurnDecoder()
        self.heard_at = monotonic()
        self._take = take

    def take(self, chunk: bytes) -> bool:
        """Take a chunk that is one event and has nothing but text."""
        event = self.events.single(chunk)
        if event is None:
            return False
        text = self.decoder.text(event)
        if text is None or not self._take(text):
            return False
        self.heard_at = monotonic()
        return True


class _Reading:
    """The bytes of an answer as they come; leaving ends it, and whatever goes wrong in it is an error of ours.

    Where it can be, they are the connection's own: past the iterators that only count, and without the response and its
    request, which would be 6 KB of an open stream, and the whole dialogue once more.
    """

    def __init__(self, response: "httpx2.Response", turn: _Turn) -> None:
        from chatserver.providers.http_transport import BODY, Body

        self._turn = turn
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
            raise UpstreamError("llm_error", "the model server sent an event without end") from None
        if isinstance(error, httpx2.TransportError | httpx2.DecodingError):
            raise _silent() if isinstance(error, httpx2.ReadTimeout) else _cut(self._turn.decoder) from None


def backoff() -> Iterator[float]:
    """Seconds to wait before each further try: full steps of 0.25 s doubled, with jitter."""
    for attempt in range(RETRIES_LIMIT):
        yield 0.25 * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


async def _leave(reads: AsyncGenerator[bytes, None], response: "httpx2.Response") -> None:
    try:
        await reads.aclose()
    finally:
        await _close(response)


async def _close(response: "httpx2.Response") -> None:
    with anyio.CancelScope(shield=True):
        await response.aclose()


async def _rest(reads: AsyncIterator[bytes], turn: _Turn) -> AsyncGenerator[Delta, None]:
    """What follows a finish_reason or the end of the body, as far as it comes in time, and the end of the turn."""
    import httpx2

    events, decoder = turn.events, turn.decoder
    if not decoder.has_finished:
        for delta in decoder.feed(events.flush()):
            yield delta
    if not decoder.has_finished:
        raise _cut(decoder)
    deadline = monotonic() + LAST_WORDS_SECONDS
    with suppress(httpx2.TransportError, httpx2.DecodingError):  # The answer is whole, whatever befalls its rest.
        while not decoder.is_over:
            chunk = b""
            with anyio.move_on_after(deadline - monotonic()):
                chunk = await anext(reads, b"")
            if not chunk:
                break
            for delta in decoder.feed(events.feed(chunk)):
                yield delta
        if decoder.is_over:
            with anyio.move_on_after(END_SECONDS):
                await anext(reads, b"")
    for delta in decoder.finish():
        yield delta


def _silent() -> UpstreamError:
    return UpstreamError("upstream_timeout", "the model server went silent", retryable=True)


def _cut(decoder: TurnDecoder) -> Exception:
    if not decoder.has_begun:
        return Lost()
    return UpstreamError("upstream_truncated", "the model server ended in mid answer", retryable=True)
