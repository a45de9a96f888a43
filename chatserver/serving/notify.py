"""What a service manager is told, where there is one (systemd's ``sd_notify``)."""

import asyncio
import logging
import os
import socket
import sys

logger = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def main_pid(pid: int) -> str:
    """Another process is the service from now on."""
    return f"MAINPID={pid}"


def notify(state: str) -> None:
    """Tell a state. A name that begins with ``@`` is one of Linux' abstract names."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or sys.platform == "win32":
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # A service manager that reads nothing must not hold up the event loop.
            sock.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError as error:
        logger.warning("the service manager was not told %s: %s", state, error)


async def keep_watchdog() -> None:
    """Tell again and again that the event loop turns, twice in the time after which silence counts as a hang."""
    microseconds, pid = (os.environ.get(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
    while microseconds.isdecimal() and pid in ("", str(os.getpid())):
        notify(WATCHDOG)
        await asyncio.sleep(int(microseconds) / 2_000_000)
