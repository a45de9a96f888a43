"""What is counted of each user: what there is at a time, and the rate of requests and commands."""

from collections import Counter
from math import ceil
from time import monotonic

from chatserver.errors import TooMany

USERS_LIMIT = 10_000
"""How many users are remembered by their requests. Past this number, users without recent requests are forgotten. Where
all have recent requests, twice as many are remembered before the next cleaning."""

EVERYBODY = ""
"""The name under which is counted what all users have together; no user is called so."""


class Counts(Counter[str]):
    """How much of one kind each user has at a time; a user who has none takes no memory."""

    def add(self, user: str, count: int) -> None:
        """Add to what the user has, or subtract (negative)."""
        self[user] += count
        if not self[user]:
            del self[user]


class TokenBucket:
    """Holds up to ``size`` drops, loses one for each action, and is refilled by ``per_second`` drops."""

    __slots__ = ("_at", "_drops", "_per_second", "_size")

    def __init__(self, size: float, per_second: float) -> None:
        self._size = self._drops = size
        self._per_second = per_second
        self._at = monotonic()

    def draw(self) -> float:
        """Draw a drop and return 0.0; of an empty bucket, return how many seconds to wait for the next drop."""
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


class RateLimiter:
    """The requests and commands of each user. ``per_minute`` None: nobody counts."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._buckets: dict[str, TokenBucket] = {}
        self._forget_at = USERS_LIMIT

    def count(self, user: str) -> None:
        """Count a request.

        Raises:
            TooMany: the user has made as many as one may.
        """
        if self.per_minute is None:
            return
        bucket = self._buckets.get(user)
        if bucket is None:
            if len(self._buckets) >= self._forget_at:
                self._buckets = {name: each for name, each in self._buckets.items() if not each.is_full}
                # Doubled, so that cleaning stays rare: its cost for each new user is constant.
                self._forget_at = max(USERS_LIMIT, 2 * len(self._buckets))
            bucket = self._buckets[user] = TokenBucket(self.per_minute, self.per_minute / 60)
        if seconds := bucket.draw():
            raise self.too_often(seconds)

    def too_often(self, seconds: float) -> TooMany:
        """The refusal of a request that comes so many seconds too early."""
        return TooMany(f"at most {self.per_minute} requests in a minute", retry_after=ceil(seconds))
