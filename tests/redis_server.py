"""Real Redis servers for tests, each with its own port and folder, and a Sentinel that watches them.

async with RedisServer(tmp_path) as redis, RedisServer(tmp_path, replica_of=redis) as replica:
    await redis.call("SET", "key", "value")
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.clients import Address
from tests.program import Program, free_port, until

READY = re.compile("Ready to accept connections|\\+monitor master")
TRIES = 5
MASTER = "chat"
"""The name under which a Sentinel knows what it watches."""


class RedisServer(Program):
    """One Redis server. Its data live in memory, and on disk only if ``stop`` keeps them."""

    host = "127.0.0.1"

    def __init__(self, *options: str, replica_of: Address | None = None) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="chatserver-redis-")))
        self.port = 0
        self._options = list(options)
        if replica_of is not None:
            self._options += ["--replicaof", f"{replica_of.host} {replica_of.port}"]

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    async def start(self) -> Self:
        """Start it, for the first time on a free port, and then again on the same one."""
        for left in reversed(range(TRIES)):
            port = self.port or free_port()
            try:
                await self.launch(*self._command(port), ready=READY)
            except RuntimeError as error:
                if not left or self.port or "Address already in use" not in str(error):
                    raise
            else:
                self.port = port
                break
        return self

    def _command(self, port: int) -> list[str]:
        data = ["--dir", str(self.directory), "--save", "", "--appendonly", "no"]
        sync = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
        return [_found("redis-server"), "--port", str(port), "--bind", self.host, *data, *sync, *self._options]

    async def call(self, *words: str | int) -> Any:
        """What the server answers to one command, on a connection of its own."""
        return await _call(self, *words)

    async def stop(self, *, keep: bool) -> None:
        """End it as an operator does; with or without its data for the next life."""
        if keep:
            await self.call("SAVE")
        else:
            (self.directory / "dump.rdb").unlink(missing_ok=True)
        self.kill()
        await self.wait()

    async def follows(self) -> None:
        """Wait until this replica is connected and has all that its master had then."""

        async def is_connected() -> bool:
            role = await self.call("ROLE")
            return bool(role[0] == "slave" and role[3] == "connected")

        await until(is_connected)

    async def leave_replicas_behind(self) -> None:
        """From now on no replica gets anything, as if the network to them were cut."""
        await self.call("ACL", "SETUSER", "default", "-psync", "-sync")
        await self.call("CLIENT", "KILL", "TYPE", "replica")

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        shutil.rmtree(self.directory, ignore_errors=True)


class Sentinel(Program):
    """A Sentinel of one vote: what it watches is failed over when it was away for ``down_seconds``."""

    host = "127.0.0.1"

    def __init__(self, master: Address, down_seconds: float = 0.5) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="chatserver-sentinel-")))
        self.port = 0
        self._watch = f"{master.host} {master.port} 1"
        self._down = round(down_seconds * 1000)

    @property
    def url(self) -> str:
        """As a node is told of it."""
        return f"redis+sentinel://{self.host}:{self.port}/{MASTER}/0"

    async def start(self) -> Self:
        self.port = self.port or free_port()
        file = self.directory / "sentinel.conf"
        rules = {"down-after-milliseconds": self._down, "failover-timeout": 3000, "parallel-syncs": 1}
        lines = [f"sentinel {rule} {MASTER} {value}" for rule, value in rules.items()]
        file.write_text("\n".join([f"sentinel monitor {MASTER} {self._watch}", *lines, ""]))
        command = ["--port", str(self.port), "--bind", self.host, "--dir", str(self.directory)]
        await self.launch(_found("redis-sentinel"), str(file), *command, ready=READY)
        return self

    async def watches(self, server: Address, *, as_master: bool) -> None:
        """Wait until it knows this server as the master, or as a replica of it."""

        async def is_known() -> bool:
            if as_master:
                return int((await _call(self, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER))[1]) == server.port
            replicas = await _call(self, "SENTINEL", "REPLICAS", MASTER)
            return any(int(each["port"]) == server.port for each in replicas)

        await until(is_known)

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        shutil.rmtree(self.directory, ignore_errors=True)


async def _call(server: Address, *words: str | int) -> Any:
    once = Retry(NoBackoff(), 0)
    async with Redis(host=server.host, port=server.port, decode_responses=True, retry=once) as client:
        command: Any = client.execute_command
        return await command(*words)


def _found(name: str) -> str:
    """The path of a program; without it the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path
