"""Programs in Python that are forked from one process, which has imported the server: its imports take a second of CPU.

All else is as in a process that begins with nothing: directory, environment, arguments, output, signals and status.
Whatever is about the start of a program, its memory or its command line takes such a process.
"""

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

LINE_BYTES_LIMIT = 16 * 1024 * 1024
"""How long a line of output may be."""

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """As ``asyncio.subprocess.Process``."""

    def __init__(self, process: ForkServerProcess, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._process = process
        self.stdout, self.stderr = stdout, stderr
        self.pid = process.pid or 0
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(process.sentinel, self._end)

    def _end(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._process.join()
        self._ended.set_result(self._process.exitcode or 0)
        self._process.close()

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    def send_signal(self, number: int) -> None:
        if not self._ended.done():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)


async def fork(module: str, *arguments: str, directory: Path, environment: Mapping[str, str]) -> Forked:
    """Run a module as ``python -m module`` does."""
    ends = [_FORKS.Pipe(duplex=False) for _ in range(2)]
    theirs = [write for _, write in ends]
    process = _FORKS.Process(target=_run, args=(module, arguments, directory, dict(environment), *theirs), daemon=True)
    process.start()
    for each in theirs:
        each.close()
    return Forked(process, *[await _reader(read) for read, _ in ends])


async def _reader(connection: Connection) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(LINE_BYTES_LIMIT)
    pipe = os.fdopen(os.dup(connection.fileno()), "rb")
    connection.close()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


def _run(
    module: str,
    arguments: tuple[str, ...],
    directory: Path,
    environment: dict[str, str],
    stdout: Connection,
    stderr: Connection,
) -> None:
    """In the process itself."""
    for number, each in ((1, stdout), (2, stderr)):
        os.dup2(each.fileno(), number)
        each.close()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
