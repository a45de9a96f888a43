"""The parent of several workers: one listening socket, one drain, a worker in the place of each that dies.

A rolling restart (SIGHUP) starts a new worker for each number, and tells the old one when the new one serves: so there
is no moment in which nobody accepts connections. At its end the supervisor runs the program that is installed now in
its own place, and keeps its process, its sockets and its workers.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

from chatserver.serving.notify import READY, STOPPING, keep_watchdog, notify
from chatserver.serving.processes import Child, Inheritance, Kept, run_anew

logger = logging.getLogger(__name__)

STEADY_SECONDS = 10.0
"""A worker that has served for so long is replaced at once when it dies; one that dies early, after a pause."""

KILL_SECONDS = 2.8
"""How long workers may take to end after the time of the drain: to store the last answers (``SHUTDOWN_SECONDS``), to
send what readers still lack (``FLUSH_SECONDS``), to answer those whom they have just accepted (``ACCEPTED_SECONDS``),
and to leave Redis and the database."""

FAILED_STATUS = 3
"""The exit status of a server that could not start, with one process or with several."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def pauses() -> Iterator[float]:
    """Seconds before each further start of a worker that fails again and again."""
    return chain((0.0,), (0.5 * 2**attempt for attempt in range(6)), repeat(30.0))


class Supervisor:
    """Workers by their number, from 1 to ``count``.

    ``start`` starts one. ``on_ready`` is called once, when all of them serve, ``on_end`` with the process id of each
    one that has ended. ``anew`` says what a new program in place of this one inherits; without it this program stays.
    """

    def __init__(
        self,
        count: int,
        drain_seconds: float,
        start: Callable[[int], Child],
        on_ready: Callable[[], None],
        on_end: Callable[[int], None],
        anew: Callable[[Sequence[Kept]], Inheritance] | None = None,
    ) -> None:
        self._count = count
        self._drain_seconds = drain_seconds
        self._start_worker = start
        self._on_ready = on_ready
        self._on_end = on_end
        self._anew = anew
        self._children: set[Child] = set()
        self.workers: dict[int, Child] = {}
        """Those that serve. A child that is not among them is about to, or has been replaced."""
        self._pauses = {number: pauses() for number in range(1, count + 1)}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ready = self._is_stopping = self._is_restarting = self._is_asked_again = False
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self, kept: Sequence[Kept] = ()) -> int:
        """Serve until all workers have ended; the exit status. ``kept`` are children of the program before this one."""
        for pid, line, number in kept:
            child = Child(pid, socket.socket(fileno=line), serves=True)
            self._children.add(child)
            if number in self._pauses:
                self.workers[number] = child
            elif number:  # There are to be fewer workers now.
                child.change()
            self._do(self._watch(number, child))
        for number in self._pauses.keys() - self.workers.keys():
            self._do(self._fill(number))
        self._tell_ready()
        self._do(keep_watchdog())
        status = await self._status
        for task in self._tasks:
            task.cancel()
        return status

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # starting

    async def _fill(self, number: int) -> None:
        """Start a worker, and again after a pause that grows, until it serves."""
        for pause in self._pauses[number]:
            await asyncio.sleep(pause)
            if self._is_stopping or await self._start(number):
                return
            if not self._children:
                logger.error("no worker is left, and none can be started: giving up")
                return self._end(FAILED_STATUS)

    async def _start(self, number: int) -> bool:
        """Start a worker in the place of the one that has this number now, if any; whether it serves."""
        child = self._start_worker(number)
        self._children.add(child)
        if not await child.serves():
            status = await child.ended
            self._forget(child)
            if not self._is_stopping:
                logger.error("worker %d has ended before it served: %s", number, _words(status))
            return False
        old = self.workers.get(number)
        self.workers[number] = child
        self._do(self._watch(number, child))
        if old is not None:
            old.change()
        self._tell_ready()
        return True

    def _tell_ready(self) -> None:
        if not self._is_ready and len(self.workers) == self._count:
            self._is_ready = True
            self._on_ready()
            notify(READY)

    async def _watch(self, number: int, child: Child) -> None:
        """Wait for the end of a worker, and start another, unless that has happened before."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        status = await child.ended
        self._forget(child)
        if self.workers.get(number) is not child:
            return
        del self.workers[number]
        if self._is_stopping:
            return
        logger.error("worker %d has died: %s; another is started", number, _words(status))
        if loop.time() - began >= STEADY_SECONDS:
            self._pauses[number] = pauses()
        self._do(self._fill(number))

    def _forget(self, child: Child) -> None:
        self._children.discard(child)
        self._on_end(child.pid)
        if self._is_stopping and not self._children:
            self._end(0)

    def _end(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)

    # restarting

    def restart(self) -> None:
        """Replace all workers, one after the other; asked for during a restart, once more behind it."""
        if self._is_restarting:
            self._is_asked_again = True
        elif not self._is_stopping:
            self._is_restarting = True
            self._do(self._restart())

    async def _restart(self) -> None:
        logger.warning("restart: each worker is replaced when a new one serves")
        for number in self._pauses:
            if self._is_stopping:
                return
            if not await self._start(number):
                logger.error("the restart has ended at worker %d: the workers that serve go on", number)
                break
        else:
            logger.warning("restart: all workers are new")
            self._run_anew()
        self._is_restarting = False
        if self._is_asked_again:
            self._is_asked_again = False
            self.restart()

    def _run_anew(self) -> None:
        if self._anew is None or self._is_asked_again or self._is_stopping:
            return
        numbers = {child: number for number, child in self.workers.items()}
        for child in self._children - numbers.keys():
            if not child.begun.done():
                child.signal(signal.SIGTERM)  # The new program starts it again.
        kept = [Kept(child.pid, child.line.fileno(), numbers.get(child, 0)) for child in self._children]
        # A signal that comes meanwhile waits for the new program.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            run_anew(self._anew(kept))
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            logger.error("the supervisor stays the program it is: %s", error)

    # stopping

    def stop(self) -> None:
        """Let all workers drain. Those that take too long are killed."""
        self._is_stopping = True
        notify(STOPPING)
        for child in self._children:
            child.signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(self._drain_seconds + KILL_SECONDS, self.kill)
        if not self._children:
            self._end(0)

    def kill(self) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)

    def obey_signals(self) -> None:
        """SIGTERM and SIGINT drain, a second one ends all at once; SIGHUP restarts, unless a terminal may send it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        if not os.isatty(0):
            loop.add_signal_handler(signal.SIGHUP, self.restart)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _on_stop(self, number: int) -> None:
        if self._is_stopping:
            self.kill()
            os._exit(128 + number)
        self.stop()


def _words(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
