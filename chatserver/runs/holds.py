"""Holds: the runs of this process with calls that wait for an answer, in memory and on disk.

As long as a call waits, all that another process needs to go on with the run is stored, before readers are shown it.
The database is right about the answers: the first one is recorded there, and then its run is told, or finds it with a
look.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf

import anyio
from msgspec import Struct

from chatserver.endings import UNASKED, ending_of
from chatserver.errors import AlreadyAnswered, RunLost, Unavailable
from chatserver.events import ToolCall
from chatserver.runs.held import HeldRun
from chatserver.runs.life import Life
from chatserver.runs.looks import TRY_AGAIN_SECONDS, Looks
from chatserver.runs.places import Place, Places
from chatserver.runs.states import SPEAKING, State
from chatserver.sessions import Progress, Sessions
from chatserver.settings import Settings
from chatserver.waiting import (
    TOO_MANY_QUESTIONS,
    WITHDRAWN,
    Refused,
    Resolution,
    Wait,
    WaitingCall,
    waiting_call,
)

logger = logging.getLogger(__name__)

SAID_SECONDS = 0.1
"""How long what is said while calls wait is gathered before it is stored, where something was stored just before."""


class Holds:
    """All held runs.

    ``on_waiting`` is called with each run that is stored as waiting, ``on_lost`` with each that is lost to another
    process.
    """

    def __init__(self, settings: Settings, sessions: Sessions, places: Places) -> None:
        self.on_waiting: Callable[[Life], None] = lambda _: None
        self.on_lost: Callable[[Life], None] = lambda _: None
        self._settings = settings
        self._sessions = sessions
        self._places = places
        self._held: dict[str, HeldRun] = {}
        self._looks = Looks(self._held, sessions.waits, self._go_on, self._lose)
        # In `none` mode everybody is one user.
        self._limit = inf if settings.auth == "none" else settings.max_waiting_runs_per_user

    def _lose(self, life: Life) -> None:
        self.on_lost(life)

    async def ask(self, life: Life, calls: Sequence[ToolCall], waiting: Sequence[str], asker: str | None) -> None:
        """Tell a run of calls, of which ``waiting`` wait.

        Where any call of the run waits, they are stored when this returns, and then its readers are shown them: whoever
        goes on with the run has to know which calls were made. If they cannot be stored, the run ends; what is raised
        then says why.
        """
        if not waiting and not life.run.calls.held:
            for call in calls:
                life.say(call)
            return
        is_refused = asker is not None and self._questions >= self._settings.max_runs  # Nobody can let go of such runs.
        held = self._held_of(life)
        held.asking += 1
        held.withhold()
        try:
            for call in calls:
                life.say(call)
            for call_id in waiting:
                held.futures[call_id] = asyncio.get_running_loop().create_future()
                if is_refused:
                    held.futures[call_id].set_result(Refused(TOO_MANY_QUESTIONS))
                    continue
                held.calls[call_id] = waiting_call(self._settings.approval_seconds)
                life.run.hold(call_id, asker)
            if not is_refused:
                await self._store_asked(held)
        finally:
            held.asking -= 1
            held.show()
            life.rested()

    @property
    def _questions(self) -> int:
        """How many questions of tools wait."""
        return sum(held.life.run.calls.questions for held in self._held.values())

    async def answer(self, life: Life, call_id: str, is_gone: bool = False) -> Resolution:
        """Wait until a call is answered, which was asked for here or by an earlier process.

        ``is_gone``: it is a question of a tool that has ended with its process, and withdrawn unless it was answered.
        """
        held = self._held_of(life)
        if (future := held.futures.get(call_id)) is None:
            future = held.futures[call_id] = asyncio.get_running_loop().create_future()
            life.run.hold(call_id)
            life.rested()
            self.nudge()  # It may have been answered since.
        try:
            if is_gone and await self._is_taken_back(life, call_id):
                self.nudge()  # The look finds what was recorded first.
            return await future
        finally:
            held.futures.pop(call_id, None)

    def resume(self, life: Life, calls: Mapping[str, WaitingCall]) -> None:
        """The run was taken from the database with these calls that wait."""
        held = self._held_of(life)
        held.withhold()
        held.calls.update(calls)
        held.stored, held.stored_seq, held.is_waiting = frozenset(calls), life.run.writer.last_seq, True

    def _held_of(self, life: Life) -> HeldRun:
        held = self._held.get(life.run_id)
        if held is None:
            held = self._held[life.run_id] = HeldRun(life)
            life.on_rest = held.news.set
            held.keeper = asyncio.create_task(self._keep(held))
        self._looks.begin()
        return held

    def forget(self, life: Life) -> None:
        """The run is over, or not this process's any more."""
        held = self._held.get(life.run_id)
        if held is not None and held.life is life:
            del self._held[life.run_id]
            if held.keeper is not None:
                held.keeper.cancel()

    async def close(self) -> None:
        """Look no more."""
        await self._looks.close()
        keepers = [held.keeper for held in self._held.values() if held.keeper is not None]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    def is_stored(self, life: Life, even_running: bool = False) -> bool:
        """Whether the run waits, and all of it is stored, so that it can be let go of.

        ``even_running``: whether it can be, though something else goes on, which is lost.
        """
        held = self._held.get(life.run_id)
        return held is not None and (held.has_stored_call if even_running else held.is_waiting and held.is_stored)

    def idle(self) -> Life | None:
        """Of the runs that wait and have no readers, the one that has waited longest; None: they are few."""
        if len(self._held) <= self._settings.max_runs:
            return None
        lives = (held.life for held in self._held.values() if held.is_idle)
        return next(lives, None)

    # What is stored.

    async def _keep(self, held: HeldRun) -> None:
        """Store what a continuation needs, whenever that has changed, but not as often as an agent may speak."""
        while True:
            await held.news.wait()
            held.news.clear()
            if held.asking or not held.waiting or held.is_stored:
                continue
            try:
                await self._store(held)
            except Unavailable:  # Logged by the database.
                await anyio.sleep(TRY_AGAIN_SECONDS)
                held.news.set()
            except RunLost:
                return self.on_lost(held.life)
            except Exception:
                logger.exception("run %s waits, and could not be stored", held.life.run_id)
            await anyio.sleep(SAID_SECONDS)

    async def _store_asked(self, held: HeldRun) -> None:
        try:
            await self._store(held)
        except RunLost:
            self.on_lost(held.life)
            raise
        except Exception as error:
            held.life.end(UNASKED if isinstance(error, Unavailable) else ending_of(error))
            raise

    async def store_all(self) -> None:
        """Store now what runs with calls that wait have said, so that they can be let go of."""
        for held in [each for each in self._held.values() if each.waiting and not each.is_stored]:
            with suppress(Unavailable, RunLost):  # As its keeper finds again.
                await self._store(held)

    async def _store(self, held: HeldRun) -> None:
        life = held.life
        await life.settled()
        async with life.checkpoints.order:
            is_waiting = life.run.state is State.WAITING
            calls = {call_id: held.calls[call_id] for call_id in held.waiting}
            if not calls or life.run.state not in SPEAKING:
                return
            progress = Progress(life.run.said(), life.run.writer.stored(), life.run.meter.usage(), life.billed)
            wait = Wait(life.stored_request(), calls)
            resolved = await self._sessions.waits.store(life.run_id, wait, progress, is_waiting, self._limit)
        usage = progress.usage
        life.billed = usage.input_tokens + usage.output_tokens if usage else 0
        held.stored, held.stored_seq = frozenset(calls), progress.log.last_seq
        held.is_waiting = is_waiting and not resolved
        life.run.writer.show(progress.log.last_seq)
        for call_id, resolution in resolved.items():
            await self._go_on(held, call_id, resolution)
        if held.is_waiting and life.run.state is State.WAITING:
            await life.leave_place()
            self.on_waiting(life)
        elif life.run.state is State.RUNNING and life.place is None:  # Its agent has made another call meanwhile.
            life.take(await self._places.retake(life.user))

    # How it goes on.

    async def resolve(
        self, life: Life, call_id: str, resolution: Resolution, place: Place | None = None
    ) -> Place | None:
        """A call has been answered, and that is recorded: go on with it. The place, where the run needs none."""
        place = place or await self._retaken(life)
        held = self._held.get(life.run_id)
        if held is None or not held.waits_for(call_id):
            return place
        held.is_waiting = False
        place = life.go_on(call_id, place)
        held.futures[call_id].set_result(resolution)
        held.show()
        return place

    async def _retaken(self, life: Life) -> Place | None:
        """A place, where the run has none: it may have come to wait since the answer was found to need none."""
        return await self._places.retake(life.user) if life.place is None else None

    async def _go_on(self, held: HeldRun, call_id: str, resolution: Resolution) -> None:
        if place := await self.resolve(held.life, call_id, resolution):
            await place.release()

    async def withdraw(self, life: Life, call_id: str) -> bool:
        """Take a call back that nobody waits for, if it waits, and let the run go on; whether it waited."""
        held = self._held.get(life.run_id)
        if held is None or life.run.state not in SPEAKING or not life.run.calls.is_held(call_id):
            return False
        held.futures.pop(call_id, None)
        async with life.checkpoints.order:  # What is being stored now may have the call.
            if not await self._is_taken_back(life, call_id):
                return False
        held.is_waiting = False
        place = life.go_on(call_id, await self._retaken(life))
        held.show()
        if place is not None:
            await place.release()
        return True

    async def _is_taken_back(self, life: Life, call_id: str) -> bool:
        """Whether the call is stored as answered, by this or by somebody, and the run is still this process's."""
        waits = self._sessions.waits
        while life.run.state in SPEAKING:
            try:
                try:
                    return bool(await waits.answer(life.run_id, call_id, Refused(WITHDRAWN)))
                except AlreadyAnswered:
                    await waits.take(life.run_id, [call_id])
                    return True
            except RunLost:
                return False  # The next look finds that, too.
            except Unavailable:
                await anyio.sleep(TRY_AGAIN_SECONDS)
        return False

    def nudge(self) -> None:
        """Look for answers at once."""
        self._looks.nudge()


class RunHold(Struct, frozen=True):
    """The ``Hold`` of one run."""

    holds: Holds
    life: Life

    async def ask(self, calls: Sequence[ToolCall], waiting: Sequence[str], asker: str | None = None) -> None:
        await self.holds.ask(self.life, calls, waiting, asker)

    async def answer(self, call_id: str, is_gone: bool = False) -> Resolution:
        return await self.holds.answer(self.life, call_id, is_gone)

    async def withdraw(self, call_id: str) -> bool:
        return await self.holds.withdraw(self.life, call_id)
