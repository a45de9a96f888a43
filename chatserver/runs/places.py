"""Places: how many runs go on at a time, of a user and of all; and the tokens that users have spent today."""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil

from chatserver.errors import TooMany
from chatserver.meter import Day, Meter
from chatserver.settings import Settings


class Place:
    """The place of one run among those that go on; ``meter`` makes the run's meter."""

    def __init__(self, meter: Callable[[], Meter], release: Callable[[], None]) -> None:
        self.meter = meter
        self._release = release
        self._is_released = False

    async def release(self) -> None:
        """Give the place back: the run is over and its usage stored, or it never began. Once is enough.

        No cancellation cuts this short, so that it may stand in a ``finally``.
        """
        if not self._is_released:
            self._is_released = True
            self._release()


class Places:
    """The places of the runs that go on, counted for each user and in all."""

    def __init__(self, settings: Settings, spent_on: Callable[[str, str], Awaitable[int]]) -> None:
        """``spent_on`` returns the tokens of a user's finished runs on a day."""
        self._settings = settings
        self._acquired: Counter[str] = Counter()
        self._acquired_in_all = 0
        self._days = Days(settings.max_tokens_per_day, spent_on)

    async def acquire(self, user: str) -> Place:
        """A place for one more run. A call that is cancelled has taken none.

        Raises:
            TooMany: no place is left, or the user's tokens of the day are spent.
        """
        settings = self._settings
        # In `none` mode everybody is one user, so only the limit of all runs counts.
        if settings.auth != "none" and self._acquired[user] >= settings.max_runs_per_user:
            raise TooMany(_written(settings.max_runs_per_user))
        if self._acquired_in_all >= settings.max_runs:
            raise TooMany(_written(settings.max_runs))
        self._acquired[user] += 1
        self._acquired_in_all += 1
        try:
            day = await self._days.today(user)
            if day is not None and day.is_spent():
                raise TooMany(f"at most {settings.max_tokens_per_day} tokens in a day", retry_after=_until_midnight())
        except BaseException:
            self._release(user)
            raise
        meter = partial(Meter, settings.max_tokens_per_run, day, settings.max_answer_bytes)
        return Place(meter, partial(self._release, user))

    def _release(self, user: str) -> None:
        self._acquired_in_all -= 1
        self._acquired[user] -= 1
        if not self._acquired[user]:
            del self._acquired[user]
            self._days.forget(user)  # The sum is in the database from now on.


class Days:
    """The tokens of today of users with running runs. ``limit`` None: no limit, and nothing is counted."""

    def __init__(self, limit: int | None, spent_on: Callable[[str, str], Awaitable[int]]) -> None:
        self._limit = limit
        self._spent_on = spent_on
        self._days: dict[str, Day] = {}

    async def today(self, user: str) -> Day | None:
        """The day of a user, one object for all runs of the user, so that each run counts what the others spend."""
        today = date_of(datetime.now(UTC))
        if self._limit is None:
            return None
        if (day := self._known(user, today)) is None:
            spent = await self._spent_on(user, today)
            if (day := self._known(user, today)) is None:  # Otherwise another run was first.
                day = self._days[user] = Day(today, self._limit, spent)
        return day

    def forget(self, user: str) -> None:
        self._days.pop(user, None)

    def _known(self, user: str, date: str) -> Day | None:
        day = self._days.get(user)
        return day if day is not None and day.date == date else None


def date_of(moment: datetime) -> str:
    """The day of a moment, as it is stored."""
    return moment.astimezone(UTC).date().isoformat()


def _written(limit: int) -> str:
    return f"{limit} {'answer is' if limit == 1 else 'answers are'} being written, the most at a time"


def _until_midnight() -> int:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return ceil((midnight - now).total_seconds())
