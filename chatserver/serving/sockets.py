"""Listening sockets: bound here, or given by a service manager (systemd's socket activation)."""

import os
import socket

from chatserver.errors import SettingsError
from chatserver.serving import lost_peers
from chatserver.settings import Settings

BACKLOG = 2048
FIRST_GIVEN_FD = 3
"""Where a service manager puts the first socket; the others follow."""


def bind(settings: Settings) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named, or asyncio would not switch Nagle's algorithm off: 40 ms for the second frame of an answer.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
        sock.listen(BACKLOG)
        prepare(sock, settings)
    except OSError:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket, settings: Settings) -> None:
    """Set what connections inherit from their listening socket, whoever has made it.

    Raises:
        SettingsError: this is no listening socket of TCP.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise SettingsError("LISTEN_FDS: a socket is not a listening socket of TCP")
    lost_peers.watch(sock, settings.send_timeout_seconds)
    sock.setblocking(False)


def given() -> list[int]:
    """The file descriptors that a service manager has given to this very process; they are taken once."""
    count, pid = (os.environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return list(range(FIRST_GIVEN_FD, FIRST_GIVEN_FD + int(count)))
