"""Lost peers: a machine that was switched off, a phone in a tunnel, a cable that was pulled.

The kernel probes silent peers. It also knows for how long a peer has acknowledged nothing of what was sent, but by
itself it would retransmit for a quarter of an hour. A peer that merely reads slowly does acknowledge.
"""

import asyncio
import os
import socket
import struct
import sys
from asyncio import Transport
from collections.abc import Iterator
from itertools import islice
from typing import Any

from chatserver.telemetry import DropReason

if sys.platform == "linux":
    import fcntl
    import termios

LOOK_SECONDS = 5.0
LOST_SECONDS = 15.0
"""How long a peer may acknowledge nothing while the kernel retransmits."""

LOST_RETRANSMITS = 3
AT_A_TIME = 500
"""How many connections are looked at in one turn of the event loop."""

_TCP_INFO = struct.Struct("=BxB5x13I")  # From tcpi_state to tcpi_last_ack_recv, in milliseconds; see linux/tcp.h.
_CLOSED = 7  # TCP_CLOSE: it was reset.
_BYTES_ACKED = struct.Struct("=120xQ")  # tcpi_bytes_acked, behind what ``_TCP_INFO`` reads.


def watch(listening: socket.socket, send_timeout_seconds: float) -> None:
    """Set the options that accepted sockets inherit: keepalive probes, and a timeout of unacknowledged bytes."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stuck_ms = max(1000, round(send_timeout_seconds * 1000))
    options = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": stuck_ms}
    for name, value in options.items():
        if option := getattr(socket, name, None):  # Each system has some of them.
            listening.setsockopt(socket.IPPROTO_TCP, option, value)


class Peers(set[Any]):
    """The open connections (protocols). While there are any, those of lost peers are cut every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._is_checking = False

    def add(self, connection: Any) -> None:
        super().add(connection)
        if not self._is_checking:
            self._is_checking = True
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self.check)

    def check(self) -> None:
        """Cut off lost peers, a part of the connections in each turn of the event loop; and look again later."""
        self._check_on(iter(list(self)))

    def _check_on(self, left: Iterator[Any]) -> None:
        loop, some = asyncio.get_running_loop(), list(islice(left, AT_A_TIME))
        for connection in some:
            if is_lost(connection.transport):
                connection.lose()
            else:
                connection.check_peer()
        if some:
            loop.call_soon(self._check_on, left)
        elif self:
            loop.call_later(LOOK_SECONDS, self.check)
        else:
            self._is_checking = False


def is_lost(transport: Transport) -> bool:
    """Whether the peer has reset the connection, or has not acknowledged anything for too long."""
    state, retransmits, silent_ms = _looked_at(transport)
    return state == _CLOSED or (retransmits >= LOST_RETRANSMITS and silent_ms >= LOST_SECONDS * 1000)


def error_of(transport: Transport) -> Exception:
    """With which error the kernel has ended this connection; a timeout, where it still tries to reach the peer."""
    pending = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return OSError(pending, os.strerror(pending)) if pending else TimeoutError()


def reason_of(transport: Transport, error: Exception | None) -> DropReason | None:
    """Why the kernel has ended a connection with this error; None: not the kernel has ended it, or the peer has."""
    if not isinstance(error, TimeoutError):
        return None
    _, retransmits, _ = _looked_at(transport)
    acknowledged, sent = progress(transport)
    # A kernel that answers, and takes nothing, is sent probes; what is retransmitted, or a keepalive, had no answer.
    return "send_timeout" if acknowledged < sent and not retransmits else "lost"


def _looked_at(transport: Transport) -> tuple[int, int, int]:
    """The connection's state, the retransmits that no answer has come to, and the milliseconds since the last answer.

    All are 0 where this system does not tell them.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(socket, "TCP_INFO"):
        return 0, 0, 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        state, retransmits, *numbers = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return 0, 0, 0
    return state, retransmits, numbers[-1]


def progress(transport: Transport) -> tuple[int, int]:
    """How many bytes the peer's kernel has acknowledged so far, of how many; (0, 0): this system tells neither."""
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform != "linux":
        return 0, 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        (acknowledged,) = _BYTES_ACKED.unpack(info)
        unacknowledged = int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, struct.error):
        return 0, 0
    return acknowledged, acknowledged + unacknowledged + transport.get_write_buffer_size()
