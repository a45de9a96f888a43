"""The runs of this process: those that go on, and those that are over and kept for a while."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from time import monotonic

import anyio

from chatserver.agent import Agent
from chatserver.calls import Toolbox
from chatserver.commands import ChatRequest
from chatserver.dialogue import BYTES_PER_TOKEN, PastMessage, dialogue
from chatserver.events import PROTOCOL_VERSION, Start
from chatserver.log import EventLog, EventLogs
from chatserver.providers import ModelRequest
from chatserver.runs.checkpoints import Checkpoints
from chatserver.runs.life import Ask, Life
from chatserver.runs.orphans import Orphans
from chatserver.runs.places import Place
from chatserver.runs.run import Run
from chatserver.runs.subscription import Subscription
from chatserver.sessions import Begun, Sessions
from chatserver.settings import Settings
from chatserver.telemetry import NOTHING, UNOBSERVED, Observer, RunObserver

SHUTDOWN_SECONDS = 2.0
"""How long a server that ends waits for the last answers to be stored."""


class Lives:
    """The runs of this process, and a task for each that goes on."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        logs: EventLogs,
        agent: Agent,
        toolbox: Toolbox,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self.lives: dict[str, Life] = {}
        self.beginning: dict[str, anyio.Event] = {}
        """Runs that may be in the database and are not in ``lives`` yet, each with an event that tells when it is."""
        self._settings = settings
        self._sessions = sessions
        self._logs = logs
        self._agent = agent
        self._toolbox = toolbox
        self._observer = observer
        self._unfinished: dict[str, Life] = {}
        self._checkpoints = Checkpoints(sessions)
        self._tasks: set[asyncio.Task[None]] = set()
        self._chores: set[asyncio.Task[None]] = set()  # Tasks that are cancelled when the server ends.
        self._orphans = Orphans(sessions, lambda run_id: run_id in self.lives or run_id in self.beginning)

    def open(self) -> None:
        """Start the checkpoints."""
        _spawn(self._checkpoints.store_forever(), self._chores)

    async def close(self) -> None:
        """Interrupt what still goes on, and wait until it is stored."""
        with anyio.CancelScope(shield=True):
            while self._tasks:  # Also waits for answers that are being stored, and for a run that has just begun.
                await self._interrupted()
                await asyncio.gather(*self._tasks, return_exceptions=True)
            for chore in self._chores:
                chore.cancel()
            await asyncio.gather(*self._chores, return_exceptions=True)
        for life in self.lives.values():
            life.stop()

    async def drain(self, seconds: float) -> None:
        """Let running runs end by themselves for so long, also a run that has just begun, then interrupt them."""
        with anyio.move_on_after(seconds):
            for beginning in list(self.beginning.values()):
                await beginning.wait()
            await self._over()
        await self._interrupted()

    async def _interrupted(self) -> None:
        with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
            self.interrupt()
            await self._over()

    async def _over(self) -> None:
        for life in list(self._unfinished.values()):
            await life.over()

    def interrupt(self) -> None:
        """Interrupt all running runs: the server stops, or another process has taken this one for dead."""
        for life in list(self._unfinished.values()):
            life.interrupt()

    def cancel(self, run_id: str) -> None:
        """End the run as cancelled, if it is one of this process; one that is about to begin, as soon as it has."""
        _spawn(self._cancel(run_id), self._chores)

    async def _cancel(self, run_id: str) -> None:
        if beginning := self.beginning.get(run_id):
            await beginning.wait()
        if life := self.lives.get(run_id):
            life.cancel()

    def count(self, run_id: str, readers: int) -> bool:
        """Add readers at other processes, or remove them (negative); whether the run is one of this process."""
        if life := self.lives.get(run_id):
            life.count(readers)
        return life is not None

    def lose(self, run_id: str) -> None:
        """Stop the run, if it is one of this process: another process has taken it over."""
        if life := self.lives.get(run_id):
            life.interrupt()

    def of_session(self, user: str, session_id: str) -> list[Life]:
        """The runs of a user's session, also those that are over."""
        wanted = user, session_id
        return [life for life in self.lives.values() if (life.user, life.run.resource.session_id) == wanted]

    async def foresee(
        self, user: str, request: ChatRequest, place: Place, run_id: str, carrier: Mapping[str, str] = NOTHING
    ) -> "Foreseen":
        """A run that is about to begin in the store; it is brought to life with ``begin``, or given up with ``refuse``.

        From the return of ``begin`` on it has the place, and gives it back at its end.
        """
        observer = self._observer.run(run_id, request.model or self._settings.model, carrier)
        return Foreseen(partial(self._made, user, request, place, observer), await self._logs.create(run_id))

    async def begin(self, foreseen: "Foreseen", begun: Begun) -> Subscription:
        """The run is on disk: its first reader, so far nobody has left it."""
        life = foreseen.life_of(begun)
        if life is None:  # Nobody was asked yet, or what was begun first was undone.
            foreseen.leave()
            life, _ = foreseen.make(begun, await self._logs.create(begun.run.run_id))
        self.lives[life.run_id] = self._unfinished[life.run_id] = life
        self._checkpoints.add(life.run)
        life.settle()
        return Subscription(life.log, 0, life.count)

    def refuse(self, foreseen: "Foreseen") -> None:
        """There is no such run, or it is another one: whoever was asked for it is left at once."""
        foreseen.leave()
        self._logs.forget(foreseen.log.run_id)

    def _made(
        self, user: str, request: ChatRequest, place: Place, observer: RunObserver, begun: Begun, log: EventLog
    ) -> tuple[Life, Callable[[], object]]:
        """A run in its life, which asks the model at once; nobody knows of it yet."""
        settings = self._settings
        log.append(
            Start(
                session_id=begun.run.session_id,
                message_id=begun.run.message_id,
                user_message_id=begun.user_message_id,
                model=request.model or settings.model,
                protocol=PROTOCOL_VERSION,
                heartbeat_ms=round(settings.heartbeat_seconds * 1000),
            )
        )
        grace_seconds = settings.grace_seconds if request.on_disconnect == "cancel" else None
        run = Run(begun.run, log, place.meter(), grace_seconds, monotonic(), observer)
        life = Life(user, run, self._sessions, self._checkpoints, self._toolbox)
        life.on_lost = partial(self._logs.lose, life.run_id)
        return life, _spawn(self._live(life, partial(self._asked, begun, request, life), place), self._tasks)

    async def _asked(self, begun: Begun, request: ChatRequest, life: Life) -> ModelRequest:
        tokens_limit, messages = self._settings.max_context_tokens, list[PastMessage]()
        if begun.follows is not None:
            context = partial(self._sessions.context, begun.follows, BYTES_PER_TOKEN * tokens_limit)
            messages += await context()
            if messages and messages[-1].is_growing:  # It has ended in the very commit that this run waits for.
                await life.settled()
                messages = await context()
        if begun.message is not None:
            messages.append(begun.message)
        return ModelRequest(
            model=request.model or self._settings.model,
            messages=dialogue(messages, request.system, tokens_limit),
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
            run_id=begun.run.run_id,
            observer=life.run.observer,
        )

    async def _live(self, life: Life, ask: Ask, place: Place) -> None:
        try:
            is_stored = await life.live(self._agent, ask)
        finally:
            if life.is_settled:
                self._unfinished.pop(life.run_id, None)
                self._checkpoints.remove(life.run_id)
                await place.release()
            else:  # There is no such run; one that was begun anew has its id and its place.
                life.run.meter.void()
        if is_stored:
            self._keep(life)
        else:
            _spawn(self._store_late(life), self._chores)

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

    def sweep(self) -> None:
        """End the runs that have begun in the store, and that nobody goes on with."""
        _spawn(self._orphans.sweep(), self._chores)


