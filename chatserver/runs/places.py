"""Places: how many runs go on at a time, of a user and of all; and the tokens that users have spent today."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from math import ceil, inf
from typing import Protocol

from chatserver.errors import TooMany, Unavailable
from chatserver.limits import EVERYBODY, Counts
from chatserver.meter import Day
from chatserver.settings import Settings


class Place:
    """The place of one run of a user among those that go on; ``day`` is that of the user."""

    __slots__ = ("_is_released", "_release", "_user", "day")

    def __init__(self, user: str, day: Day | None, release: Callable[[str], None]) -> None:
        self.day = day
        self._user = user
        self._release = release
        self._is_released = False

    async def release(self) -> None:
        """Give the place back: the run is over and its usage stored, or it never began. Once is enough.

        No cancellation cuts this short, so that it may stand in a ``finally``.
        """
        if not self._is_released:
            self._is_released = True
            self._release(self._user)


class Places(Protocol):
    """The places of the runs that go on, counted for each user and in all."""

    async def acquire(self, user: str) -> Place:
        """A place for one more run. A call that is cancelled has taken none.

        Raises:
            TooMany: no place is left, or the user's tokens of the day are spent.
            Unavailable: nobody can tell now.
        """
        ...

    async def retake(self, user: str) -> Place:
        """A place for a run that has waited and goes on, whatever the limits are: it has been told so already.

        A call that is cancelled has taken none.
        """
        ...


class Days(Protocol):
    """The tokens of today of users with running runs."""

    async def today(self, user: str) -> Day | None:
        """The day of a user, one object for all runs of the user here; None: nobody counts.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    def forget(self, user: str) -> None:
        """The user's last run here is over, and its tokens are stored."""
        ...


class LocalPlaces:
    """The places of one process."""

    def __init__(self, settings: Settings, days: Days) -> None:
        self.held = Counts()
        # In `none` mode everybody is one user, so only the limit of all runs counts.
        self.user_limit = inf if settings.auth == "none" else settings.max_runs_per_user
        self.limit = settings.max_runs
        self._settings = settings
        self._days = days

    async def acquire(self, user: str) -> Place:
        self.hold(user)
        return await self.place(user)

    async def retake(self, user: str) -> Place:
        self._hold(user)
        try:
            day = await self._days.today(user)
        except Unavailable:  # What the run spends is counted when its end is stored.
            day = None
        except BaseException:
            self.release(user)
            raise
        return Place(user, day, self.release)

    def hold(self, user: str) -> None:
        """Count a further run, which is released by its ``place``, or by ``release``.

        Raises:
            TooMany: no place is left.
        """
        for name, limit in ((user, self.user_limit), (EVERYBODY, self.limit)):
            if self.held[name] >= limit:
                raise too_many_runs(limit)
        self._hold(user)

    def _hold(self, user: str) -> None:
        self.held.add(user, 1)
        self.held.add(EVERYBODY, 1)

    async def place(self, user: str) -> Place:
        """The place of a run that is held; where that fails, the run is held no more.

        Raises:
            TooMany: the user's tokens of the day are spent.
            Unavailable: nobody can tell now.
        """
        try:
            day, limit = await self._days.today(user), self._settings.max_tokens_per_day
            if day is not None and day.is_spent():
                raise TooMany(f"at most {limit} tokens in a day", retry_after=_until_midnight())
        except BaseException:
            self.release(user)
            raise
        return Place(user, day, self.release)

    def release(self, user: str) -> None:
        """Count a run no more."""
        self.held.add(EVERYBODY, -1)
        self.held.add(user, -1)
        if not self.held[user]:
            self._days.forget(user)


class LocalDays:
    """The tokens of today as one process knows them. ``limit`` None: no limit, and nothing is counted."""

    def __init__(self, limit: int | None, spent_on: Callable[[str, str], Awaitable[int]]) -> None:
        """``spent_on`` returns the tokens of a user's finished runs on a day."""
        self._limit = limit
        self._spent_on = spent_on
        self._days: dict[str, Day] = {}

    async def today(self, user: str) -> Day | None:
        today = date_of(datetime.now(UTC))
        if self._limit is None:
            return None
        if (day := self._known(user, today)) is None:
            spent = await self._spent_on(user, today)
            if (day := self._known(user, today)) is None:  # Otherwise another run was first.
                day = self._days[user] = Day(today, self._limit, spent)
        return day

    def forget(self, user: str) -> None:
        self._days.pop(user, None)  # The sum is in the database from now on.

    def _known(self, user: str, date: str) -> Day | None:
        day = self._days.get(user)
        return day if day is not None and day.date == date else None


def date_of(moment: datetime) -> str:
    """The day of a moment, as it is stored."""
    return moment.astimezone(UTC).date().isoformat()


def too_many_runs(limit: float) -> TooMany:
    """The refusal of a further run."""
    return TooMany(f"{limit} {'answer is' if limit == 1 else 'answers are'} being written, the most at a time")


def _until_midnight() -> int:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return ceil((midnight - now).total_seconds())
