"""A service manager as systemd is one: it gives a program its listening socket, and hears what the program tells."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.program import until

WAIT_SECONDS = 60.0

GIVE = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0))
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
print("given", listening.getsockname()[1])
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + int(os.environ.get("ANOTHER", "0")))}
os.execv(sys.executable, [sys.executable, "-m", "chatserver", *sys.argv[1:]])
"""
"""Gives the program of this process a socket; with ``ANOTHER``, in the name of another process."""


class Manager:
    """What is told to ``NOTIFY_SOCKET``; it is read at once, as systemd does."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address}
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        self.told.append(self._socket.recv(4096).decode())

    async def hears(self, begin: str) -> str:
        """Wait for a state that begins so; the rest of it."""

        async def is_told() -> bool:
            return any(state.startswith(begin) for state in self.told)

        await until(is_told)
        return next(state.removeprefix(begin) for state in self.told if state.startswith(begin))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


@contextmanager
def manager(address: str) -> Iterator[Manager]:
    """A service manager that listens at an address, a path or an abstract name."""
    made = Manager(address)
    try:
        yield made
    finally:
        made.close()
