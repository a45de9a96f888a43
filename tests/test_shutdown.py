"""SIGTERM tells everybody and loses nothing; SIGKILL tells nobody and loses nothing that was acknowledged."""

import gc
import json
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any, cast

import anyio
import psutil
import pytest

from chatserver.app import create_app
from chatserver.runs.places import LocalPlaces
from chatserver.serving.server import Server
from chatserver.serving.sockets import bind
from chatserver.sessions import Sessions
from tests.clients import (
    SSE,
    TRANSPORTS,
    HandshakeRefusedError,
    Reading,
    RefusedError,
    Transport,
    WsReader,
    documents_of,
    get_run,
    is_terminal,
    request,
    text_of,
)
from tests.conftest import IS_FULL
from tests.fake_upstream import Act, Done, FakeUpstream, Gate, Hang, Reply, Step, Waitable, finish, token
from tests.live import LiveServer, ServerProcess, live_server, settings_for
from tests.proving import held

pytestmark = [pytest.mark.proof, pytest.mark.timeout(300)]

WAIT_SECONDS = 250.0
"""How long a test may take that starts processes: two starts, on a machine that does much else."""

DRAIN_SECONDS = 2.0
EXIT_SECONDS = 3.0 if IS_FULL else 20.0
"""What the contract gives a server on top of the drain time; more on a machine that does much else."""

ENDS, HANGS = "ends", "hangs"


def answers(gate: Waitable) -> Act:
    """A few words for each request; one that says so then ends when the gate opens, any other hangs."""

    def steps(reply: Reply) -> Iterable[Step]:
        yield token("so far")
        if reply.request.json["messages"][-1]["content"] == ENDS:
            yield from (Gate(gate), token(" so good"), finish(), Done())
        yield Hang()

    return steps


@asynccontextmanager
async def draining(
    directory: Path, *, is_forked: bool = True, **settings: Any
) -> AsyncIterator[tuple[FakeUpstream, ServerProcess, AsyncExitStack]]:
    """An upstream, a server, and a stack that closes the test's clients."""
    with anyio.fail_after(WAIT_SECONDS):
        async with (
            FakeUpstream() as upstream,
            ServerProcess(upstream.url, directory, is_forked=is_forked, **settings) as server,
        ):
            upstream.always(answers(anyio.Event()))
            async with AsyncExitStack() as clients:
                yield upstream, server, clients


async def start_all(
    server: ServerProcess, clients: AsyncExitStack, count: int, transports: Sequence[Transport] = TRANSPORTS
) -> list[Reading]:
    """Readers in mid answer, over the transports in turn; every second run will end when it may."""
    readings: dict[int, Reading] = {}

    async def start(index: int, transport: Transport) -> None:
        reading = await transport.start(server, {"message": ENDS if index % 2 else HANGS})
        readings[index] = await clients.enter_async_context(reading)
        await reading.take(2)

    async with anyio.create_task_group() as tasks:
        for index, transport in zip(range(count), cycle(transports), strict=False):
            tasks.start_soon(start, index, transport)
    return [readings[index] for index in range(count)]


async def connect(server: ServerProcess, clients: AsyncExitStack) -> WsReader:
    return await clients.enter_async_context(await WsReader.connect(server))


async def is_told(reading: Reading) -> None:
    """Read to the terminal event and on to the end; it must be the end that the contract has for a drain."""
    while not (reading.documents and is_terminal(reading.documents[-1])):
        assert await reading.next() is not None, "ended without a terminal event"
    assert sum(map(is_terminal, reading.documents)) == 1
    await is_sent_away(reading)


async def is_sent_away(reading: Reading) -> None:
    """Nothing more comes but the words with which a server that drains ends a connection."""
    before, reader = len(reading.documents), cast(Any, reading).reader
    if isinstance(reader, WsReader):
        assert (await reader.closing()).code == 1012
    else:
        assert await reading.next() is None
        assert reader.has_ended
        if reader.accept == "text/event-stream":
            assert bytes(reader.raw).splitlines()[-1].startswith(b"retry: ")
    assert len(reading.documents) == before


async def all_told(readings: Iterable[Reading]) -> None:
    async with anyio.create_task_group() as tasks:
        for reading in readings:
            tasks.start_soon(is_told, reading)


async def is_kept(server: ServerProcess, reading: Reading, is_complete: bool) -> None:
    """After a restart: the answer as its reader saw it end, and the end itself from any cursor."""
    last = json.loads(reading.documents[-1])
    run = await get_run(server, reading.run_id)
    answer = (await request(server, "GET", f"/chat/sessions/{run['session_id']}")).json["messages"][-1]
    if is_complete:
        assert (last["type"], run["status"], answer["status"]) == ("done", "completed", "complete")
        assert answer["content"] == text_of(reading.documents) == "so far so good"
    else:
        assert (last["code"], run["status"], answer["status"]) == ("interrupted", "failed", "partial")
        assert answer["content"] == text_of(reading.documents) == "so far"
    for after, transport in enumerate(TRANSPORTS):
        again = await documents_of(await transport.attach(server, reading.run_id, after))
        assert again[-1] == reading.documents[-1]


async def refuses(server: ServerProcess) -> None:
    """A server that drains answers everybody who is new, and takes nothing on."""
    for method, path, body in (("GET", "/readyz", None), ("POST", "/chat/stream", {"message": "Hi"})):
        response = await request(server, method, path, body)
        assert (response.status, response.json["code"]) == (503, "draining")
        assert int(response.headers["retry-after"]) > 0
    with pytest.raises(HandshakeRefusedError) as refused:
        await WsReader.connect(server)
    assert refused.value.status == 503
    assert int(refused.value.headers["retry-after"]) > 0
    assert (await request(server, "GET", "/livez")).status == 200


