"""The application under ASGI servers that are not ours: the same streams, over nothing but `send` and `receive`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from tests.clients import (
    BOTH,
    SSE,
    WS,
    BrokenError,
    ClosedError,
    HttpReader,
    SseReader,
    Transport,
    WsReader,
    cancel,
    documents_of,
    get_run,
    request,
    text_of,
    types_of,
)
from tests.fake_upstream import FakeUpstream, Gate, say, token
from tests.live import ServerProcess
from tests.merging import unmerged
from tests.program import free_port
from tests.test_documents import README, fenced

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
HEARTBEAT_SECONDS = 0.4
GRACE_SECONDS = 0.2

ALONE = next(each for each in fenced(README, "python") if "serve(" in each)
MOUNTED = next(each for each in fenced(README, "python") if "ChatPlugin(" in each)
"""The two modules of README: the server as an application of its own, and as a plugin of another one."""

COMMANDS = {
    "granian": "granian --interface asgi --workers-kill-timeout 1 --host 127.0.0.1 --port {port} mine:app",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} mine:app",
    "uvicorn": "uvicorn --timeout-graceful-shutdown 1 --port {port} mine:app",
}
SERVERS = {name: (command, MOUNTED, "/assistant") for name, command in COMMANDS.items()} | {
    "uvicorn alone": (COMMANDS["uvicorn"], ALONE, "")
}


@dataclass
class Foreign:
    """A server of somebody else with our application, and the model that it asks."""

    upstream: FakeUpstream
    port: int
    prefix: str
    process: asyncio.subprocess.Process
    host: str = "127.0.0.1"

    async def until_status(self, run_id: str, status: str) -> None:
        with anyio.fail_after(WAIT_SECONDS):
            while (await get_run(self, run_id))["status"] != status:  # noqa: ASYNC110 - a reader would keep it going
                await anyio.sleep(0.02)


@asynccontextmanager
async def running(name: str, upstream: FakeUpstream, directory: Path) -> AsyncIterator[Foreign]:
    command, module, prefix = SERVERS[name]
    (directory / "mine.py").write_text(module)
    port = free_port()
    environment = ServerProcess(
        upstream.url, directory, heartbeat_seconds=HEARTBEAT_SECONDS, grace_seconds=GRACE_SECONDS
    )._env()
    arguments = command.format(port=port).split()
    environment["PYTHONPATH"] += f":{directory}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Some have a process beside the one that serves.
    )
    server = Foreign(upstream, port, prefix, process)
    try:
        with anyio.fail_after(WAIT_SECONDS):
            while not await is_up(server):
                assert process.returncode is None, f"{name} has ended"
                await anyio.sleep(0.05)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def is_up(server: Foreign) -> bool:
    try:
        return (await request(server, "GET", "/livez")).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module", params=SERVERS)
async def server(
    request: pytest.FixtureRequest, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Foreign]:
    directory = tmp_path_factory.mktemp(request.param)
    async with FakeUpstream() as upstream, running(request.param, upstream, directory) as server:
        yield server


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_run_is_the_same_as_under_our_own_server(server: Foreign, transport: Transport) -> None:
    """Whole, from any cursor, on the other transport too, and when it is over."""
    gate = anyio.Event()
    server.upstream.script(token("An"), Gate(gate), *say(" answer € for you.", 5))
    other = WS if transport is SSE else SSE
    with anyio.fail_after(WAIT_SECONDS):
        reading = await transport.start(server, {"message": "Hi"})
        begun = await reading.take(2)
        late = await other.attach(server, reading.run_id, 1)
        gate.set()
        documents = [*begun, *await documents_of(reading)]
        assert await documents_of(late) == documents[1:]
        rest = await documents_of(await other.attach(server, reading.run_id, 3))
        assert unmerged(rest, documents) == documents[3:]
    assert [json.loads(each)["seq"] for each in documents] == list(range(1, len(documents) + 1))
    assert types_of(documents)[-1] == "done" and text_of(documents) == "An answer € for you."


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_cancel_ends_the_run_in_front_of_its_reader(server: Foreign, transport: Transport) -> None:
    server.upstream.script(token("An"), Gate(anyio.Event()))
    with anyio.fail_after(WAIT_SECONDS):
        reading = await transport.start(server, {"message": "Hi"})
        await reading.take(2)
        assert (await cancel(server, reading.run_id)).status == 202
        last = json.loads((await documents_of(reading))[-1])
    assert (last["type"], last["finish_reason"]) == ("done", "cancelled")


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_reader_that_leaves_is_missed(server: Foreign, transport: Transport) -> None:
    server.upstream.script(token("An"), Gate(anyio.Event()))
    with anyio.fail_after(WAIT_SECONDS):
        reading = await transport.start(server, {"message": "Hi"})
        await reading.take(2)
        await anyio.sleep(2 * GRACE_SECONDS)
        assert (await get_run(server, reading.run_id))["status"] == "running"
        reading.cut()
        await server.until_status(reading.run_id, "cancelled")


async def test_an_idle_stream_is_kept_alive(server: Foreign) -> None:
    server.upstream.script(Gate(anyio.Event()))
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(server) as reader:
            run_id = await reader.run({"message": "Hi"})
            async with await SseReader.get(server, f"/chat/runs/{run_id}/events") as stream:
                while stream.raw.count(b": ping\n") < 2:
                    assert await stream.more(), "the stream ended"
            await reader.until("ping")
            await reader.until("ping")
            assert (await reader.cancel(run_id))["type"] == "accepted"


async def test_text_breaks_off_when_the_run_fails(server: Foreign) -> None:
    """A truncation is visible under any server, as far as it closes a connection whose response is not over."""
    server.upstream.script(token("An"), token(" answer"))
    with anyio.fail_after(WAIT_SECONDS):
        reader = await HttpReader.post(server, "/chat/stream", {"message": "Hi"}, {"Accept": "text/plain"})
        with pytest.raises(BrokenError):
            await reader.read_all()
        assert reader.raw == b"An answer"


async def test_bad_input_is_refused_in_words(server: Foreign) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        for body, status, code in ((b"{", 400, "bad_json"), (b'{"message": 1}', 400, "bad_request")):
            answer = await request(server, "POST", "/chat/stream", body)
            assert (answer.status, answer.json["code"]) == (status, code)
        assert (await request(server, "GET", "/chat/runs/nobodys/events")).status == 404
        async with await WsReader.connect(server) as reader:
            reader.send_text("{")
            refused = await reader.answer()
            assert (refused["status"], refused["code"]) == (400, "bad_json")
            reader.send_binary(b"no text")
            with pytest.raises(ClosedError) as closed:
                await reader.frame()
        assert closed.value.code == 1003


@pytest.mark.parametrize(
    "too_big", ["€" * 87_381 + "xx", b"x" * 262_145, "x" * 3_000_000], ids=["text", "binary", "huge"]
)
async def test_a_frame_that_is_too_big_closes(server: Foreign, too_big: str | bytes) -> None:
    """The limit counts bytes: the longest text is still read."""
    with anyio.fail_after(WAIT_SECONDS):
        async with await WsReader.connect(server) as reader:
            reader.send_text("€" * 87_381 + "x")
            assert (await reader.answer())["code"] == "bad_json"
            if isinstance(too_big, str):
                reader.send_text(too_big)
            else:
                reader.send_binary(too_big)
            with pytest.raises(ClosedError) as closed:
                await reader.frame()
        assert closed.value.code == 1009


@pytest.mark.parametrize("transport", BOTH, ids=repr)
@pytest.mark.parametrize("name", COMMANDS)
async def test_a_server_ends_on_sigterm_although_a_stream_is_open(
    name: str, transport: Transport, tmp_path: Path
) -> None:
    """By the options that README names: without them, uvicorn and granian wait until each stream has ended."""
    options = [word for word in COMMANDS[name].split() if word.startswith("--") and "timeout" in word]
    assert all(option in README for option in options)
    async with FakeUpstream() as upstream, running(name, upstream, tmp_path) as server:
        upstream.script(token("An"), Gate(anyio.Event()))
        with anyio.fail_after(WAIT_SECONDS):
            async with await transport.start(server, {"message": "Hi"}) as reading:
                await reading.take(2)
                server.process.terminate()
                await server.process.wait()
