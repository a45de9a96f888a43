"""Things done at planned times, and how late they were: the clock of an open-loop load."""

import asyncio
import heapq
import os
import random
from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic_ns

NS = 1_000_000_000

SPIN_NS = 2_000_000
"""From here on the loop is polled, not slept in: timers of uvloop are 1 ms coarse, and a schedule is not."""


class Schedule:
    """Runs callables at planned moments of CLOCK_MONOTONIC, in ns.

    ``lateness_ns`` has how late each one ran; whoever looks at it empties it.
    """

    def __init__(self) -> None:
        self.lateness_ns: list[int] = []
        self._planned: list[tuple[int, int, Callable[[int], object]]] = []
        self._order = count()
        self._is_waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def at(self, due_ns: int, action: Callable[[int], object]) -> None:
        """Call ``action(due_ns)`` when it is due; at once if it was before."""
        heapq.heappush(self._planned, (due_ns, next(self._order), action))
        if not self._is_waiting:
            self._is_waiting = True
            self._loop.call_soon(self._turn)
        elif self._timer is not None and self._planned[0][0] == due_ns:
            self._timer.cancel()
            self._timer = None
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._timer = None
        planned, now = self._planned, monotonic_ns()
        while planned and planned[0][0] <= now:
            due, _, action = heapq.heappop(planned)
            now = monotonic_ns()
            self.lateness_ns.append(now - due)
            action(due)
        if not planned:
            self._is_waiting = False
            return
        rest = planned[0][0] - monotonic_ns()
        if rest > SPIN_NS:
            self._timer = self._loop.call_later((rest - SPIN_NS) / NS, self._turn)
        else:
            # Else a Redis or a proxy on the load's core waits milliseconds for the end of this loop's slice, and the
            # wait is taken for the contender's. All contenders are measured with this loop.
            os.sched_yield()
            self._loop.call_soon(self._turn)


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Arrival times in seconds from 0, at random and ``rate`` a second on average: users do not take turns."""
    source, now = random.Random(seed), 0.0  # noqa: S311 - the same arrivals for every contender
    while True:
        now += source.expovariate(rate)
        yield now
