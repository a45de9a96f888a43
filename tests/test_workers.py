"""Several workers behind one socket, and rolling restarts under load: real processes, real clients, real signals."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import httpx2
import psutil
import pytest

from tests.clients import (
    SSE,
    TRANSPORTS,
    Transport,
    documents_of,
    is_terminal,
    request,
    text_of,
    when_available,
)
from tests.fake_upstream import Act, Done, FakeUpstream, Gate, Pause, Reply, Step, finish, token
from tests.live import ServerProcess
from tests.program import until
from tests.redis_server import RedisServer
from tests.scrapes import scrape

pytestmark = [pytest.mark.proof, pytest.mark.timeout(180)]

WAIT_SECONDS = 90.0
DRAIN_SECONDS = 5.0
EXIT_SECONDS = 3.0
"""What the contract gives a server on top of the drain time."""

HELD = "hold"
ANSWER: list[Step] = [token("one "), Pause(0.05), token("two "), Pause(0.05), token("three"), finish(), Done()]


def answers(gate: anyio.Event) -> Act:
    """A short answer, and one that is held up until the gate opens."""

    def steps(reply: Reply) -> Iterable[Step]:
        if reply.request.json["messages"][-1]["content"] == HELD:
            yield from (token("so far"), Gate(gate), token(" so good"), finish(), Done())
        else:
            yield from ANSWER

    return steps


class Load:
    """Clients that come one after the other, without a pause: on new connections over each transport, and on kept ones.

    A refused or broken connection, a refusal, or an answer that is not whole fails the test.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.is_over = False
        self.answers = self.calls = 0

    async def readers(self, transport: Transport) -> None:
        while not self.is_over:
            documents = await documents_of(await transport.start(self._server, {"message": "Count"}))
            assert json.loads(documents[-1])["type"] == "done", documents[-1]
            assert text_of(documents) == "one two three"
            self.answers += 1

    async def callers(self) -> None:
        async with httpx2.AsyncClient(base_url=self._server.url, trust_env=False, timeout=30.0) as client:
            while not self.is_over:
                assert (await client.get("/chat/sessions")).status_code == 200
                self.calls += 1
                await anyio.sleep(0.005)

    async def more(self, answers: int = 6) -> None:
        """Wait until so many more clients have been served."""
        wanted = self.answers + answers
        while self.answers < wanted:  # noqa: ASYNC110 - clients that tell would wait for the test
            await anyio.sleep(0.01)


@asynccontextmanager
async def load(server: ServerProcess, gate: anyio.Event) -> AsyncIterator[Load]:
    """Clients until the end of the block; some read answers that are held up until then, from who will be replaced."""
    clients = Load(server)
    async with anyio.create_task_group() as tasks:
        held = [await transport.start(server, {"message": HELD}) for transport in (*TRANSPORTS, *TRANSPORTS)]
        for reading in held:
            await reading.take(2)
        for transport in TRANSPORTS:
            tasks.start_soon(clients.readers, transport)
        for _ in range(3):
            tasks.start_soon(clients.callers)
        await clients.more()
        yield clients
        await clients.more()
        clients.is_over = True
        gate.set()
        for reading in held:
            assert json.loads((await documents_of(reading))[-1])["type"] == "done"


@asynccontextmanager
async def workers(directory: Path, **settings: Any) -> AsyncIterator[tuple[FakeUpstream, ServerProcess]]:
    """A server with two workers."""
    options = {"drain_seconds": DRAIN_SECONDS, "access_log": True} | settings
    with anyio.fail_after(WAIT_SECONDS):
        async with FakeUpstream() as upstream, RedisServer() as redis:
            server = ServerProcess(upstream.url, directory, "--workers", "2", redis_url=redis.url, **options)
            async with server:
                yield upstream, server


async def all_ended(processes: list[psutil.Process]) -> None:
    async def have_ended() -> bool:
        return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)

    await until(have_ended)


