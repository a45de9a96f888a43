"""Processes of this program that hand their listening sockets on.

A process starts another by its own command line, so the other has the code and the settings of that moment. The child
inherits the listening sockets and one end of a line, a pair of connected sockets. Over the line a child says that it
serves, and its parent that the roles have changed: another process has taken a worker's place, or a successor is the
server now. The end of the line is the end of the process behind it.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
from msgspec import Struct

from chatserver.serving.sockets import given

VARIABLE = "CHATSERVER_INHERITED"
SERVES, CHANGED = b"s", b"c"
START_SECONDS = 60.0
"""How long a process may take until it serves."""


class Kept(NamedTuple):
    """A child of a process that runs a new program in its place (``exec``)."""

    pid: int
    line: int
    worker: int
    """0: it has been replaced, and is about to end."""


class Inheritance(Struct, frozen=True):
    """What a process finds when it starts. Sockets are file descriptors."""

    sockets: Sequence[int] = ()
    line: int | None = None
    """To the process that started this one; it is open until that process ends."""

    worker: int | None = None
    """The number of this worker; None: this process was not started by a supervisor."""

    children: Sequence[Kept] = ()


def inherited() -> Inheritance:
    """What this process inherits, taken out of the environment: programs that it starts get nothing of it."""
    text = os.environ.pop(VARIABLE, None)
    found = msgspec.json.decode(text, type=Inheritance) if text else Inheritance(sockets=given())
    line = [] if found.line is None else [found.line]
    for fd in (*found.sockets, *line, *(child.line for child in found.children)):
        os.set_inheritable(fd, False)
    return found


class Child:
    """Another process of this program, from its start to its end. Both futures are there to be waited for."""

    def __init__(self, pid: int, line: socket.socket, *, serves: bool = False) -> None:
        self.pid = pid
        self.line = line
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[bool] = loop.create_future()
        """Whether it serves; False: it has ended before it could."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its exit status; of a signal, the negative number."""
        if serves:
            self.begun.set_result(True)
        line.setblocking(False)
        loop.add_reader(line, self._read)

    def _read(self) -> None:
        try:
            said = self.line.recv(64)
        except OSError:
            said = b""
        if not self.begun.done():
            self.begun.set_result(bool(said))
        if not said:
            asyncio.get_running_loop().remove_reader(self.line)
            self.line.close()
            self.ended.set_result(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))

    async def serves(self) -> bool:
        """Whether it serves, as soon as that is known; it is ended if that takes too long."""
        await asyncio.wait([self.begun], timeout=START_SECONDS)
        if not self.begun.done():
            self.signal(signal.SIGKILL)
        return await self.begun

    def change(self) -> None:
        """Tell it that the roles have changed."""
        with suppress(OSError):
            self.line.send(CHANGED)

    def signal(self, number: signal.Signals) -> None:
        if not self.ended.done():
            os.kill(self.pid, number)


def start(inheritance: Inheritance, *, without: Iterable[str] = ()) -> Child:
    """Start this program once more; ``without`` are variables of the environment that it does not get."""
    line, theirs = socket.socketpair()
    with theirs:
        heir = msgspec.structs.replace(inheritance, line=theirs.fileno())
        environment = _environment(heir, {*without, "WATCHDOG_PID"})
        command = own_command()
        for fd in (*heir.sockets, theirs.fileno()):
            os.set_inheritable(fd, True)
        try:
            # A process group of its own: Ctrl-C is for the process that the operator has started.
            pid = os.posix_spawn(command[0], command, environment, setpgroup=0, setsigmask=())
        finally:
            for fd in heir.sockets:
                os.set_inheritable(fd, False)
    return Child(pid, line)


def own_command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def run_anew(inheritance: Inheritance) -> None:
    """Run the program that is installed now in place of this one; the process and its children stay.

    Raises:
        OSError: it cannot be run.
    """
    for fd in (*inheritance.sockets, *(child.line for child in inheritance.children)):
        os.set_inheritable(fd, True)
    command = own_command()
    os.execve(command[0], command, _environment(inheritance, ()))  # noqa: S606 - the command is our own


def _environment(inheritance: Inheritance, without: Iterable[str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return kept | {VARIABLE: msgspec.json.encode(inheritance).decode()}


def attend(line: socket.socket, *, on_change: Callable[[], None], on_end: Callable[[], None]) -> None:
    """As a child: say that this process serves, and hear once from its parent: a change of roles, or its end.

    The line stays open as long as this process lives: to the parent, its end is the end of this process.
    """
    loop = asyncio.get_running_loop()
    has_changed = False

    def read() -> None:
        nonlocal has_changed
        try:
            said = line.recv(64)
        except OSError:
            said = b""
        if not said:
            loop.remove_reader(line)
            if not has_changed:
                on_end()
        elif not has_changed:
            has_changed = True
            on_change()

    line.setblocking(False)
    with suppress(OSError):
        line.send(SERVES)
    loop.add_reader(line, read)
