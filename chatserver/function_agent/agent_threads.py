"""The loops of all agents, and the watch over them: who is silent, who blocks a loop, who does not end."""

import asyncio
import logging
from contextlib import suppress

import anyio

from chatserver.errors import AgentFailed
from chatserver.function_agent.agent_loop import AgentLoop
from chatserver.function_agent.work import Work

logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
BEGIN_SECONDS = 5.0
"""How long a run waits for an event loop that is blocked, before it gets a new one."""

BLOCKED_SECONDS = 10.0
"""An agent that does not let other agents go on for so long has failed."""

LOOPS_LIMIT = 8
"""Event loops at a time: one, and those that are blocked. Each is a thread."""

LEFT_BEHIND_LIMIT = 64
"""Agents that have not ended although their runs are over: then no more is begun."""


class AgentThreads:
    """Where agents work: all in one event loop, as libraries expect it that keep connections for all their users.

    While an agent blocks the loop, the others there wait too. New runs get another loop, and the run of the agent that
    blocks ends.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._loops: list[AgentLoop] = []
        self._works: set[Work] = set()
        self._suspect: object | None = None
        self._watch: asyncio.Task[None] | None = None

    async def done(self, work: Work) -> None:
        """Let an agent work until its answer has ended. Cancelling this cancels the agent, and does not wait for it.

        Raises:
            AgentFailed: the agent has failed.
            Exception: what the run has raised, or what the agent got from the server and did not catch.
        """
        if sum(each.ended.done() for each in self._works) >= LEFT_BEHIND_LIMIT:
            raise AgentFailed("too many agents go on although their runs are over")
        self._works.add(work)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_all())
        if not self._loops:
            self._loops.append(AgentLoop())
        work.begin(self._loops[-1])
        try:
            await work.ended
        finally:
            work.stop()
            if work.is_gone:
                self._works.discard(work)

    async def close(self) -> None:
        """End all loops with their tasks."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        async with anyio.create_task_group() as tasks:
            for each in self._loops:
                tasks.start_soon(each.end)
        self._loops.clear()

    async def _watch_all(self) -> None:
        while self._works or len(self._loops) > 1:
            for loop in self._loops:
                loop.ask()
            await asyncio.sleep(WATCH_SECONDS)
            for work in list(self._works):
                self._look_at(work)
            for loop in list(self._loops):
                await self._look_at_loop(loop)

    def _look_at(self, work: Work) -> None:
        if work.is_gone:
            self._works.discard(work)
        elif work.ended.done():
            work.stop()
        elif not work.has_begun and work.where is not None and work.where.blocked_seconds > BEGIN_SECONDS:
            self._begin_elsewhere(work)
        elif work.silent_seconds > self._idle_seconds:
            work.fail(AgentFailed(f"the agent said nothing for {self._idle_seconds:g} seconds"))

    def _begin_elsewhere(self, work: Work) -> None:
        if self._loops[-1] is work.where:
            if len(self._loops) == LOOPS_LIMIT:
                return work.fail(AgentFailed("too many agents block their event loops"))
            self._loops.append(AgentLoop())
        work.begin(self._loops[-1])

    async def _look_at_loop(self, loop: AgentLoop) -> None:
        if loop.blocked_seconds > BLOCKED_SECONDS:
            owner = loop.owner
            # Seen twice: between two short tasks, the wrong one might be seen.
            if isinstance(owner, Work) and owner is self._suspect and not owner.ended.done():
                logger.error("an agent blocks its event loop: it must await what takes long, or do it in a thread")
                owner.fail(AgentFailed(f"the agent blocked its event loop for over {BLOCKED_SECONDS:g} seconds"))
            self._suspect = owner
        elif loop is not self._loops[-1] and not any(each.where is loop for each in self._works):
            self._loops.remove(loop)
            await loop.end()
