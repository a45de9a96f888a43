"""The runs of this process: those that go on, and those that are over and kept for a while."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

import anyio

from chatserver.agent import Agent
from chatserver.call_checks import Toolbox
from chatserver.commands import ChatRequest
from chatserver.errors import Unavailable
from chatserver.log import EventLog, EventLogs
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.due import Due
from chatserver.runs.foreseen import Foreseen
from chatserver.runs.holds import Holds
from chatserver.runs.life import Ask, Life
from chatserver.runs.making import Making
from chatserver.runs.orphans import Orphans
from chatserver.runs.places import Place
from chatserver.runs.states import SPEAKING
from chatserver.runs.subscription import Subscription
from chatserver.runs.tasks import spawn
from chatserver.sessions import Begun, Sessions
from chatserver.settings import Settings
from chatserver.telemetry import NOTHING, UNOBSERVED, Observer, RunObserver

SHUTDOWN_SECONDS = 1.2
"""How long a server that ends waits for the last answers to be stored: a part of what ``KILL_SECONDS`` bounds."""


class Lives:
    """The runs of this process, and a task for each that goes on."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        logs: EventLogs,
        agent: Agent,
        toolbox: Toolbox,
        holds: Holds,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self.lives: dict[str, Life] = {}
        self.beginning: dict[str, asyncio.Event] = {}
        """Runs that may be in the database and are not in ``lives`` yet, each with an event that tells when it is."""
        self._settings = settings
        self._sessions = sessions
        self._logs = logs
        self._agent = agent
        self.toolbox = toolbox
        self.holds = holds
        self.is_leaving = False
        holds.on_waiting, holds.on_lost = self._waits, self._let_go
        self._observer = observer
        self._unfinished: dict[str, Life] = {}
        self._checkpoints = Checkpoints(sessions)
        self._making = Making(settings, sessions, logs, toolbox, self._checkpoints, holds, observer, self._park_soon)
        self.due = Due(sessions, settings.approval_seconds, self.revive)
        self._tasks: set[asyncio.Task[None]] = set()
        self._chores: set[asyncio.Task[None]] = set()  # Tasks that are cancelled when the server ends.
        self._orphans = Orphans(sessions, lambda run_id: run_id in self.lives or run_id in self.beginning)

    def open(self) -> None:
        """Start the checkpoints."""
        spawn(self._checkpoints.store_forever(), self._chores)
        spawn(self.due.take_forever(), self._chores)

    async def close(self) -> None:
        """Interrupt what still goes on, and wait until it is stored."""
        with anyio.CancelScope(shield=True):
            while self._tasks:  # Also waits for answers that are being stored, and for a run that has just begun.
                await self._interrupted()
                await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.holds.close()
            for chore in self._chores:
                chore.cancel()
            await asyncio.gather(*self._chores, return_exceptions=True)
        for life in self.lives.values():
            life.stop()

    async def drain(self, seconds: float) -> None:
        """Let running runs end by themselves for so long, also a run that has just begun, then interrupt them.

        Runs that wait are let go of, at once or as soon as they wait.
        """
        self.is_leaving = True
        await self._park_all()
        with anyio.move_on_after(seconds):
            for beginning in list(self.beginning.values()):
                await beginning.wait()
            await self._over()
        await self._interrupted()

    async def _interrupted(self) -> None:
        self.is_leaving = True
        with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
            await self._park_all(even_running=True)
            self.interrupt()
            await self._over()

    async def _over(self) -> None:
        for life in list(self._unfinished.values()):
            await life.over()

    def interrupt(self) -> None:
        """Interrupt all running runs: the server stops, or other processes have taken this one for dead, or will."""
        for life in list(self._unfinished.values()):
            self._interrupt(life)

    async def end_lost(self) -> None:
        """Interrupt the runs that another process has ended, since it took this one for dead; all others go on."""
        running = list(self._unfinished.values())  # Asked for before: a run that begins meanwhile is not lost.
        left = set(await self._sessions.unfinished())
        for life in running:
            if life.run_id not in left:
                self._interrupt(life)

    def _interrupt(self, life: Life) -> None:
        """End the run; one with calls that wait goes on waiting in the database, whatever process has it then."""
        if not self.holds.is_stored(life, even_running=True):
            life.interrupt()
        elif self.is_leaving:
            self._let_go(life)
        else:  # Stored as this process's, it would be out of everybody's reach, also with an answer.
            spawn(self._park(life, even_running=True), self._chores)

    def cancel(self, run_id: str) -> None:
        """End the run as cancelled, if it is one of this process; one that is about to begin, as soon as it has."""
        spawn(self._cancel(run_id), self._chores)

    async def _cancel(self, run_id: str) -> None:
        if beginning := self.beginning.get(run_id):
            await beginning.wait()
        if life := self.lives.get(run_id):
            life.cancel()

    def life(self, run_id: str) -> Life | None:
        """The run, if it is one of this process."""
        return self.lives.get(run_id)

    def lose(self, run_id: str) -> None:
        """Stop the run, if it is one of this process: another process has taken it over."""
        if life := self.lives.get(run_id):
            self._interrupt(life)

    def of_session(self, user: str, session_id: str) -> list[Life]:
        """The runs of a user's session, also those that are over."""
        wanted = user, session_id
        return [life for life in self.lives.values() if (life.user, life.run.resource.session_id) == wanted]

    async def foresee(
        self, user: str, request: ChatRequest, place: Place, run_id: str, carrier: Mapping[str, str] = NOTHING
    ) -> Foreseen:
        """A run that is about to begin in the store; it is brought to life with ``begin``, or given up with ``refuse``.

        From the return of ``begin`` on it has the place, and gives it back at its end.
        """
        observer = self._observer.run(run_id, request.model or self._settings.model, carrier)
        return Foreseen(partial(self._made, user, request, place, observer), await self._logs.create(run_id))

    async def begin(self, foreseen: Foreseen, begun: Begun) -> Subscription:
        """The run is on disk: its first reader, so far nobody has left it."""
        life = foreseen.life_of(begun)
        if life is None:  # Nobody was asked yet, or what was begun first was undone.
            foreseen.leave()
            life, _ = foreseen.make(begun, await self._logs.create(begun.run.run_id))
        self.lives[life.run_id] = self._unfinished[life.run_id] = life
        self._checkpoints.add(life.run)
        life.settle()
        return Subscription(life.log, 0, life.count)

    def refuse(self, foreseen: Foreseen) -> None:
        """There is no such run, or it is another one: whoever was asked for it is left at once."""
        foreseen.leave()
        self._logs.forget(foreseen.log.run_id)

    def _made(
        self, user: str, request: ChatRequest, place: Place, observer: RunObserver, begun: Begun, log: EventLog
    ) -> tuple[Life, Callable[[], object]]:
        """A run in its life, which asks the model at once; nobody knows of it yet."""
        life, ask = self._making.begun(user, request, begun, log, place, observer)
        return life, spawn(self._live(life, ask), self._tasks)

    async def _live(self, life: Life, ask: Ask) -> None:
        try:
            is_stored = await life.live(self._agent, ask)
        finally:
            self.holds.forget(life)
            if life.is_settled:
                if self._unfinished.get(life.run_id) is life:  # Otherwise it was let go of, and may be here again.
                    del self._unfinished[life.run_id]
                    self._checkpoints.remove(life.run_id)
                await life.leave_place()
            else:  # There is no such run; one that was begun anew has its id and its place.
                life.run.meter.void()
        if is_stored:
            self._keep(life)
        elif is_stored is not None:
            spawn(self._store_late(life), self._chores)

    async def _store_late(self, life: Life) -> None:
        await life.store_late()
        self._keep(life)

    def _keep(self, life: Life) -> None:
        life.keep(self._settings.retention_seconds, partial(self.forget, life.run_id))
        if life.run_id in self.lives:  # Otherwise its session was deleted meanwhile.
            self._logs.retain(life.run_id, self.forget)

    def forget(self, run_id: str) -> None:
        """Forget the run: from now on it is read from the database."""
        if life := self.lives.pop(run_id, None):
            life.forget()
        self._logs.forget(run_id)

    # Runs that wait.

    def nudge(self, run_id: str) -> None:
        """A call of the run, if that is here, was answered at another process."""
        self.holds.nudge()

    async def revive(self, run_id: str) -> bool:
        """Take a run that waits and that no process has; False: another process was first, or it waits no more.

        Also False: this process leaves.
        """
        if self.is_leaving:
            return False
        if taking := self.beginning.get(run_id):
            await taking.wait()
            return run_id in self.lives
        self.beginning[run_id] = beginning = asyncio.Event()
        try:
            parked = await self._sessions.waits.claim(run_id)
            if parked is None:
                return False
            life, ask = self._making.taken(parked, await self._logs.revive(run_id, parked.log))
            self.lives[run_id] = self._unfinished[run_id] = life
            life.settle()
            life.count(0)
            spawn(self._live(life, ask), self._tasks)
        except BaseException:
            self.sweep()
            raise
        finally:
            del self.beginning[run_id]
            beginning.set()
        return True

    def _waits(self, life: Life) -> None:
        """A run is stored as waiting: it need not stay in memory."""
        idle = life if self.is_leaving else self.holds.idle()
        if idle is not None:
            self._park_soon(idle)

    def _park_soon(self, life: Life) -> None:
        spawn(self._park(life), self._chores)

    async def _park_all(self, even_running: bool = False) -> None:
        await self.holds.store_all()
        waiting = [life for life in self._unfinished.values() if self.holds.is_stored(life, even_running)]
        await asyncio.gather(*[self._park(life, even_running) for life in waiting])

    async def _park(self, life: Life, even_running: bool = False) -> None:
        """Let go of a run that waits and does nothing else, or all the same."""
        run_id = life.run_id
        is_stored = self.holds.is_stored(life, even_running)
        if self.lives.get(run_id) is not life or run_id in self.beginning or not is_stored:
            return
        self.beginning[run_id] = parking = asyncio.Event()  # Whoever looks for the run now finds it afterwards.
        try:
            if await self._sessions.waits.park(run_id, even_running):
                self._let_go(life)
            else:
                self.holds.nudge()
        except Unavailable:
            """It is tried again, or its owner is found to be dead."""
        finally:
            del self.beginning[run_id]
            parking.set()

    def _let_go(self, life: Life) -> None:
        """The run is nobody's, or another process's: forget it; its readers come back."""
        if life.run.state not in SPEAKING or not life.run.calls.held:
            return life.interrupt()
        life.let_go()
        self.holds.forget(life)
        self.lives.pop(life.run_id, None)
        self._unfinished.pop(life.run_id, None)
        self._checkpoints.remove(life.run_id)
        self._logs.forget(life.run_id)
        life.log.close()

    def sweep(self) -> None:
        """End the runs that have begun in the store, and that nobody goes on with."""
        spawn(self._orphans.sweep(), self._chores)
