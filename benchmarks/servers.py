"""The servers that are compared: how each is started, on its core, and stopped."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from msgspec import Struct

from chatserver.bench.connections import Transport

ROOT = Path(__file__).parents[1]
START_SECONDS = 30.0
STOP_SECONDS = 5.0
IDLE_PING_SECONDS = 15

MODULES = {
    "chatserver": ["chatserver", "serve", "--port"],
    "before": ["chatserver", "serve", "--port"],
    "usual": ["benchmarks.peers.usual"],
    "native": ["benchmarks.peers.native"],
    "litestar": ["benchmarks.peers.litestar"],
    "floor": ["benchmarks.peers.floor"],
    "node": ["chatserver", "serve", "--port"],
    "writer": ["chatserver", "serve", "--port"],
    "list": ["benchmarks.peers.redis_list"],
}

WITH_REDIS = ("node", "writer", "list")
"""Those that share their runs with other servers; the writer has the runs that are read at the node."""

TITLES = {
    "chatserver": "chatserver",
    "before": "chatserver before",
    "usual": "FastAPI + sse-starlette",
    "native": "FastAPI native",
    "litestar": "Litestar's own",
    "floor": "Python floor",
    "node": "chatserver with Redis",
    "list": "Redis list and channel",
}

LIMITS = {
    "CHATSERVER_MAX_RUNS": "20000",
    "CHATSERVER_MAX_RUNS_PER_USER": "20000",
    "CHATSERVER_MAX_CONNECTIONS_PER_USER": "20000",
    "CHATSERVER_MAX_SESSIONS_PER_USER": "1000000",
    "CHATSERVER_RETENTION_SECONDS": "10",
}
"""Beside these, every setting is the one that a user gets."""


class NotStarted(Exception):
    """A server did not come up; the message has its last words."""


class Contender(Struct, frozen=True):
    """A server on one transport."""

    name: str
    transport: Transport

    @property
    def title(self) -> str:
        return f"{TITLES[self.name]} {self.transport}"


CONTENDERS = tuple(
    Contender(name, transport)
    for name in TITLES
    for transport in ("SSE", "WebSocket")
    if (name, transport) not in (("native", "WebSocket"), ("list", "WebSocket"))
)


class Server(Struct, frozen=True):
    """A server that runs."""

    name: str
    port: int
    pid: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def pinned(core: int, *command: str, **options: object) -> "subprocess.Popen[bytes]":
    """A process that stays on one core."""
    pin = partial(os.sched_setaffinity, 0, {core})
    return subprocess.Popen(command, preexec_fn=pin, **options)  # type: ignore[call-overload,no-any-return] # noqa: PLW1509,S603


def checked_out(commit: str) -> Path:
    """An older commit of this project in a worktree of its own, with its own .venv; made when it is first asked for.

    Raises:
        ValueError: git does not know the commit.
    """
    git = ["git", "-C", str(ROOT)]
    named = subprocess.run([*git, "rev-parse", "--verify", f"{commit}^{{commit}}"], capture_output=True, check=False)  # noqa: S603
    if named.returncode:
        raise ValueError(f"{commit} is no commit")
    checkout = ROOT / "bench" / "commits" / named.stdout.decode().strip()
    python = checkout / ".venv" / "bin" / "python"
    if not checkout.exists():
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(checkout), commit], check=True)  # noqa: S603
    if not (checkout / ".venv" / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(checkout / ".venv")], check=True)  # noqa: S603
        command = [str(python), "-m", "pip", "install", "-qq", "--requirement", str(checkout / "requirements.lock")]
        subprocess.run(command, check=True)  # noqa: S603
        (checkout / ".venv" / "complete").touch()
    return checkout


@contextmanager
def running(
    name: str,
    model_url: str,
    core: int,
    *,
    ping_seconds: int = IDLE_PING_SECONDS,
    checkout: Path | None = None,
    shared: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server of that name until the end of the block; with a ``checkout``, as it is there.

    ``shared`` are the variables that name what it shares with other servers.

    Raises:
        NotStarted: it does not listen in time.
    """
    port = free_port()
    heartbeat = {"CHATSERVER_HEARTBEAT_SECONDS": str(ping_seconds)}
    model = {"OPENAI_BASE_URL": model_url, "OPENAI_API_KEY": "lab", "PYTHONPATH": str(checkout or ROOT)}
    with tempfile.TemporaryDirectory(prefix="chatserver-lab-") as folder, Path(folder, "log").open("w+b") as log:
        python = checkout / ".venv" / "bin" / "python" if checkout else sys.executable
        command = [str(python), "-m", *MODULES[name], str(port)]
        if name == "usual":
            command.append(str(ping_seconds))
        environment = {**os.environ, **LIMITS, **heartbeat, **model, **(shared or {})}
        process = pinned(core, *command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait_until_open(process, port, Path(folder, "log"))
            yield Server(name, port, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_open(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NotStarted(f"{process.args!r}: {log.read_text()[-2000:]}")
