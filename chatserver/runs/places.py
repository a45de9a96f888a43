"""How many runs may go on, of a user and of all, and what users have spent today."""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil

from chatserver.errors import TooMany
from chatserver.meter import Day, Meter
from chatserver.settings import Settings


class Place:
    """The place of one run among those that go on, with the meter of what the run may spend."""

    def __init__(self, meter: Meter, release: Callable[[], None]) -> None:
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
    """The runs that go on: each has a place, of its user's and of all."""

    def __init__(self, settings: Settings, spent_on: Callable[[str, str], Awaitable[int]]) -> None:
        """``spent_on`` tells the tokens of a user's runs that are over, on a day."""
        self._settings = settings
        self._acquired: Counter[str] = Counter()
        self._acquired_in_all = 0
        self._days = Days(settings.max_tokens_per_day, spent_on)

    async def acquire(self, user: str) -> Place:
        """A place for one more run. Whoever is cancelled in here has none.

        Raises:
            TooMany: there is none.
        """
        settings = self._settings
        # Without authentication all are one user, so that only the limit of all counts.
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
        meter = Meter(settings.max_tokens_per_run, day, settings.max_answer_bytes)
        return Place(meter, partial(self._release, user))

    def _release(self, user: str) -> None:
        self._acquired_in_all -= 1
        self._acquired[user] -= 1
        if not self._acquired[user]:
            del self._acquired[user]
            self._days.forget(user)  # From now on the database knows it.


class Days:
    """What users with running answers have spent today. ``limit`` None: nobody counts."""

    def __init__(self, limit: int | None, spent_on: Callable[[str, str], Awaitable[int]]) -> None:
        self._limit = limit
        self._spent_on = spent_on
        self._days: dict[str, Day] = {}

    async def today(self, user: str) -> Day | None:
        """The same for all runs of a user, so that each counts what the others spend."""
        today = date_of(datetime.now(UTC))
        if self._limit is None:
            return None
        if (day := self._known(user, today)) is None:
            spent = await self._spent_on(user, today)
            if (day := self._known(user, today)) is None:  # Else another run was first.
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
