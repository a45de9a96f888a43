"""The roles of a process: the only server, its successor, the supervisor of workers, a worker."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from chatserver.errors import SettingsError
from chatserver.serving.banner import banner
from chatserver.serving.notify import READY, keep_watchdog, main_pid, notify
from chatserver.serving.processes import Child, Inheritance, Kept, attend, inherited, start
from chatserver.serving.sockets import bind, prepare
from chatserver.serving.supervisor import FAILED_STATUS, Supervisor
from chatserver.settings import Settings
from chatserver.telemetry.workers import shared_metrics, worker_died

if TYPE_CHECKING:
    from chatserver.plugin import Application
    from chatserver.serving.server import Server

logger = logging.getLogger(__name__)

GC_THRESHOLDS = (5_000, 10, 100)
"""With Python's own thresholds and thousands of open streams, a full collection stops all streams for 0.2 s. With these
thresholds, most collections are of the young generation (5,000 objects, 3 ms). Larger ones, of up to 30 ms, come with
every 200 streams or 1,000 connections."""

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread waits for the interpreter at most (Python's own: 5 ms). Under load, such waits are most of the time
of a database transaction."""

OF_SERVICE_MANAGER = ("NOTIFY_SOCKET", "WATCHDOG_USEC")
"""Variables that are for the process of the service, not for its workers."""

LOG_FORMAT = "%(asctime)s %(levelname)s {}%(name)s: %(message)s"


def serve(app: "Application") -> None:
    """Serve an application with the server of `chatserver serve`, until the process is told to stop.

    The application is one of ``create_app``, or one with a ``ChatPlugin``, whose settings say where to listen. Each
    worker and each successor of this process runs the same program anew, up to here.

    Raises:
        SystemExit: it could not be served; the message says why.
    """
    try:
        from chatserver.plugin import apps_in

        settings: Settings = apps_in(app)[0].state.settings
        status = run(settings, inherited(), lambda: app)
    except SettingsError as error:
        sys.exit(f"Error: {error}")
    if status:
        sys.exit(status)


def run(settings: Settings, inheritance: Inheritance, make_app: Callable[[], "Application"]) -> int:
    """Listen and serve, say on standard output that the server serves, and return its exit status when it has ended.

    ``make_app`` makes the application, in the processes that serve it.

    Raises:
        SettingsError: a setting cannot be obeyed.
    """
    settings, inheritance = _listen(settings, inheritance)
    return _in_role(settings, inheritance, make_app, lambda: print(banner(settings), flush=True))  # noqa: T201


def _listen(settings: Settings, inheritance: Inheritance) -> tuple[Settings, Inheritance]:
    """Listen, unless a socket was inherited: the settings with the port, and what this process hands on."""
    sockets = [socket.socket(fileno=fd) for fd in inheritance.sockets]
    for sock in sockets:
        prepare(sock, settings)
    try:
        sockets = sockets or [bind(settings)]
    except OSError as error:
        raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    port = sockets[0].getsockname()[1]
    handed = msgspec.structs.replace(inheritance, sockets=[sock.detach() for sock in sockets])
    return msgspec.structs.replace(settings, port=port), handed


def _in_role(
    settings: Settings, inheritance: Inheritance, make_app: Callable[[], "Application"], say_ready: Callable[[], None]
) -> int:
    """Serve on inherited sockets until the process is told to stop; its exit status."""
    worker = inheritance.worker
    logging.basicConfig(format=LOG_FORMAT.format(f"worker {worker}: " if worker else ""))
    if worker is None and (settings.workers > 1 or inheritance.children):
        return asyncio.run(_supervise(settings, inheritance, say_ready))
    gc.disable()  # Until all is imported: looking for garbage meanwhile is a tenth of the start.
    return _serve(settings, inheritance, make_app(), say_ready)


async def _supervise(settings: Settings, inheritance: Inheritance, say_ready: Callable[[], None]) -> int:
    heir = msgspec.structs.replace(inheritance, children=())

    def start_worker(number: int) -> Child:
        return start(msgspec.structs.replace(heir, worker=number), without=OF_SERVICE_MANAGER)

    def anew(children: Sequence[Kept]) -> Inheritance:
        return msgspec.structs.replace(heir, children=children)

    on_ready = (lambda: None) if inheritance.children else say_ready
    supervisor = Supervisor(settings.workers, settings.drain_seconds, start_worker, on_ready, worker_died, anew)
    supervisor.obey_signals()
    with shared_metrics(has_workers=bool(inheritance.children)):
        return await supervisor.run(inheritance.children)


def _serve(settings: Settings, inheritance: Inheritance, app: "Application", say_ready: Callable[[], None]) -> int:
    # Imported here: a supervisor needs no database, and no web server.
    from chatserver.serving.server import Server
    from chatserver.sessions.arrival import await_database

    try:
        asyncio.run(await_database(settings.database_url))  # Whoever tells this process to stop now ends it at once.
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    role = _Role(inheritance, say_ready)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(fileno=fd)) for fd in inheritance.sockets]
        role.server = server = Server(settings, app, role.on_ready)
        if inheritance.worker is not None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # Its supervisor restarts it.
        server.run(sockets=sockets)
    return 0 if server.started else FAILED_STATUS


class _Role:
    """What a server is among other processes: alone, a worker, or the successor of another server.

    A server that is not a worker starts its successor on SIGHUP, and retires when the successor serves.
    """

    server: "Server"

    def __init__(self, inheritance: Inheritance, say_ready: Callable[[], None]) -> None:
        self._inheritance = inheritance
        self._say_ready = say_ready
        self._tasks: list[asyncio.Task[None]] = []

    def on_ready(self) -> None:
        """The server serves. Whoever is told so may send a signal at once."""
        _tune_interpreter()
        loop = asyncio.get_running_loop()
        line, is_worker = self._inheritance.line, self._inheritance.worker is not None
        self._tasks.append(loop.create_task(keep_watchdog()))
        if not is_worker and hasattr(signal, "SIGHUP") and not os.isatty(0):
            signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._restart))
        if line is not None:
            on_change = self.server.retire if is_worker else lambda: None
            attend(socket.socket(fileno=line), on_change=on_change, on_end=self.server.begin_drain)
        if not is_worker:
            self._say_ready()
        if line is None:
            notify(READY)

    def _restart(self) -> None:
        if len(self._tasks) == 1 and not self.server.is_draining:
            self._tasks.append(asyncio.get_running_loop().create_task(self._hand_over()))

    async def _hand_over(self) -> None:
        logger.warning("restart: a new process is started")
        successor = start(self._inheritance)
        serves = await successor.serves()
        if self.server.is_draining:
            successor.signal(signal.SIGTERM)  # Asked to stop meanwhile. If this process ends first, the line tells it.
        elif serves:
            logger.warning("restart: process %d serves, this one drains", successor.pid)
            notify(main_pid(successor.pid))
            os.environ.pop("NOTIFY_SOCKET", None)  # From now on the successor is the service.
            successor.change()
            self.server.retire()
        else:
            logger.error("restart: the new process has ended before it served, this one goes on")
            del self._tasks[1:]


def _tune_interpreter() -> None:
    """Set Python up for a server. The garbage collector never examines again what was imported until now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
