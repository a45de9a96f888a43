"""Real servers for tests: one inside the test's loop, one in a process of its own. Both on port 0, both real sockets.

async with FakeUpstream() as upstream, live_server(upstream.url) as server:
    response = await request(server, "GET", "/livez")
"""

import asyncio
import os
import re
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import anyio
import msgspec
import uvicorn.server
from litestar import Litestar
from sqlalchemy import create_engine

from chatserver.app import create_app
from chatserver.plugin import apps_in
from chatserver.serving.server import Server
from chatserver.serving.sockets import bind
from chatserver.sessions.database import migrate
from chatserver.settings import Settings, variable
from tests.program import START_SECONDS, Program

CANARY = "sk-test-canary"
"""The upstream key of every test: it must never be seen in an answer or a log."""

STOP_SECONDS = 10.0
ROOT = Path(__file__).parent.parent
_ADDRESS = re.compile(r"http://(\[[0-9a-f:]+\]|[0-9A-Za-z.-]+):(\d+)")


class _Hasty:
    """asyncio with short sleeps: uvicorn ticks every 0.1 s, and waits for one and two ticks when it stops.

    Of a suite with a thousand servers those waits were a sixth.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


vars(uvicorn.server)["asyncio"] = _Hasty()


def settings_for(upstream_url: str | None, directory: Path, **settings: Any) -> Settings:
    """Settings of a test server; ``settings`` win."""
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "openai_api_key": CANARY if upstream_url else None,
        "openai_base_url": upstream_url,
        "database_url": f"sqlite:///{directory}/chat.db",
        "heartbeat_seconds": 15.0,
        "grace_seconds": 10.0,
        "max_runs_per_user": 1000,
        "max_connections_per_user": 10_000,
    }
    return Settings(**(defaults | settings))


def place_empty_database(file: Path) -> None:
    """Put a database without content there, unless there is one: to migrate each takes longer than many a test."""
    if not file.exists():
        file.write_bytes(_empty_database())


def is_held(file: Path) -> bool:
    """Whether somebody is within a transaction that writes, and stays there."""
    with closing(sqlite3.connect(file, timeout=0.5, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


@cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory(prefix="chatserver-") as folder:
        file = Path(folder, "chat.db")
        engine = create_engine(f"sqlite:///{file}")
        with engine.begin() as connection:
            migrate(connection)
        engine.dispose()
        return file.read_bytes()


@dataclass
class LiveServer:
    """A server that runs in this very loop."""

    server: Server
    settings: Settings
    listening: socket.socket
    prefix: str = ""
    """The path of a plugin, below which its clients find everything."""

    @property
    def host(self) -> str:
        return self.settings.host

    @property
    def port(self) -> int:
        return self.settings.port

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def app(self) -> Litestar:
        return self.server.app

    @property
    def runs(self) -> Any:
        """The ``Runs`` of the application, or of its first plugin."""
        return apps_in(self.app)[0].state.components.runs

    @property
    def connections(self) -> int:
        """Open connections, as the server counts them."""
        return len(self.server.server_state.connections)

    def begin_drain(self) -> None:
        """What the first SIGTERM does."""
        self.server.begin_drain()


@asynccontextmanager
async def live_server(
    upstream_url: str | None,
    *,
    directory: Path | None = None,
    make_app: Callable[[Settings], Litestar] = create_app,
    prefix: str = "",
    **settings: Any,
) -> AsyncIterator[LiveServer]:
    """A server until the end of the block; with a ``directory``, on the database there (for a second life)."""
    with tempfile.TemporaryDirectory(prefix="chatserver-") as temporary:
        place_empty_database((directory or Path(temporary)) / "chat.db")
        chosen = settings_for(upstream_url, directory or Path(temporary), **settings)
        sock = bind(chosen)
        chosen = msgspec.structs.replace(chosen, port=sock.getsockname()[1])
        server = Server(chosen, make_app(chosen))
        serving = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]), name="live server")
        try:
            await _started(server, serving)
            yield LiveServer(server, chosen, sock, prefix)
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await _stopped(server, serving)
            finally:
                sock.close()


async def _started(server: Server, serving: "asyncio.Task[None]") -> None:
    with anyio.fail_after(START_SECONDS):
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the server ended before it had started")
            await anyio.sleep(0.001)


async def _stopped(server: Server, serving: "asyncio.Task[None]") -> None:
    """Stop hard; a server that does not is a failed test."""
    server.stop()
    done, _ = await asyncio.wait([serving], timeout=STOP_SECONDS)
    if not done:
        server.force_exit = True
        serving.cancel()
        await asyncio.wait([serving], timeout=STOP_SECONDS)
        raise TimeoutError(f"the server did not stop within {STOP_SECONDS} s")
    serving.result()


class ServerProcess(Program):
    """A server in a process of its own, on a database that outlives it.

    ``async with ServerProcess(upstream.url, tmp_path, drain_seconds=2) as server:`` starts it; after ``kill`` or
    ``terminate`` and ``await server.wait()``, ``await server.start()`` gives it another life on another port.
    """

    def __init__(
        self,
        upstream_url: str | None,
        directory: Path,
        *arguments: str,
        python: str | Path = sys.executable,
        start: Sequence[str] = ("-m", "chatserver"),
        environment: dict[str, str] | None = None,
        has_database: bool = True,
        is_forked: bool = False,
        **settings: Any,
    ) -> None:
        """``has_database``: it finds an empty one. Otherwise it makes one, which takes longer than all else it does.

        ``is_forked``: it is not started from nothing, which takes a second of CPU, see ``tests/forked.py``.
        """
        super().__init__(directory)
        self._has_database, self._is_forked = has_database, is_forked
        self.settings = settings_for(upstream_url, directory, **settings)
        self.arguments = arguments
        self.host = self.settings.host
        self.port = 0
        self._python, self._start = str(python), start
        self._environment = environment or {}

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> Self:
        """Start it, for the first time or again, and wait until it says where it listens."""
        if self._has_database:
            place_empty_database(self.directory / "chat.db")
        arguments = ("serve", "--host", self.host, "--port", str(self.settings.port), *self.arguments)
        if self._is_forked:
            found = await self.fork(*self._start[1:], *arguments, ready=_ADDRESS, environment=self._env())
        else:
            command = (self._python, *self._start, *arguments)
            found = await self.launch(*command, ready=_ADDRESS, environment=self._env())
        self.port = int(found[2])
        return self

    def freeze(self) -> None:
        """As of any program, and outside of a transaction: a writer of SQLite that stands still holds up all others."""
        super().freeze()
        while is_held(self.directory / "chat.db"):
            self.thaw()
            time.sleep(0.01)
            super().freeze()

    def _env(self) -> dict[str, str]:
        foreign = ("CHATSERVER_", "OPENAI_", "OTEL_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        defaults = Settings()
        for name in Settings.__struct_fields__:
            value = getattr(self.settings, name)
            if value != getattr(defaults, name) and name not in ("host", "port"):
                env[variable(name)] = ",".join(value) if isinstance(value, tuple) else str(value)
        return env | self._environment