async def test_sigterm_tells_every_reader_keeps_every_answer_and_exits_in_time(tmp_path: Path) -> None:
    # Not forked: what Python says at its end belongs to `stderr`.
    async with draining(tmp_path, is_forked=False, drain_seconds=DRAIN_SECONDS) as (upstream, server, clients):
        gate = anyio.Event()
        upstream.always(answers(gate))
        readings = await start_all(server, clients, 100)
        idle = [await connect(server, clients) for _ in range(3)]
        began = monotonic()
        server.terminate()
        assert [(await each.closing()).code for each in idle] == [1012] * 3
        assert upstream.active == len(readings), "an idle WebSocket is closed at once, not when the answers are over"
        await refuses(server)
        gate.set()
        await all_told(readings)
        assert await server.wait() == 0
        assert monotonic() - began < DRAIN_SECONDS + EXIT_SECONDS
        assert server.stderr == []

        await server.start()
        async with anyio.create_task_group() as tasks:
            for index, reading in enumerate(readings):
                tasks.start_soon(is_kept, server, reading, bool(index % 2))


async def test_a_websocket_hears_the_end_of_each_of_its_runs_before_1012(tmp_path: Path) -> None:
    async with draining(tmp_path, drain_seconds=0.2) as (_, server, clients):
        readers = [await connect(server, clients) for _ in range(4)]
        for reader in readers:
            run_ids = [await reader.run({"message": HANGS}) for _ in range(5)]
            while any(len(reader.documents_of(each)) < 2 for each in run_ids):
                await reader.frame()
        server.terminate()
        for reader in readers:
            assert (await reader.closing()).code == 1012
            assert sum(map(is_terminal, reader.documents)) == 5
        assert await server.wait() == 0


async def test_a_command_while_draining_is_rejected_and_the_answer_beside_it_goes_on(tmp_path: Path) -> None:
    async with draining(tmp_path, drain_seconds=3600.0) as (upstream, server, clients):
        gate = anyio.Event()
        upstream.always(answers(gate))
        reader, idle = await connect(server, clients), await connect(server, clients)
        await reader.run({"message": ENDS})
        await reader.until("token")
        server.terminate()
        await idle.closing()
        rejected = await reader.command(type="send", message="Hi", ref="7")
        assert (rejected["type"], rejected["status"], rejected["ref"]) == ("rejected", 503, "7")
        assert rejected["retry_after"] > 0
        gate.set()
        assert (await reader.until("done"))["finish_reason"] == "stop"
        assert (await reader.closing()).code == 1012
        assert await server.wait() == 0


async def test_a_run_that_has_waited_for_its_place_does_not_begin_in_a_server_that_drains_since(tmp_path: Path) -> None:
    """Nobody would wait for its end: it would be interrupted as soon as the others are over."""
    gate = anyio.Event()
    with anyio.fail_after(WAIT_SECONDS):
        async with FakeUpstream() as upstream, live_server(upstream.url, directory=tmp_path) as server:
            upstream.always(answers(gate))
            early = await SSE.start(server, {"message": ENDS})
            with held(LocalPlaces, "acquire", done=True) as hold:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(is_refused, server)
                    await hold.come.wait()
                    tasks.start_soon(server.runs.drain)
                    await anyio.wait_all_tasks_blocked()
                    hold.let.set()
                    gate.set()
            assert text_of(await documents_of(early)) == "so far so good"


async def is_refused(server: LiveServer) -> None:
    with pytest.raises(RefusedError) as refused:
        await SSE.start(server, {"message": ENDS})
    assert (refused.value.status, refused.value.code) == (503, "draining")


async def test_readers_that_take_nothing_do_not_hold_the_exit_up(tmp_path: Path) -> None:
    async with draining(tmp_path, drain_seconds=0.5) as (upstream, server, clients):
        upstream.always(*[token("€" * 8_000)] * 250, finish(), Done())
        run = await SSE.start(server, {"message": "Tell"})
        await documents_of(run)
        for after, transport in zip(range(80, 170, 3), cycle(TRANSPORTS), strict=False):
            stopped = await transport.attach(server, run.run_id, after, receive_bytes=4096)
            clients.callback(stopped.reset)
            await stopped.take(1)
            stopped.stop()
        began = monotonic()
        server.terminate()
        assert await server.wait() == 0
        assert monotonic() - began < 0.5 + EXIT_SECONDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_server_at_once(number: signal.Signals, tmp_path: Path) -> None:
    async with draining(tmp_path, drain_seconds=3600.0) as (_, server, clients):
        await start_all(server, clients, 3)
        idle = await connect(server, clients)
        process = psutil.Process(server.pid)
        process.send_signal(number)
        await idle.closing()
        process.send_signal(number)
        with anyio.fail_after(EXIT_SECONDS):
            assert await server.wait() != 0


async def test_sigterm_while_the_server_is_starting_ends_it_without_a_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(None, tmp_path)
    with anyio.fail_after(50), bind(settings) as sock, held(Sessions, "interrupt_abandoned", done=False) as hold:
        server = Server(settings, create_app(settings))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [sock])
            await hold.come.wait()
            server.handle_exit(signal.SIGTERM, None)
            hold.let.set()
        del server
        gc.collect()  # A task that failed says so when it is forgotten.
        assert caplog.messages == []
