"""A program that runs beside a test: what it says, and the ways in which it is stopped, frozen and ended."""

import asyncio
import random
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import anyio

from tests.forked import LINE_BYTES_LIMIT, Forked, fork

START_SECONDS = 90.0
"""How long a program may take until it is ready: two workers on a machine that ten others use took 40 s."""


PORTS = range(12_000, 32_768)
"""Below those that Linux gives to connections and to whoever asks for port 0."""


def free_port() -> int:
    """A port for a program that cannot choose one, or that comes back to it: nobody else takes it meanwhile."""
    while True:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = START_SECONDS) -> None:
    """Ask another program again and again until something is true, which nobody tells of."""
    with anyio.fail_after(seconds):
        while not await holds():  # noqa: ASYNC110 - that is what it is for
            await anyio.sleep(0.01)


class Program:
    """One program, in one life after another. Leaving its block kills what still runs.

    A subclass says in ``start`` which command it is, and which line says that the program is ready.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stdout: list[str] = []
        """All lines so far, of all lives."""
        self.stderr: list[str] = []
        self._process: asyncio.subprocess.Process | Forked | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._spoke = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def output(self) -> str:
        """Everything it said, for messages and for secrets that must not be there."""
        return "\n".join([*self.stdout, *self.stderr])

    @property
    def _running(self) -> asyncio.subprocess.Process | Forked:
        assert self._process is not None, "the program was not started"
        return self._process

    async def start(self) -> Self:
        """Start it, for the first time or again, and wait until it is ready."""
        raise NotImplementedError

    async def launch(
        self, *command: str, ready: re.Pattern[str], environment: Mapping[str, str] | None = None
    ) -> re.Match[str]:
        """Start a command and wait for the line of its standard output that says that it is ready.

        Raises:
            RuntimeError: it ended before.
            TimeoutError: it said no such line for ``START_SECONDS``.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_LIMIT,
            cwd=self.directory,
            env=environment,
        )
        return await self._ready(process, ready)

    async def fork(
        self, module: str, *arguments: str, ready: re.Pattern[str], environment: Mapping[str, str]
    ) -> re.Match[str]:
        """As ``launch`` with ``python -m module``, in a process that has imported the server already."""
        return await self._ready(
            await fork(module, *arguments, directory=self.directory, environment=environment), ready
        )

    async def _ready(self, process: asyncio.subprocess.Process | Forked, ready: re.Pattern[str]) -> re.Match[str]:
        begin = len(self.stdout)
        self._process = process
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._collect(process.stdout, self.stdout)),
            asyncio.create_task(self._collect(process.stderr, self.stderr)),
        ]
        try:
            with anyio.fail_after(START_SECONDS):
                while not (found := next(filter(None, map(ready.search, self.stdout[begin:])), None)):
                    if process.returncode is not None:
                        raise RuntimeError(f"the program ended with {process.returncode}:\n{self.output}")
                    await self._spoke.wait()
        except TimeoutError:
            raise TimeoutError(f"the program was not ready within {START_SECONDS} s:\n{self.output}") from None
        return found

    async def _collect(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode(errors="replace").rstrip("\n"))
            self._said()
        await self._running.wait()
        self._said()

    def _said(self) -> None:
        self._spoke.set()
        self._spoke = asyncio.Event()

    async def said(self, text: str) -> str:
        """Wait for a line of its standard error that has this text; the line."""
        with anyio.fail_after(START_SECONDS):
            while not (found := next((line for line in self.stderr if text in line), None)):
                if not self.is_running:
                    raise RuntimeError(f"the program never said {text!r}:\n{self.output}")
                await self._spoke.wait()
        return found

    def terminate(self) -> None:
        self._running.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: nothing of it goes on."""
        self._running.kill()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open, and nothing comes from it."""
        self._running.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on as if no time had passed."""
        self._running.send_signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Wait until it has ended and all it said is collected; its exit status."""
        status = await self._running.wait()
        await asyncio.gather(*self._readers)
        return status

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        if self._process is None:
            return
        with anyio.CancelScope(shield=True):
            if self.is_running:
                self.kill()
            await self.wait()
