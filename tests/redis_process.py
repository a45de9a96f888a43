"""A Redis that outlives a test and its event loop: of all tests of a process, or stopped and started by plain calls.

What a test needs beside nodes, with replica and Sentinel, is in `redis_server.py`, in the event loop of the test.
"""

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import pytest

from tests.program import free_port

REDIS_START_SECONDS = 20.0


class RedisProcess:
    """A server in a process of its own; its port and its folder stay the same over its restarts."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it with what it saved last, and wait until it answers."""
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command = ["redis-server", *self._options, *place, "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(round(REDIS_START_SECONDS / 0.02)):
            if self._answers():
                return
            assert self._process.poll() is None, "redis-server ended at its start"
            sleep(0.02)
        raise AssertionError("redis-server does not answer")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as peer:
                peer.sendall(b"PING\r\n")
                return peer.recv(7) in (b"+PONG\r\n", b"-NOAUTH")
        except OSError:
            return False

    def stop(self) -> None:
        """Kill it: what it has not saved is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Let it do nothing, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def cli(self, *words: str) -> str:
        """What a command prints, in a connection of its own."""
        command = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


@contextmanager
def redis_process(*options: str) -> Iterator[RedisProcess]:
    """A started server; the test is skipped where none is installed."""
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed")
    with tempfile.TemporaryDirectory(prefix="chatserver-redis-", ignore_cleanup_errors=True) as folder:
        server = RedisProcess(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.stop()
