"""What each step of a token's way costs, without the kernel: `python -m benchmarks.way`.

The way is walked with its end cut off behind one step after the other; a step costs what it makes the walk longer. The
floor walks with the same bytes. Both are warm here: between two reads of a socket, a processor forgets a part of them.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from math import inf
from time import process_time
from types import SimpleNamespace
from typing import Any, cast

import click
import uvicorn
import uvloop
from uvicorn.server import ServerState

from benchmarks.libraries import HTTP_REQUEST, Socket
from benchmarks.peers import floor
from benchmarks.upstream import OPENING, token
from chatserver.agent import ToolAgent
from chatserver.log.memory import MemoryLog
from chatserver.meter import Day, Meter
from chatserver.providers import ModelRequest, OnDelta
from chatserver.providers.chat_completions.turn_decoder import TurnDecoder
from chatserver.providers.turn import Turn
from chatserver.runs.life import Life
from chatserver.runs.run import Run
from chatserver.runs.subscription import Subscription
from chatserver.serving.http_protocol import HttpProtocol
from chatserver.transports.admission import ADMISSION
from chatserver.transports.connections import Connections
from chatserver.transports.formats.sse import EventStream
from chatserver.transports.stream import RunStream
from chatserver.upstream.connection import Sink, UpstreamConnection
from chatserver.upstream.sse_decoder import SSEDecoder

ROUNDS = 15
TOKENS = 2000
RUN_ID = "4u2det1NuKpxgyW4roHxIw"
CHUNKS = [token(index, 0, 0) for index in range(TOKENS)]


class _Asked:
    """A ``Provider`` that only tells where its deltas have to go."""

    on_delta: OnDelta

    async def stream(self, request: ModelRequest, on_delta: OnDelta) -> Any:
        self.on_delta = on_delta
        await asyncio.sleep(inf)


def _run() -> tuple[Run, MemoryLog]:
    log, meter = MemoryLog(RUN_ID), Meter(inf, Day("2026-11-30", 10**12, 0), inf)
    return Run(cast(Any, SimpleNamespace(run_id=RUN_ID)), log, meter, 30.0, 0.0), log


async def _agent(run: Run) -> OnDelta:
    asked, calls = _Asked(), SimpleNamespace(specifications=list)
    emit = Life("ann", run, *[cast(Any, None)] * 3).say
    context = SimpleNamespace(meter=run.meter, emit=emit, calls=calls, turns=0)
    answer = ToolAgent(cast(Any, asked), 1).answer(ModelRequest(model="m", messages=[]), cast(Any, context))
    OPEN.append(asyncio.ensure_future(answer))
    await asyncio.sleep(0)
    return asked.on_delta


async def _bytes() -> Sink:
    return lambda _: False


async def _events() -> Sink:
    feed = SSEDecoder().feed
    return lambda data: not feed(data)


async def _deltas() -> Sink:
    return Turn(TurnDecoder(lambda _: None), inf).receive


async def _appended() -> Sink:
    run, _ = _run()
    return Turn(TurnDecoder(await _agent(run)), inf).receive


async def _written() -> Sink:
    run, log = _run()
    connections = Connections(heartbeat_seconds=15, send_timeout_seconds=30)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"][ADMISSION], scope["auth"] = None, SimpleNamespace(expires_at=inf)
        await RunStream(Subscription(log, 0, None), EventStream(), connections)(scope, receive, send)

    config = uvicorn.Config(cast(Any, app), ws="none", log_config=None)
    config.load()
    socket = Socket()
    socket.protocol = HttpProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    socket.protocol.connection_made(socket)
    socket.protocol.data_received(HTTP_REQUEST)
    await asyncio.sleep(0.01)
    return Turn(TurnDecoder(await _agent(run)), inf).receive


OPEN: list[asyncio.Future[Any]] = []
STEPS: dict[str, Callable[[], Awaitable[Sink]]] = {
    "the bytes of a response": _bytes,
    "events of them": _events,
    "deltas of them": _deltas,
    "agent, run, meter, log": _appended,
    "reader: woken, framed, written": _written,
}


async def opened(make: Callable[[], Awaitable[Sink]]) -> Callable[[bytes], None]:
    """What takes each read of a model server's response, whose head has come."""
    connection = UpstreamConnection()
    connection.connection_made(Socket())
    exchange = asyncio.ensure_future(connection.exchange(b"", None))
    await asyncio.sleep(0)
    connection.data_received(OPENING)
    await exchange
    OPEN.append(asyncio.ensure_future(connection.pour(await make(), lambda: inf)))
    await asyncio.sleep(0)
    return connection.data_received


def close() -> None:
    """End what was opened."""
    for each in OPEN:
        each.cancel()
    OPEN.clear()


def _floor() -> float:
    connection = floor.ModelConnection()
    connection.rest = b""
    connection.answer = floor.Answer(lambda _: None, floor.sse_frame, b"")
    connection.data_received(OPENING)
    return _fed(connection.data_received)


def _fed(receive: Callable[[bytes], None]) -> float:
    gc.collect()
    began = process_time()
    for each in CHUNKS:
        receive(each)
    return process_time() - began


async def main() -> None:
    gc.disable()
    best = dict.fromkeys([*STEPS, "floor"], inf)
    for _ in range(ROUNDS):
        for name, make in STEPS.items():
            best[name] = min(best[name], _fed(await opened(make)))
        best["floor"] = min(best["floor"], _floor())
        close()
        await asyncio.sleep(0)
    before = 0.0
    for name in STEPS:
        click.echo(f"{(best[name] - before) / TOKENS * 1e6:8.1f} µs  {name}")
        before = best[name]
    click.echo(f"{before / TOKENS * 1e6:8.1f} µs  the whole way: {before / best['floor']:.1f} × the floor's")
    click.echo(f"{best['floor'] / TOKENS * 1e6:8.1f} µs  the floor's way")


if __name__ == "__main__":
    uvloop.run(main())
