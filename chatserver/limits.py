"""The rate of requests and commands of each user."""

from math import ceil
from time import monotonic

from chatserver.errors import TooMany

USERS_LIMIT = 10_000
"""How many users are remembered by their requests. Past this number, users without recent requests are forgotten. Where
all have recent requests, twice as many are remembered before the next cleaning."""


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
        self._per_minute = per_minute
        self._buckets: dict[str, TokenBucket] = {}
        self._forget_at = USERS_LIMIT

    async def count(self, user: str) -> None:
        """Count a request; a call that is cancelled may have been counted.

        Raises:
            TooMany: the user has made as many as one may.
        """
        if self._per_minute is None:
            return
        bucket = self._buckets.get(user)
        if bucket is None:
            if len(self._buckets) >= self._forget_at:
                self._buckets = {name: each for name, each in self._buckets.items() if not each.is_full}
                # Doubled, so that cleaning stays rare: its cost for each new user is constant.
                self._forget_at = max(USERS_LIMIT, 2 * len(self._buckets))
            bucket = self._buckets[user] = TokenBucket(self._per_minute, self._per_minute / 60)
        if seconds := bucket.draw():
            raise TooMany(f"at most {self._per_minute} requests in a minute", retry_after=ceil(seconds))
