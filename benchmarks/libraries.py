"""What the libraries on a token's way cost, and what this server does in their place: `python -m benchmarks.libraries`.

The model server runs in the same process, so its own CPU is in every line: read the differences, on an idle machine.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from time import process_time
from typing import Any

import click
import httpx2
import openai
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk

from benchmarks.script import Script
from benchmarks.upstream import Upstream, serving
from chatserver.bench.schedule import Schedule
from chatserver.dialogue import UserText
from chatserver.providers import ModelRequest
from chatserver.providers.chat_completions.provider import OpenAIProvider
from chatserver.providers.chat_completions.turn_decoder import TurnDecoder
from chatserver.upstream.transport import HttpClient

ROUNDS = 5
TOKENS = 2000
LONG_DIALOGUE = 100
QUESTION = Script(TOKENS, "closed").message
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


async def _requests() -> None:
    client = openai.AsyncOpenAI(
        api_key="-", base_url="http://model/v1", http_client=httpx2.AsyncClient(transport=_Silent())
    )
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

        await _show(f"a request of {count} messages, the SDK's `create`", 20, create)
        await _show(f"a request of {count} messages, the SDK's `client.post`", 20, post)


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
    request = ModelRequest(model="m", messages=[UserText(QUESTION)])
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
