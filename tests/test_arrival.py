"""A server that starts before its PostgreSQL: it waits for a while, says so, and can be stopped meanwhile."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import psutil
import pytest

from chatserver.sessions import arrival
from chatserver.sessions.arrival import await_database
from tests.clients import TRANSPORTS, documents_of
from tests.fake_upstream import FakeUpstream, say
from tests.gateway import Gateway
from tests.live import ServerProcess
from tests.redis_server import RedisServer
from tests.test_postgres_trouble import full

pytestmark = pytest.mark.anyio

SECONDS = 100


class Place(NamedTuple):
    """Where a PostgreSQL listens."""

    host: str
    port: int


@asynccontextmanager
async def gateway_to(url: str) -> AsyncIterator[tuple[Gateway, str]]:
    """What stands before a PostgreSQL, and the URL by which this is reached there."""
    found = urlsplit(url)
    assert found.hostname and found.port
    async with Gateway(Place(found.hostname, found.port)) as gateway:
        yield gateway, found._replace(netloc=f"{found.username}@127.0.0.1:{gateway.port}").geturl()


@pytest.mark.parametrize("count", [1, 2])
async def test_a_server_waits_for_its_database_and_then_serves(count: int, tmp_path: Path, postgres_url: str) -> None:
    with anyio.fail_after(SECONDS):
        async with gateway_to(postgres_url) as (gateway, url), RedisServer() as redis, FakeUpstream() as upstream:
            gateway.cut()
            async with anyio.create_task_group() as tasks:
                server = ServerProcess(
                    upstream.url, tmp_path, "--workers", str(count), database_url=url, redis_url=redis.url
                )
                tasks.start_soon(server.start)
                await is_said(server, count)
                assert server.stdout == [], "it does not serve yet"
                gateway.heal()
            try:
                upstream.always(*say("Hi"))
                for transport in TRANSPORTS:
                    reading = await transport.start(server, {"message": "x"})
                    assert json.loads((await documents_of(reading))[-1])["type"] == "done"
                assert server.output.count("the database is waited for") == count, "each says so once"
            finally:
                server.kill()
                await server.wait()


async def is_said(server: ServerProcess, count: int = 1) -> None:
    while server.output.count("the database is waited for, at most 30 s") < count:  # noqa: ASYNC110
        await anyio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_waits_for_its_database_is_stopped_at_once(number: signal.Signals, tmp_path: Path) -> None:
    server = ServerProcess(None, tmp_path, database_url="postgresql://x@127.0.0.1:1/x")
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(has_ended, server)
            await is_said(server)
            psutil.Process(server.pid).send_signal(number)
        assert await server.wait() in (-number, 128 + number)
        assert "Traceback" not in server.output


async def has_ended(server: ServerProcess) -> None:
    with pytest.raises(RuntimeError, match="the program ended"):
        await server.start()


async def test_a_database_that_does_not_come_ends_the_start_in_words(tmp_path: Path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/chat"
    server = ServerProcess(None, tmp_path, start=("-m", "tests.odd_node", "haste"), database_url=url)
    with anyio.fail_after(SECONDS):
        await has_ended(server)
        assert await server.wait() == 3
    waits, ends, *rest = server.stderr
    assert "CHATSERVER_DATABASE_URL: the database is waited for" in waits and "127.0.0.1" in waits
    assert "CHATSERVER_DATABASE_URL: cannot be opened" in ends and len(rest) <= 1
    assert "hunter2" not in server.output and "Traceback" not in server.output


async def test_a_postgres_without_a_free_connection_is_waited_for(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks, full(postgres_url):
            tasks.start_soon(await_database, postgres_url)
            while not caplog.messages:  # noqa: ASYNC110 - a log tells nobody
                await anyio.sleep(0.01)
    assert "too many clients already" in caplog.messages[0]


@pytest.mark.parametrize("wrong", ["role", "database", "url", "parameter"])
async def test_what_waiting_does_not_heal_is_not_waited_for(
    wrong: str, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    urls = {
        "role": postgres_url.replace("chatserver@", "nobody@"),
        "database": postgres_url + "-not",
        "url": "no url",
        "parameter": postgres_url + "?statement_cache_size=many",
    }
    with anyio.fail_after(arrival.BETWEEN_TRIES_SECONDS * 20):
        await await_database(urls[wrong])
    assert caplog.messages == []
