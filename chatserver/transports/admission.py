"""Admission: how many connections, open requests and body bytes one user has at a time."""

from collections import Counter
from math import inf
from typing import Self

from chatserver.errors import TooMany

ADMISSION = "chatserver.admission"
"""The key of a request's ``Admission`` in its extensions, from its head to the last byte of its response."""


class Admission:
    """One connection or request of a user, counted, with the bytes of its body that have come so far."""

    __slots__ = ("_bytes_limit", "_held_bytes", "_is_released", "_user", "_user_bytes", "_users")

    def __init__(self, users: Counter[str], user_bytes: Counter[str], user: str, bytes_limit: float) -> None:
        self._users = users
        self._user_bytes = user_bytes
        self._bytes_limit = bytes_limit
        self._held_bytes = 0
        self._user = user
        self._is_released = False
        users[user] += 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    def hold_bytes(self, size: int) -> None:
        """Count bytes of a body, which this process holds, until all of them are let go.

        Raises:
            TooMany: the incomplete bodies of this user hold as many bytes as they may together.
        """
        if self._user_bytes[self._user] + size > self._bytes_limit:
            raise TooMany(f"at most {self._bytes_limit} bytes of bodies at a time")
        self._user_bytes[self._user] += size
        self._held_bytes += size

    def release_bytes(self) -> None:
        """The body has come whole, or will not."""
        _subtract(self._user_bytes, self._user, self._held_bytes)
        self._held_bytes = 0

    async def release(self) -> None:
        """The connection or the request is over. Once is enough.

        No cancellation cuts this short, so that it may stand in a ``finally``.
        """
        self.release_bytes()
        if not self._is_released:
            self._is_released = True
            _subtract(self._users, self._user, 1)


class Admissions:
    """The open connections and requests of all users."""

    def __init__(self, limit: int, bytes_limit: float = inf) -> None:
        """``limit`` of each kind, and of bodies ``bytes_limit``, are what one user may have at a time."""
        self._limit = limit
        self._bytes_limit = bytes_limit
        self._connections: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    async def admit(self, user: str) -> Admission:
        """Count a further stream or WebSocket of a user until it is released. Whoever is cancelled in here has none.

        Raises:
            TooMany: this user has as many as one may have.
        """
        return self._admitted(self._connections, user, "connections")

    async def admit_request(self, user: str) -> Admission:
        """As ``admit``, of a request on its way. They are as many at most, but beside the streams: one may be a cancel.

        Raises:
            TooMany: this user has as many as one may have.
        """
        return self._admitted(self._requests, user, "requests at a time")

    def _admitted(self, users: Counter[str], user: str, what: str) -> Admission:
        if users[user] >= self._limit:
            raise TooMany(f"at most {self._limit} {what}")
        return Admission(users, self._bytes, user, self._bytes_limit)


def _subtract(counter: Counter[str], user: str, count: int) -> None:
    counter[user] -= count
    if not counter[user]:
        del counter[user]
