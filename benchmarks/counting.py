"""Clients for saturation: sockets that are emptied every other millisecond, and one byte that is counted.

Nothing is parsed, so this costs a small part of what the cheapest server costs; content is checked before, in `verify`.
"""

import asyncio
import socket
from time import monotonic, monotonic_ns
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.script import MARK, Script
from chatserver.bench.connections import Target, Transport, frames, handshake, inflater, text_frame

READ_BYTES = 1 << 18
POLL_SECONDS = 0.002
PATIENCE_SECONDS = 10.0
"""A run that has no token for so long counts as failed."""


class Counted(Struct, frozen=True):
    """What came, and in which span of time."""

    tokens: int
    bytes_in: int
    first_ns: int
    last_ns: int


class _Client:
    def __init__(self, target: Target, transport: Transport) -> None:
        self.tokens = self.bytes_in = 0
        self._target, self._transport = target, transport
        self._inflate: Any = None
        self._rest = b""
        self._socket = socket.create_connection((target.host, target.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transport == "WebSocket":
            self._socket.sendall(handshake(target))
            head = b""
            while b"\r\n\r\n" not in head:
                if not (received := self._socket.recv(4096)):
                    raise OSError("the handshake was refused")
                head += received
            if b"permessage-deflate" in head:
                self._inflate = inflater()
        self._socket.setblocking(False)

    def ask(self, script: Script) -> None:
        if self._transport == "SSE":
            body = msgspec.json.encode({"message": script.message})
            self._socket.send(self._target.request("POST", "/chat/stream", body=body))
        else:
            self._socket.send(text_frame(msgspec.json.encode({"type": "send", "message": script.message})))

    def read(self) -> bool:
        """Take all that has come; whether there was any."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return False
        self.bytes_in += len(data)
        if self._inflate is None:
            self.tokens += data.count(MARK)
        else:
            self._rest = frames(self._rest + data, self._frame)
        return bool(data)

    def _frame(self, opcode: int, is_deflated: bool, payload: bytes) -> None:
        if opcode == 0x1:
            self.tokens += (self._inflate(payload) if is_deflated else payload).count(MARK)

    def close(self) -> None:
        self._socket.close()


async def count(target: Target, transport: Transport, script: Script, streams: int) -> Counted:
    """Read that many runs of a script at once, to their last token.

    Raises:
        OSError: not all came.
    """
    clients = [_Client(target, transport) for _ in range(streams)]
    try:
        began = monotonic_ns()
        for client in clients:
            client.ask(script)
        expected, tokens = script.tokens * streams, 0
        progress = monotonic()
        while tokens < expected:
            await asyncio.sleep(POLL_SECONDS)
            for client in clients:
                client.read()
            before, tokens = tokens, sum(client.tokens for client in clients)
            if tokens > before:
                progress = monotonic()
            elif monotonic() - progress > PATIENCE_SECONDS:
                raise OSError(f"{tokens} of {expected} tokens came")
        if tokens > expected:
            raise OSError(f"{tokens} tokens came instead of {expected}")
        return Counted(tokens, sum(client.bytes_in for client in clients), began, monotonic_ns())
    finally:
        for client in clients:
            client.close()
