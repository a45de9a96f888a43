"""What the libraries on a token's way cost, and what this server does in their place: `python -m benchmarks.libraries`.

Where the model server is asked, it runs in this process, and its own CPU is in the line: read the differences.
"""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from time import process_time
from typing import Any, cast
from unittest.mock import patch

import click
import httpx2
import openai
import uvicorn
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from benchmarks.script import Script
from benchmarks.upstream import Upstream, serving
from chatserver.bench.schedule import Schedule
from chatserver.dialogue import UserMessage
from chatserver.providers import ModelRequest
from chatserver.providers.chat_completions.turn_decoder import TurnDecoder
from chatserver.providers.client import ModelServer
from chatserver.providers.provider import OpenAIProvider
from chatserver.serving.http_protocol import HttpProtocol
from chatserver.serving.websocket_protocol import WebSocketProtocol
from chatserver.transports.frames import text_frame
from chatserver.transports.peer import PEER
from chatserver.upstream.transport import HttpClient, HttpTransport

ROUNDS = 5
TOKENS = 2000
LONG_DIALOGUE = 100
QUESTION = Script(TOKENS, "closed").message
STREAMS = 500
OPENING_SECONDS = 0.5
WRITES = 2000
EVENT = b'event: token\ndata: {"type":"token","run_id":"4u2det1NuKpxgyW4roHxIw","seq":2,"content":"Let"}\nid: 2\n\n'
HTTP_REQUEST = b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: text/event-stream\r\n\r\n"
WEBSOCKET_REQUEST = (
    b"GET /chat/ws HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MARK = b'"content":" '
"""Stands in each token of the scripted model, and in nothing else that it sends."""

CHUNK = json.dumps({
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1795300000,
    "model": "m",
    "system_fingerprint": "fp",
    "choices": [{"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}],
    "usage": None,
}).encode()  # fmt: skip


class _Silent(httpx2.AsyncBaseTransport):
    """Answers at once, so that only what stands before the network is measured."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=b"data: [DONE]\n\n")


def main() -> None:
    """Print a line for each measurement: the best of some rounds, in µs of this process's CPU."""
    asyncio.run(_measure())


async def _measure() -> None:
    tree = json.loads(CHUNK)
    await _show(
        "a chunk as the SDK's object", 500, _plain(lambda: construct_type(type_=ChatCompletionChunk, value=tree))
    )
    decoder, event = TurnDecoder(lambda _: None), [(b"", CHUNK)]
    await _show("a chunk as a delta", 5000, _plain(lambda: decoder.feed(event)))
    await _requests()
    await _protocols()
    async with serving(Schedule()) as upstream:
        for name, client in (("httpx2's transport", httpx2.AsyncClient()), ("this server's transport", HttpClient())):
            async with client:
                await _show(f"a token of its own read, as bytes, {name}", 1, _bytes(upstream, client), per=TOKENS)
        async with openai.AsyncOpenAI(api_key="-", base_url=upstream.url) as sdk:
            await _show("a token of its own read, through the SDK", 1, _chunks(upstream, sdk), per=TOKENS)
        async with OpenAIProvider(api_key="-", base_url=upstream.url, idle_seconds=60) as provider:
            await _show(
                "a token of its own read, through this server's provider", 1, _deltas(upstream, provider), TOKENS
            )


class Socket(asyncio.Transport):
    """Takes whatever is written, so that only what stands before the socket is measured."""

    protocol: Any

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None: ...

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


OPENED: list[Callable[[bytes], Any]] = []
"""What writes to each stream that is open."""


async def _with_asgi(scope: Any, receive: Any, send: Any) -> None:
    """A stream as ASGI has it: a task, and a message for each event."""
    await _begin(scope, receive, send)
    if scope["type"] == "http":
        OPENED.append(lambda data: send({"type": "http.response.body", "body": data, "more_body": True}))
    else:
        OPENED.append(lambda data: send({"type": "websocket.send", "text": data.decode()}))
    while not (await receive())["type"].endswith("disconnect"):
        pass


async def _with_peer(scope: Any, receive: Any, send: Any) -> None:
    """A stream as this server has it."""
    await _begin(scope, receive, send)
    write = scope["extensions"][PEER]().write
    OPENED.append(write if scope["type"] == "http" else lambda data: write(text_frame(data)))


async def _begin(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    else:
        await receive()
        await send({"type": "websocket.accept"})


async def _protocols() -> None:
    for what, request, protocol, app in (
        ("uvicorn's HTTP protocol", HTTP_REQUEST, HttpToolsProtocol, _with_asgi),
        ("this server's HTTP protocol", HTTP_REQUEST, HttpProtocol, _with_peer),
        ("uvicorn's WebSocket protocol", WEBSOCKET_REQUEST, WebSocketsSansIOProtocol, _with_asgi),
        ("this server's WebSocket protocol", WEBSOCKET_REQUEST, HttpProtocol, _with_peer),
    ):
        config = uvicorn.Config(
            app, ws=cast(Any, WebSocketProtocol), log_config=None, ws_per_message_deflate=False, ws_ping_interval=None
        )
        config.load()
        OPENED.clear()
        tracemalloc.start()
        sockets = [Socket() for _ in range(STREAMS)]
        for each in sockets:
            each.protocol = protocol(config, ServerState(), {}, asyncio.get_running_loop())
            each.protocol.connection_made(each)
            each.protocol.data_received(request)
        await asyncio.sleep(OPENING_SECONDS)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        click.echo(f"{size / len(OPENED) / 1024:10,.1f} KiB  an open stream, {what}")
        await _show(f"an event's write, {what}", 1, _writing(OPENED[0]), WRITES)
        for each in sockets:
            each.protocol.connection_lost(None)
        await asyncio.sleep(OPENING_SECONDS)


def _writing(write: Callable[[bytes], Any]) -> Callable[[], Awaitable[object]]:
    async def run() -> None:
        for _ in range(WRITES):
            if (waiting := write(EVENT)) is not None:
                await waiting

    return run


async def _requests() -> None:
    client = openai.AsyncOpenAI(
        api_key="-", base_url="http://model/v1", http_client=httpx2.AsyncClient(transport=_Silent())
    )
    server = ModelServer(api_key="-", base_url="http://model/v1", idle_seconds=60)
    messages: Any = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "word " * 20}]
    for count in (1, LONG_DIALOGUE):
        dialogue = (messages * count)[:count]
        body = json.dumps({"model": "m", "messages": dialogue, "stream": True}).encode()

        async def create(dialogue: Any = dialogue) -> None:
            await (await client.chat.completions.create(model="m", messages=dialogue, stream=True)).close()

        async def post(body: bytes = body) -> None:
            response: httpx2.Response = await client.post(
                "/chat/completions", content=body, cast_to=httpx2.Response, stream=True, stream_cls=None
            )
            await response.aclose()

        async def ask(body: bytes = body) -> None:
            await (await server.ask("chat/completions", body)).aclose()

        await _show(f"a request of {count} messages, the SDK's `create`", 20, create)
        await _show(f"a request of {count} messages, the SDK's `client.post`", 20, post)
        with patch.object(HttpTransport, "handle_async_request", _Silent().handle_async_request):
            await _show(f"a request of {count} messages, this server's", 20, ask)


def _bytes(upstream: Upstream, client: httpx2.AsyncClient) -> Callable[[], Awaitable[object]]:
    """Reads one answer of the model, which sends each token when the one before has been read."""

    async def read() -> None:
        body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]}).encode()
        async with client.stream("POST", f"{upstream.url}/chat/completions", content=body) as response:
            async for piece in response.aiter_raw():
                for _ in range(piece.count(MARK)):
                    upstream.credit(0)

    return read


def _chunks(upstream: Upstream, sdk: openai.AsyncOpenAI) -> Callable[[], Awaitable[object]]:
    async def read() -> None:
        messages: Any = [{"role": "user", "content": QUESTION}]
        async with await sdk.chat.completions.create(model="m", messages=messages, stream=True) as chunks:
            async for chunk in chunks:
                if chunk.choices and chunk.choices[0].delta.content:
                    upstream.credit(0)

    return read


def _deltas(upstream: Upstream, provider: OpenAIProvider) -> Callable[[], Awaitable[object]]:
    request = ModelRequest(model="m", messages=[UserMessage(QUESTION)])
    return lambda: provider.stream(request, lambda _: upstream.credit(0))


def _plain(work: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def run() -> object:
        return work()

    return run


async def _show(what: str, times: int, work: Callable[[], Awaitable[object]], per: int = 1) -> None:
    await work()
    best = float("inf")
    for _ in range(ROUNDS):
        began = process_time()
        for _ in range(times):
            await work()
        best = min(best, process_time() - began)
    click.echo(f"{best / times / per * 1e6:10,.1f} µs  {what}")


if __name__ == "__main__":
    main()