def children_of(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


async def _is_parent(server: ServerProcess) -> bool:
    return bool(children_of(server))


async def both_answer(server: ServerProcess) -> None:
    """Call until each worker has written a line of its own."""

    async def have_answered() -> bool:
        await request(server, "GET", "/chat/sessions")
        return {1, 2} <= {int(number) for number in re.findall(r" worker (\d): chatserver", server.output)}

    await until(have_answered)


async def test_workers_serve_one_port_a_dead_one_is_replaced_and_all_of_them_drain(tmp_path: Path) -> None:
    async with workers(tmp_path) as (upstream, server):
        assert len([line for line in server.stdout if f"127.0.0.1:{server.port}" in line and "on http" in line]) == 1
        await both_answer(server)
        old = children_of(server)
        old[0].kill()
        await server.said("has died: signal SIGKILL; another is started")
        await until(lambda: _have_changed(server, old))
        gate = anyio.Event()
        upstream.always(token("so far"), Gate(gate), token(" so good"), finish(), Done())
        readings = [await transport.start(server, {"message": "x"}) for transport in [*TRANSPORTS, *TRANSPORTS]]
        for reading in readings:
            await reading.take(2)
        began = monotonic()
        server.terminate()
        await until(lambda: _is_status(server, 503))
        gate.set()
        for reading in readings:
            while not is_terminal(reading.documents[-1]):
                assert await reading.next() is not None
            assert text_of(reading.documents) == "so far so good"
            reading.cut()
        assert await server.wait() == 0
        assert monotonic() - began < DRAIN_SECONDS + EXIT_SECONDS
        assert "Traceback" not in server.output


async def _have_changed(server: ServerProcess, old: list[psutil.Process]) -> bool:
    return len(children_of(server)) == 2 and children_of(server) != old


async def _is_status(server: ServerProcess, status: int) -> bool:
    return (await request(server, "GET", "/readyz")).status == status


async def test_a_rolling_restart_of_workers_refuses_nobody_and_breaks_nothing(tmp_path: Path) -> None:
    async with workers(tmp_path, access_log=False, drain_seconds=30.0) as (upstream, server):
        before = children_of(server)
        upstream.always(answers(gate := anyio.Event()))
        async with load(server, gate) as clients:
            os.kill(server.pid, signal.SIGHUP)
            await server.said("all workers are new")
            await clients.more()
        await all_ended(before)
        scraped = (await scrape(server)).of("process_cpu_seconds_total", {})
        assert {each.labels["pid"] for each in scraped} == {str(each.pid) for each in children_of(server)}
        assert len(scraped) == 2
        server.terminate()
        assert await server.wait() == 0
        assert "Traceback" not in server.output


async def test_a_second_signal_ends_all_at_once_and_so_does_the_death_of_the_parent(tmp_path: Path) -> None:
    async with workers(tmp_path, drain_seconds=3600.0) as (upstream, server):
        upstream.always(token("so far"), Gate(anyio.Event()))
        reading = await SSE.start(server, {"message": "x"})
        await reading.take(2)
        children = children_of(server)
        server.terminate()
        await until(lambda: _is_status(server, 503))
        server.terminate()
        with anyio.fail_after(EXIT_SECONDS):
            assert await server.wait() == 128 + signal.SIGTERM
        await all_ended(children)
        reading.cut()
        await server.start()
        children = children_of(server)
        server.kill()
        await all_ended(children)
        assert await server.wait() == -signal.SIGKILL


async def test_workers_that_cannot_start_end_the_parent_in_words(tmp_path: Path) -> None:
    async with RedisServer() as redis:
        server = ServerProcess(None, tmp_path, "--workers", "2", redis_url=redis.url, database_url="sqlite:////no/a.db")
        with pytest.raises(RuntimeError, match="ended with 3"):
            await server.start()
        assert await server.wait() == 3
        assert "none can be started: giving up" in server.stderr[-1]


async def test_workers_start_and_are_replaced_without_redis(tmp_path: Path) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        async with FakeUpstream() as upstream, RedisServer() as redis:
            await redis.stop(keep=False)
            async with ServerProcess(upstream.url, tmp_path, "--workers", "2", redis_url=redis.url) as server:
                for each in (old := children_of(server)):
                    each.kill()
                await until(lambda: _have_changed(server, old))
                assert (await request(server, "GET", "/readyz")).json["redis"] == "down"
                assert (await request(server, "POST", "/chat/runs", {"message": "x"})).status == 503
                await redis.start()
                await until(lambda: _have_joined(server))
                upstream.always(*ANSWER)
                for transport in (*TRANSPORTS, *TRANSPORTS):
                    reading = await when_available(partial(transport.start, server, {"message": "x"}))
                    assert text_of(await documents_of(reading)) == "one two three"


async def _have_joined(server: ServerProcess) -> bool:
    return server.output.count("Redis is reached again") == 2


@asynccontextmanager
async def restarting(directory: Path, **options: Any) -> AsyncIterator[tuple[FakeUpstream, ServerProcess]]:
    """A server of one process that may have a successor, which is ended too."""
    with anyio.fail_after(WAIT_SECONDS):
        async with FakeUpstream() as upstream:
            server = ServerProcess(upstream.url, directory, drain_seconds=30.0, **options)
            await server.start()
            try:
                yield upstream, server
            finally:
                for pid in {server.pid, *map(int, re.findall(r"process (\d+) serves", server.output))}:
                    if psutil.pid_exists(pid):
                        os.kill(pid, signal.SIGTERM)
                await server.wait()


async def test_a_restart_of_a_single_process_refuses_nobody_and_breaks_nothing(tmp_path: Path) -> None:
    async with restarting(tmp_path) as (upstream, server):
        upstream.always(answers(gate := anyio.Event()))
        async with load(server, gate) as clients:
            os.kill(server.pid, signal.SIGHUP)
            await server.said("serves, this one drains")
            await clients.more(20)
        await until(lambda: _has_ended(server))
        assert server._running.returncode == 0
        assert "Traceback" not in server.output and len([line for line in server.stdout if "on http" in line]) == 2


async def _has_ended(server: ServerProcess) -> bool:
    return not server.is_running


async def test_a_restart_with_a_wrong_setting_leaves_the_process_that_serves(tmp_path: Path) -> None:
    async with restarting(tmp_path) as (_, server):
        (tmp_path / ".env").write_text("CHATSERVER_MAX_RUNS=0\n")
        os.kill(server.pid, signal.SIGHUP)
        await server.said("the new process has ended before it served, this one goes on")
        assert (await request(server, "GET", "/readyz")).status == 200
        (tmp_path / ".env").unlink()
        os.kill(server.pid, signal.SIGHUP)
        await server.said("serves, this one drains")
        await until(lambda: _has_ended(server))
        assert (await request(server, "GET", "/readyz")).status == 200


@pytest.mark.parametrize("is_idle", [True, False], ids=["after its predecessor", "before it"])
async def test_a_server_that_is_stopped_while_its_successor_starts_leaves_none(tmp_path: Path, is_idle: bool) -> None:
    async with restarting(tmp_path) as (upstream, server):
        upstream.always(answers(gate := anyio.Event()))
        # An answer holds the old process up until the successor serves.
        reading = None if is_idle else await SSE.start(server, {"message": HELD})
        if reading is not None:
            await reading.take(2)
        os.kill(server.pid, signal.SIGHUP)
        await until(lambda: _is_parent(server))
        (successor,) = children_of(server)
        server.terminate()
        if reading is not None:
            await all_ended([successor])
            gate.set()
            assert json.loads((await documents_of(reading))[-1])["type"] == "done"
        assert await server.wait() == 0, "its output ends only when no process is left"
        with pytest.raises(ConnectionRefusedError):
            await request(server, "GET", "/livez")
