"""Looks: how the process of a run that waits finds the answers that other processes have recorded."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import anyio

from chatserver.errors import AlreadyAnswered, RunLost, Unavailable
from chatserver.runs.held import HeldRun
from chatserver.runs.life import Life
from chatserver.sessions.waits import Waits
from chatserver.waiting import UNANSWERED, Refused, Resolution, seconds_until

logger = logging.getLogger(__name__)

ANSWERS_LOOK_SECONDS = 3.0
"""How often the answers that other processes have recorded are looked for: their message may be lost."""

TRY_AGAIN_SECONDS = 1.0
"""Between tries to use the database, while it cannot be used."""

GoOn: TypeAlias = Callable[[HeldRun, str, Resolution], Awaitable[None]]
"""Goes on with a call, which was answered."""


class Looks:
    """Looks for answers to the calls of held runs, and for calls that have expired, while there are such runs."""

    def __init__(self, held: Mapping[str, HeldRun], waits: Waits, go_on: GoOn, on_lost: Callable[[Life], None]) -> None:
        self._held = held
        self._waits = waits
        self._go_on = go_on
        self._on_lost = on_lost
        self._task: asyncio.Task[None] | None = None
        self._call = asyncio.Event()

    def begin(self) -> None:
        """Look from now on, at intervals."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_forever())

    def nudge(self) -> None:
        """Look at once."""
        self._call.set()

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

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
        found = await self._waits.answers(list(looked_at)) if looked_at else {}
        for run_id, held in looked_at.items():
            if self._held.get(run_id) is not held:
                continue
            if run_id not in found:
                self._on_lost(held.life)
                continue
            if answered := {each: found[run_id][each] for each in found[run_id] if held.waits_for(each)}:
                try:
                    await self._waits.take(run_id, answered)
                except RunLost:
                    self._on_lost(held.life)
                    continue
                for call_id, resolution in answered.items():
                    await self._go_on(held, call_id, resolution)
            for call_id in [each for each in held.waiting if each in held.stored]:
                if seconds_until(held.calls[call_id].expires_at) <= 0:
                    await self._expire(held, call_id)

    async def _expire(self, held: HeldRun, call_id: str) -> None:
        refused = Refused(UNANSWERED)
        try:
            is_mine = await self._waits.answer(held.life.run_id, call_id, refused)
        except AlreadyAnswered:
            return self.nudge()
        if is_mine:
            await self._go_on(held, call_id, refused)