class Foreseen:
    """A run that is about to begin in the store: its model is asked while the disk commits.

    Nobody else knows of it before it is on disk, and it does nothing but ask: its tools, and its end, wait for that.
    """

    def __init__(self, make: Callable[[Begun, EventLog], tuple[Life, Callable[[], object]]], log: EventLog) -> None:
        self.make = make
        self.log = log
        self._begun: Begun | None = None
        self._life: Life | None = None
        self._cancel: Callable[[], object] | None = None
        self._is_left = False

    def ask(self, begun: Begun) -> None:
        """Nothing but the disk can refuse the run. Again: the store has begun it anew, and what was asked is void."""
        if self._begun is None and not self._is_left:
            self._begun = begun
            self._life, self._cancel = self.make(begun, self.log)

    def life_of(self, begun: Begun) -> Life | None:
        """The run in its life, if it is this one."""
        return self._life if self._begun is begun else None

    def leave(self) -> None:
        """Whoever was asked is not needed."""
        self._is_left = True
        if self._cancel is not None:
            self._cancel()


def _spawn(life: Coroutine[None, None, None], among: set[asyncio.Task[None]]) -> Callable[[], object]:
    """Begin a task; what cancels it."""
    # Not in a task group of anyio: its scope, handle and event take 2 KB of each run.
    task = asyncio.create_task(life)
    among.add(task)
    task.add_done_callback(among.discard)
    return task.cancel
