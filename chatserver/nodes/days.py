"""The model tokens of users' days over all nodes: a sum a user in Redis, to which each node adds once a second.

A user's runs on one node learn within a second what the user's runs elsewhere have spent: so much, the tokens of a
second, the day may be overdrawn. The database knows what finished runs have spent, and the sum is never less.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from chatserver.meter import Day
from chatserver.nodes.keys import day_key
from chatserver.nodes.link import Link, Script
from chatserver.nodes.wire import Word
from chatserver.runs.places import date_of

REPORT_SECONDS = 1.0
"""Between two reports of what was spent here."""

KEPT_SECONDS = 2 * 24 * 60 * 60
"""How long the sum of a day is kept behind its last report."""

SPEND = Script("spend")


class SharedDays:
    """The tokens of today of users with runs on this node. ``limit`` None: no limit, and nothing is counted."""

    def __init__(self, link: Link, limit: int | None, spent_on: Callable[[str, str], Awaitable[int]]) -> None:
        """``spent_on`` returns the tokens of a user's finished runs on a day."""
        self._link = link
        self._limit = limit
        self._spent_on = spent_on
        self._days: dict[str, SharedDay] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def today(self, user: str) -> Day | None:
        if self._limit is None:
            return None
        date = date_of(datetime.now(UTC))
        stored = await self._spent_on(user, date)
        (total,) = await self._link.call(SPEND, [day_key(date, user)], [KEPT_SECONDS, stored, stored, 0])
        day = self._days.get(user)
        if day is None or day.date != date:
            day = self._days[user] = SharedDay(date, self._limit, day_key(date, user))
        day.learn(total)
        self._report_later()
        return day

    def forget(self, user: str) -> None:
        if day := self._days.pop(user, None):
            self._report([day])

    def _report_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report_all)

    def _report_all(self) -> None:
        self._timer = None
        if self._days:
            self._report(list(self._days.values()))
            self._report_later()

    def _report(self, days: Iterable["SharedDay"]) -> None:
        """Add what was spent here since the last report."""
        if not self._link.is_up:  # Then it stays to be reported.
            return
        reports = [(day, tokens) for day in days if (tokens := day.take())]
        if reports:
            args: list[Word] = [KEPT_SECONDS]
            for day, tokens in reports:
                args += 0, day.spent - tokens, tokens
            self._link.post(SPEND, [day.key for day, _ in reports], args, partial(_settle, reports))


class SharedDay(Day):
    """The tokens of a user on one day, as far as this node knows them."""

    def __init__(self, date: str, limit: int, key: str) -> None:
        super().__init__(date, limit, 0)
        self.key = key
        self._reported = 0
        """How much of ``spent`` is in the sum, or on its way there."""

    def learn(self, total: int) -> None:
        """The sum over all nodes was so much, with all that was reported here."""
        self.spent += total - self._reported
        self._reported = total

    def take(self) -> int:
        """What is to be reported; it counts as reported from now on."""
        tokens = self.spent - self._reported
        self._reported = self.spent
        return tokens

    def give_back(self, tokens: int) -> None:
        """What was taken could not be reported."""
        self._reported -= tokens


def _settle(reports: Sequence[tuple[SharedDay, int]], reply: Any) -> None:
    if isinstance(reply, Exception):
        for day, tokens in reports:
            day.give_back(tokens)
    else:
        for (day, _), total in zip(reports, reply, strict=True):
            day.learn(total)
