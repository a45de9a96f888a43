"""A proxy that harms: it stands before a server and ends, freezes, dribbles or refuses connections as it was told.

    async with Chaos(server) as chaos:
        chaos.faults = iter([Fault("fin", after=900), Fault("502")])

Each connection carries one request, and takes the next fault. Files under `/web/` it serves itself, so that a page has
the server's origin.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Literal

from tests.clients import Address
from tests.tcp_proxy import TcpProxy, reset_connection

Kind = Literal["none", "fin", "rst", "freeze", "502", "no upgrade", "refuse"]
CUTS: tuple[Kind, ...] = ("fin", "rst", "fin", "rst", "freeze", "502", "no upgrade", "refuse")

BAD_GATEWAY = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 5\r\nConnection: close\r\n\r\n<hr/>"
)
NO_UPGRADE = BAD_GATEWAY.replace(b"502 Bad Gateway", b"405 Method Not Allowed")
TYPES = {"html": b"text/html; charset=utf-8", "js": b"text/javascript; charset=utf-8"}


@dataclass(frozen=True)
class Fault:
    """What happens to one connection, when so many bytes of the answer have passed, in writes of at most ``size``."""

    kind: Kind = "none"
    after: int = 0
    size: int = 65536


def cuts(rng: Random, reach: int) -> Iterator[Fault]:
    """Faults for ever, at any byte up to ``reach``, every fifth connection one byte at a time.

    An event that no connection carries whole never arrives, so ``reach`` must be well behind the longest one.
    """
    while True:
        yield Fault(rng.choice(CUTS), rng.randrange(reach), 1 if rng.random() < 0.2 else 65536)


class Chaos(TcpProxy):
    """The proxy. ``faults`` may be set anew at any time; ``cuts`` counts what has been done to whom."""

    def __init__(self, server: Address, files: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self.server = server
        self.files = dict(files or {})
        self.faults: Iterator[Fault] = iter(())
        self.cuts: Counter[str] = Counter()
        self.requests: list[str] = []
        """`GET /path` of each connection that got as far as to say so."""
        self.is_gone = False
        self._connections: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def open(self) -> int:
        """Connections of clients."""
        return len(self._connections)

    def reset_all(self) -> None:
        """Cut every connection that there is."""
        for each in list(self._connections):
            self.cuts["rst"] += 1
            reset_connection(each)

    def go(self) -> None:
        """Vanish: what is open says nothing more, what is new gets no answer."""
        self.is_gone = True

    def come_back(self) -> None:
        """Serve again. Old connections stay dead, as those of a machine that has slept."""
        self.is_gone = False
        self.reset_all()

    async def until_requested(self, start: str, count: int = 1) -> None:
        """Wait until so many requests have begun like this."""
        while sum(each.startswith(start) for each in self.requests) < count:
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.decode("latin-1").split(" ", 2)
        if path.startswith("/web/") and not self.is_gone:
            return self._send_file(path.removeprefix("/web/").partition("?")[0], writer)
        self.requests.append(f"{method} {path}")
        self._change()
        fault = next(self.faults, Fault())
        upgrades = b"\nupgrade: websocket" in head.lower()
        match fault.kind:
            case "refuse":
                self.cuts["refuse"] += 1
                return reset_connection(writer)
            case "no upgrade" if upgrades:
                return self._refuse("no upgrade", NO_UPGRADE, writer)
            case "502":
                return self._refuse("502", BAD_GATEWAY, writer)
        if self.is_gone:
            return await self._hang(reader)
        if not upgrades:
            head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n").replace(
                b"Connection: keep-alive\r\n", b""
            )
        try:
            far_reader, far_writer = await asyncio.open_connection(self.server.host, self.server.port)
        except OSError:
            return reset_connection(writer)
        try:
            far_writer.write(head)
            asking = asyncio.create_task(self._pump(reader, far_writer, Fault()))
            try:
                await self._pump(far_reader, writer, fault)
                if fault.kind == "freeze":
                    await asyncio.wait([asking])
            finally:
                asking.cancel()
                await asyncio.wait([asking])
        finally:
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault) -> None:
        """Pass bytes on until the end, or until the fault."""
        left = fault.after
        while data := await reader.read(fault.size):
            if self.is_gone:
                return await writer.wait_closed()  # The end of the answer does not come through either.
            if fault.kind in ("fin", "rst", "freeze"):
                data, left = data[:left], left - len(data)
            writer.write(data)
            await writer.drain()
            if left < 0:
                self.cuts[fault.kind] += 1
                return reset_connection(writer) if fault.kind == "rst" else None
            if fault.size == 1:
                await asyncio.sleep(0)
        if writer.can_write_eof() and not writer.transport.is_closing():
            writer.write_eof()

    def _refuse(self, kind: Kind, answer: bytes, writer: asyncio.StreamWriter) -> None:
        self.cuts[kind] += 1
        writer.write(answer)

    def _send_file(self, name: str, writer: asyncio.StreamWriter) -> None:
        body, kind = self.files.get(name), TYPES[name.rpartition(".")[2]]
        status = b"200 OK" if body is not None else b"404 Not Found"
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        writer.write(head % (status, kind, len(body or b"")) + (body or b""))

    async def _hang(self, reader: asyncio.StreamReader) -> None:
        """Swallow what comes until the peer leaves."""
        while await reader.read(65536):
            pass
