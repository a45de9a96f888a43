"""The lab's model: a scripted, OpenAI-compatible server that costs next to nothing.

It runs in the loop of the load, on the load's core: two processes on one core would wait for each other's time slice,
and that wait would be measured. A token is one HTTP chunk of about 290 bytes, as OpenAI sends it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from time import monotonic_ns
from typing import Any

from benchmarks.script import Script, content
from chatserver.bench.schedule import NS, Schedule

BULK_TOKENS = 64
"""How many tokens one write has when they go as fast as they can."""

_CHUNK = (
    b'data: {"id":"chatcmpl-Dk3vT9qPZ1mXw8sYb2RcLhA7uFeNo","object":"chat.completion.chunk","created":1795300000,'
    b'"model":"lab-2026-11-22","service_tier":"default","system_fingerprint":"fp_3f0c1d2e4b","choices":[{"index":0,'
    b'"delta":{%b},"logprobs":null,"finish_reason":%b}],"obfuscation":"q7Zt2m"}\n\n'
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def token(index: int, planned_us: int, late_us: int) -> bytes:
    text = content(index, planned_us, late_us).encode()
    return _http_chunk(_CHUNK % (b'"content":"%b"' % text, b"null"))


OPENING = _HEAD + _http_chunk(_CHUNK % (b'"role":"assistant","content":"","refusal":null', b"null"))
_USAGE = (
    b'data: {"id":"chatcmpl-Dk3vT9qPZ1mXw8sYb2RcLhA7uFeNo","object":"chat.completion.chunk","created":1795300000,'
    b'"model":"lab-2026-11-22","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)


def _closing(tokens: int) -> bytes:
    last = _http_chunk(_CHUNK % (b"", b'"stop"')) + _http_chunk(_USAGE % (tokens, tokens + 12))
    return last + _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@lru_cache(maxsize=4)
def _blocks(tokens: int) -> list[bytes]:
    made = [token(index, 0, 0) for index in range(tokens)]
    return [b"".join(made[start : start + BULK_TOKENS]) for start in range(0, tokens, BULK_TOKENS)]


class Upstream:
    """The state that all connections of the model share; ``credit`` lets a closed-loop answer go on."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.requests = 0
        self.active: dict[int, _Answer] = {}
        self.url = ""

    def credit(self, key: int) -> None:
        if answer := self.active.get(key):
            answer.credit()


class _Connection(asyncio.Protocol):
    """One kept-alive connection of a server that asks the model."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = b""
        self.answer: _Answer | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) < length:
            return
        self._received = body[length:]
        self._upstream.requests += 1
        try:
            script = Script.parse(body[:length].decode())
        except ValueError as error:
            text = b'{"error":{"message":"%b"}}' % str(error).encode()
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            return
        self.answer = _Answer(self._upstream, self.transport, script)
        self.answer.begin()

    def pause_writing(self) -> None:
        if self.answer:
            self.answer.is_paused = True

    def resume_writing(self) -> None:
        if self.answer:
            self.answer.is_paused = False
            self.answer.send_blocks()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer:
            self.answer.is_over = True


class _Answer:
    """One answer of the model, on its schedule."""

    def __init__(self, upstream: Upstream, transport: Any, script: Script) -> None:
        self._upstream, self._transport, self._script = upstream, transport, script
        self._sent = 0
        self._awaited = 0
        self._began_ns = 0
        self.is_paused = False
        self.is_over = False

    def begin(self) -> None:
        script, schedule = self._script, self._upstream.schedule
        self._transport.write(OPENING)
        self._began_ns = monotonic_ns()
        if script.rate:
            schedule.at(self._began_ns, self._paced)
        elif script.burst:
            self._upstream.active[script.key] = self
            self._send(script.burst, self._began_ns)
        else:
            self.send_blocks()

    def _paced(self, due_ns: int) -> None:
        self._send(1, due_ns)
        if self._sent < self._script.tokens and not self.is_over:
            # From the beginning, not from the last one: a schedule does not drift.
            self._upstream.schedule.at(self._began_ns + int(self._sent * NS / self._script.rate), self._paced)

    def credit(self) -> None:
        """The reader has one more token."""
        self._awaited -= 1
        if self._awaited == 0 and self._sent < self._script.tokens:
            self._send(self._script.burst, monotonic_ns())

    def _send(self, count: int, planned_ns: int) -> None:
        if self.is_over:
            return
        first, self._sent = self._sent, min(self._sent + count, self._script.tokens)
        planned_us, late_us = planned_ns // 1000, (monotonic_ns() - planned_ns) // 1000
        self._transport.write(b"".join(token(index, planned_us, late_us) for index in range(first, self._sent)))
        self._awaited = self._sent - first
        if self._sent == self._script.tokens:
            self._finish()

    def send_blocks(self) -> None:
        if self._script.pace != "bulk" or self.is_over:
            return
        blocks = _blocks(self._script.tokens)
        while self._sent < len(blocks) and not self.is_paused:
            self._transport.write(blocks[self._sent])
            self._sent += 1
        if self._sent == len(blocks):
            self._finish()

    def _finish(self, due_ns: int = 0) -> None:
        if self._script.hold_seconds and not due_ns:
            end_ns = monotonic_ns() + int(self._script.hold_seconds * NS)
            self._upstream.schedule.at(end_ns, self._finish)
        elif not self.is_over:
            self.is_over = True
            self._upstream.active.pop(self._script.key, None)
            self._transport.write(_closing(self._script.tokens))


@asynccontextmanager
async def serving(schedule: Schedule, port: int = 0) -> AsyncIterator[Upstream]:
    """The model on a loopback port; ``url`` is what OPENAI_BASE_URL shall be."""
    upstream = Upstream(schedule)
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(upstream), "127.0.0.1", port, backlog=2048
    )
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()
