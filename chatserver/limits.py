"""How much: requests in a time, runs at a time, and the model tokens of a run and of a user's day."""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from math import ceil, inf
from time import monotonic

from chatserver.dialogue import BYTES_PER_TOKEN, estimated_tokens, text_bytes
from chatserver.errors import TooMany
from chatserver.events import Usage
from chatserver.providers import ModelRequest
from chatserver.settings import Settings

USERS_LIMIT = 10_000
"""How many users are remembered by their requests; past it, those are forgotten who have asked for nothing lately.
Where all have asked, twice as many are remembered before the next look."""


class Bucket:
    """Holds ``size`` drops; one falls out for each thing done, and time fills it up again."""

    __slots__ = ("_at", "_drops", "_per_second", "_size")

    def __init__(self, size: float, per_second: float) -> None:
        self._size = self._drops = size
        self._per_second = per_second
        self._at = monotonic()

    def take(self) -> float:
        """Take a drop: 0.0; or, of an empty bucket, how many seconds to wait for one."""
        self._fill()
        if self._drops < 1:
            return (1 - self._drops) / self._per_second
        self._drops -= 1
        return 0.0

    @property
    def is_full(self) -> bool:
        self._fill()
        return self._drops >= self._size

    def _fill(self) -> None:
        now = monotonic()
        self._drops = min(self._size, self._drops + (now - self._at) * self._per_second)
        self._at = now


class Requests:
    """The requests and commands of each user. ``per_minute`` None: nobody counts."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, Bucket] = {}
        self._forget_at = USERS_LIMIT

    async def count(self, user: str) -> None:
        """One more; whoever is cancelled in here may have been counted.

        Raises:
            TooMany: it is one too many.
        """
        if self._per_minute is None:
            return
        bucket = self._buckets.get(user)
        if bucket is None:
            if len(self._buckets) >= self._forget_at:
                self._buckets = {name: each for name, each in self._buckets.items() if not each.is_full}
                # Doubled, so that a look at all of them is rare, and costs little for each that has come.
                self._forget_at = max(USERS_LIMIT, 2 * len(self._buckets))
            bucket = self._buckets[user] = Bucket(self._per_minute, self._per_minute / 60)
        if seconds := bucket.take():
            raise TooMany(f"at most {self._per_minute} requests in a minute", retry_after=ceil(seconds))


class Day:
    """The tokens of one user on one day (UTC): those of runs that are over, and of those that go on."""

    def __init__(self, date: str, limit: int, spent: int) -> None:
        self.date = date
        self.spent = spent
        self._limit = limit

    def is_spent(self) -> bool:
        return self.spent >= self._limit


class Spent(Exception):
    """Nothing more may be asked or said: the run has what one may have, or the user what a day may have."""


class Meter:
    """The model tokens of a run, right at any moment: what the upstream told, and an estimate where it did not.

    And how much text its answer may still have: ``answer_bytes_limit`` bytes of UTF-8 at first.
    """

    def __init__(self, limit: float = inf, day: Day | None = None, answer_bytes_limit: float = inf) -> None:
        self._limit = limit
        self._day = day
        self._told = Usage()
        self._asked_tokens: int | None = None
        self._said_bytes = 0
        self._room_bytes = answer_bytes_limit
        self.spent = 0
        """All tokens of the run. It is kept, as the day's are: both are asked for with every delta."""

    def ask(self, request: ModelRequest) -> None:
        """The model is asked.

        Raises:
            Spent: it may not be.
        """
        if self.is_spent():
            raise Spent
        self._asked_tokens, self._said_bytes = estimated_tokens([*request.messages, *request.tools]), 0
        self._count()

    def say(self, text: str) -> str:
        """As much as may be said of a text of the answer, or of its reasoning; it is counted.

        Raises:
            Spent: none of it.
        """
        if self.is_spent():
            raise Spent
        size = text_bytes(text)
        if size > self._room_bytes:
            text = text.encode()[: int(self._room_bytes)].decode(errors="ignore")
            size = text_bytes(text)
        self._room_bytes -= size
        self._said_bytes += size
        self._count()
        return text

    def call(self, arguments: str) -> None:
        """The model wants a tool called.

        Raises:
            Spent: it has said enough.
        """
        if self.is_spent():
            raise Spent
        self._said_bytes += text_bytes(arguments)
        self._count()

    def told(self, usage: Usage | None) -> None:
        self._told, self._asked_tokens = self._told + (usage or self._estimate()), None
        self._count()

    def usage(self) -> Usage:
        return self._told + self._estimate()

    def is_spent(self) -> bool:
        return self.spent >= self._limit or (self._day is not None and self._day.is_spent())

    def _count(self) -> None:
        now = 0 if self._asked_tokens is None else self._asked_tokens - -self._said_bytes // BYTES_PER_TOKEN
        spent = self._told.input_tokens + self._told.output_tokens + now
        if self._day is not None:
            self._day.spent += spent - self.spent
        self.spent = spent

    def _estimate(self) -> Usage:
        """The turn that is going on, or that ended without its usage."""
        if self._asked_tokens is None:
            return Usage()
        return Usage(self._asked_tokens, -(-self._said_bytes // BYTES_PER_TOKEN), estimated=True)


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
