"""Holds: the runs of this process with calls that wait for an answer, in memory and on disk.

As soon as a call waits, all that another process needs to go on with the run is stored. The database is right about
the answers: the first one is recorded there, and then its run is told, or finds it with a look.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf

import anyio

from chatserver.errors import AlreadyAnswered, RunLost, TooMany, Unavailable
from chatserver.events import ToolCall
from chatserver.runs.held import HeldRun
from chatserver.runs.life import Life
from chatserver.runs.places import Place, Places
from chatserver.runs.states import SPEAKING, State
from chatserver.sessions import Progress, Sessions
from chatserver.settings import Settings
from chatserver.waiting import (
    GONE,
    TOO_MANY_QUESTIONS,
    UNANSWERED,
    WITHDRAWN,
    Refused,
    Resolution,
    Wait,
    WaitingCall,
    seconds_until,
    waiting_call,
)

logger = logging.getLogger(__name__)

ANSWERS_LOOK_SECONDS = 3.0
"""How often the answers that other processes have recorded are looked for: their message may be lost."""

SAID_SECONDS = 0.1
"""How long what an agent says while its calls wait is gathered before it is stored."""

TRY_AGAIN_SECONDS = 1.0
"""Between tries to store what waits, while the database cannot be used."""


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
        self._looker: asyncio.Task[None] | None = None
        self._call = asyncio.Event()
        self._questions = 0
        # In `none` mode everybody is one user.
        self._limit = inf if settings.auth == "none" else settings.max_waiting_runs_per_user

    async def hold(self, life: Life, call: ToolCall, asker: str | None = None) -> Resolution:
        """Wait until a call of a run is answered; ``asker``: the call whose tool asks this.

        The question of a run that goes on is withdrawn when this is cancelled, and at once where the asker is ``GONE``:
        nobody can answer it any more.
        """
        is_question = bool(asker)
        if is_question and self._questions >= self._settings.max_runs:  # Such runs cannot be let go of.
            return Refused(TOO_MANY_QUESTIONS)
        self._questions += is_question
        held = self._held_of(life)
        if call.call_id not in held.calls:
            held.calls[call.call_id] = waiting_call(self._settings.approval_seconds)
        future: asyncio.Future[Resolution] = asyncio.get_running_loop().create_future()
        held.futures[call.call_id] = future
        if call.call_id in held.stored:  # By an earlier process, and answered since.
            self.nudge()
        try:
            life.run.hold(call.call_id, asker or None)
            life.rested()
            if asker == GONE and await self._is_taken_back(life, call.call_id):
                self.nudge()  # The look finds what was recorded first.
            return await future
        except asyncio.CancelledError:
            held.futures.pop(call.call_id, None)
            if is_question and life.run.state in SPEAKING:
                await self._withdraw(held, call.call_id)
            raise
        finally:
            held.futures.pop(call.call_id, None)
            self._questions -= is_question

    def resume(self, life: Life, calls: Mapping[str, WaitingCall]) -> None:
        """The run was taken from the database with these calls that wait."""
        held = self._held_of(life)
        held.calls.update(calls)
        held.stored, held.stored_seq, held.is_waiting = frozenset(calls), life.log.last_seq, True

    def _held_of(self, life: Life) -> HeldRun:
        held = self._held.get(life.run_id)
        if held is None:
            held = self._held[life.run_id] = HeldRun(life)
            life.on_rest = held.news.set
            held.keeper = asyncio.create_task(self._keep(held))
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_forever())
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
        tasks = [self._looker, *(held.keeper for held in self._held.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)

    def is_stored(self, life: Life) -> bool:
        """Whether the run is stored as one that waits, so that it can be let go of."""
        held = self._held.get(life.run_id)
        return held is not None and held.is_waiting and held.is_stored

    def idle(self) -> Life | None:
        """Of the runs that wait and have no readers, the one that has waited longest; None: they are few."""
        if len(self._held) <= self._settings.max_runs:
            return None
        lives = (held.life for held in self._held.values() if held.is_idle)
        return next(lives, None)

    # What is stored.

    async def _keep(self, held: HeldRun) -> None:
        """Store what a continuation needs, whenever that has changed."""
        while True:
            await held.news.wait()
            held.news.clear()
            if held.futures and held.has_stored_calls:  # At most more was said, as often as an agent likes.
                await anyio.sleep(SAID_SECONDS)
            if not held.futures or held.is_stored:
                continue
            try:
                await self._store(held)
            except Unavailable:  # Logged by the database.
                await anyio.sleep(TRY_AGAIN_SECONDS)
                held.news.set()
            except RunLost:
                return self.on_lost(held.life)
            except TooMany as refusal:
                for call_id in list(held.futures):
                    await self._go_on(held, call_id, Refused(refusal.detail))
            except Exception:
                logger.exception("run %s waits, and could not be stored", held.life.run_id)

    async def store_all(self) -> None:
        """Store now what runs that wait have said, so that they can be let go of."""
        for held in [each for each in self._held.values() if each.futures and not each.is_stored]:
            with suppress(Unavailable, RunLost, TooMany):  # As its keeper finds again.
                await self._store(held)

    async def _store(self, held: HeldRun) -> None:
        life = held.life
        await life.settled()
        async with life.checkpoints.order:
            is_waiting = life.run.state is State.WAITING
            calls = {call_id: held.calls[call_id] for call_id in held.futures}
            if not calls:
                return
            progress = Progress(life.run.said(), life.log.stored(), life.run.meter.usage(), life.billed)
            wait = Wait(life.stored_request(), calls)
            answered = await self._sessions.waits.store(life.run_id, wait, progress, is_waiting, self._limit)
        usage = progress.usage
        life.billed = usage.input_tokens + usage.output_tokens if usage else 0
        held.stored, held.stored_seq = frozenset(calls), progress.log.last_seq
        held.is_waiting = is_waiting and not answered
        for call_id, resolution in answered.items():
            await self._go_on(held, call_id, resolution)
        if held.is_waiting and life.run.state is State.WAITING:
            await life.leave_place()
            self.on_waiting(life)
        elif life.run.state is State.RUNNING and life.place is None:  # Its agent has made another call meanwhile.
            life.take(await self._places.retake(life.user))

    # How it goes on.

    def resolve(self, life: Life, call_id: str, resolution: Resolution, place: Place | None) -> Place | None:
        """A call has been answered, and that is recorded: go on with it. The place, where the run needs none."""
        held = self._held.get(life.run_id)
        if held is None or not held.waits_for(call_id):
            return place
        held.is_waiting = False
        place = life.go_on(call_id, place)
        held.futures[call_id].set_result(resolution)
        return place

    async def _go_on(self, held: HeldRun, call_id: str, resolution: Resolution) -> None:
        place = await self._places.retake(held.life.user) if held.life.place is None else None
        if place := self.resolve(held.life, call_id, resolution, place):
            await place.release()

    async def _withdraw(self, held: HeldRun, call_id: str) -> None:
        """Take a question back that nobody waits for, and let the run go on."""
        life = held.life
        async with life.checkpoints.order:  # What is being stored now may have the call.
            if call_id in held.stored and not await self._is_taken_back(life, call_id):
                return
        held.is_waiting = False
        place = life.go_on(call_id, await self._places.retake(life.user) if life.place is None else None)
        if place is not None:
            await place.release()

    async def _is_taken_back(self, life: Life, call_id: str) -> bool:
        """Whether the call is stored as answered, by this or by somebody, and the run is still this process's."""
        waits = self._sessions.waits
        while life.run.state in SPEAKING:
            try:
                try:
                    return bool(await waits.answer(life.run_id, call_id, Refused(WITHDRAWN)))
                except AlreadyAnswered:
                    await waits.take(life.run_id)
                    return True
            except RunLost:
                return False  # The next look finds that, too.
            except Unavailable:
                await anyio.sleep(TRY_AGAIN_SECONDS)
        return False

    def nudge(self) -> None:
        """Look for answers at once."""
        self._call.set()

    async def _look_forever(self) -> None:
        while self._held:
            try:
                async with asyncio.timeout(self._pause()):
                    await self._call.wait()
            except TimeoutError:
                pass
            self._call.clear()
            try:
                await self._look()
            except Unavailable:
                await anyio.sleep(TRY_AGAIN_SECONDS)
            except Exception:
                logger.exception("answers could not be looked for")
                await anyio.sleep(TRY_AGAIN_SECONDS)

    def _pause(self) -> float:
        waiting = [held.calls[each] for held in self._held.values() for each in held.stored if held.waits_for(each)]
        return max(0.0, min([ANSWERS_LOOK_SECONDS, *(seconds_until(each.expires_at) for each in waiting)]))

    async def _look(self) -> None:
        """Find the answers that other processes have recorded, the calls that have expired, and runs that are lost."""
        looked_at = {run_id: held for run_id, held in self._held.items() if held.stored}
        found = await self._sessions.waits.answers(list(looked_at)) if looked_at else {}
        for run_id, held in looked_at.items():
            if self._held.get(run_id) is not held:
                continue
            if run_id not in found:
                self.on_lost(held.life)
                continue
            if answered := {each: found[run_id][each] for each in found[run_id] if held.waits_for(each)}:
                try:
                    await self._sessions.waits.take(run_id)
                except RunLost:
                    self.on_lost(held.life)
                    continue
                for call_id, resolution in answered.items():
                    await self._go_on(held, call_id, resolution)
            for call_id in [each for each in held.futures if held.waits_for(each) and each in held.stored]:
                if seconds_until(held.calls[call_id].expires_at) <= 0:
                    await self._expire(held, call_id)

    async def _expire(self, held: HeldRun, call_id: str) -> None:
        refused = Refused(UNANSWERED)
        try:
            is_mine = await self._sessions.waits.answer(held.life.run_id, call_id, refused)
        except AlreadyAnswered:
            return self.nudge()
        if is_mine:
            await self._go_on(held, call_id, refused)
