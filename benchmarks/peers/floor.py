"""The floor of Python: one bare uvloop protocol on each side, msgspec between them, framing by hand.

It is no server: it checks nothing, keeps a run only while it goes on, and neither pings nor waits for a slow reader.
Nothing that does those things can be cheaper.
"""

import asyncio
import base64
import hashlib
import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop
from msgspec import Struct

from benchmarks.peers import words

UPSTREAM = urlsplit(os.environ.get("OPENAI_BASE_URL", ""))
EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Token(Struct, tag="token"):
    run_id: str
    seq: int
    content: str


class Delta(Struct):
    content: str | None = None


class Choice(Struct):
    delta: Delta


class Chunk(Struct):
    choices: list[Choice]


encode = msgspec.json.Encoder().encode
chunk_of = msgspec.json.Decoder(Chunk).decode
idle: list["ModelConnection"] = []
answers: dict[str, "Answer"] = {}
"""Those that go on, by their run: for further readers."""


def sse_frame(seq: int, kind: bytes, data: bytes) -> bytes:
    event = b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, kind, data)
    return b"%x\r\n%b\r\n" % (len(event), event)


def websocket_frame(_seq: int, _kind: bytes, data: bytes) -> bytes:
    size = len(data)
    return (bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2)) + data


class Answer:
    """One run, on its way to its clients, all on one transport."""

    def __init__(self, write: Callable[[bytes], None], frame: Callable[[int, bytes, bytes], bytes], end: bytes) -> None:
        self.writes, self.frame, self.end = [write], frame, end
        self.said: list[bytes] = []
        self.run_id, self.seq = words.new_id(), 1
        answers[self.run_id] = self

    def write(self, frames: bytes) -> None:
        self.said.append(frames)
        for write in self.writes:
            write(frames)

    def attach(self, write: Callable[[bytes], None]) -> None:
        """Send all from the start, whatever the cursor, then what follows."""
        write(b"".join(self.said))
        self.writes.append(write)

    def begin(self, request: dict[str, Any]) -> None:
        session_id = request.get("session_id") or words.new_id()
        self.write(self.frame(1, b"start", encode(words.start(self.run_id, session_id))))
        self.task = asyncio.ensure_future(self.ask(words.remember(session_id, "user", request["message"])))

    async def ask(self, messages: list[dict[str, str]]) -> None:
        connection = idle.pop() if idle else None
        if connection is None:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(ModelConnection, UPSTREAM.hostname or "", UPSTREAM.port or 80)
        connection.ask(self, encode({"model": "lab", "stream": True, "messages": messages}))

    def chunks(self, lines: list[bytes]) -> None:
        out = bytearray()
        for line in lines:
            if line.startswith(b"data: {"):
                choices = chunk_of(line[6:]).choices
                if choices and (text := choices[0].delta.content):
                    self.seq += 1
                    out += self.frame(self.seq, b"token", encode(Token(self.run_id, self.seq, text)))
        if out:
            self.write(bytes(out))

    def finish(self) -> None:
        del answers[self.run_id]
        self.write(self.frame(self.seq + 1, b"done", encode(words.done(self.run_id, self.seq + 1))) + self.end)


class ModelConnection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, answer: Answer, body: bytes) -> None:
        self.answer, self.rest = answer, b""
        head = f"POST {UPSTREAM.path}/chat/completions HTTP/1.1\r\nHost: lab\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        self.answer.chunks(lines)
        if data.endswith(b"0\r\n\r\n"):
            self.answer.finish()
            idle.append(self)


class ClientConnection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.received = b""
        self.is_websocket = False

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.is_websocket:
            return self.frames()
        head, end, body = self.received.partition(b"\r\n\r\n")
        lowered = head.lower()
        if not end:
            return
        if b"sec-websocket-key: " in lowered:
            return self.upgrade(head, lowered)
        if head.startswith(b"GET /chat/runs/"):
            self.received = b""
            self.transport.write(EVENT_STREAM)
            return answers[head.split(b"/", 4)[3].decode()].attach(self.transport.write)
        if head.startswith(b"GET"):
            self.received = b""
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return
        length = int(lowered.partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self.received = body[length:]
            self.transport.write(EVENT_STREAM)
            Answer(self.transport.write, sse_frame, b"0\r\n\r\n").begin(msgspec.json.decode(body[:length]))

    def upgrade(self, head: bytes, lowered: bytes) -> None:
        at = lowered.index(b"sec-websocket-key: ") + 19
        digest = hashlib.sha1(head[at : at + 24] + GUID, usedforsecurity=False).digest()
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: chatserver.v1\r\nSec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(digest)
        )
        self.received, self.is_websocket = b"", True

    def frames(self) -> None:
        while len(self.received) > 6:
            length, at = self.received[1] & 0x7F, 6
            if length == 126:
                length, at = int.from_bytes(self.received[2:4]), 8
            if len(self.received) < at + length:
                return
            mask, payload = self.received[at - 4 : at], self.received[at : at + length]
            opcode, self.received = self.received[0] & 0x0F, self.received[at + length :]
            if opcode != 1:
                self.transport.close()
                return
            text = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
            command = msgspec.json.decode(text)
            if command["type"] == "attach":
                answers[command["run_id"]].attach(self.transport.write)
            else:
                Answer(self.transport.write, websocket_frame, b"").begin(command)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(
        ClientConnection, "127.0.0.1", int(sys.argv[1]), backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
