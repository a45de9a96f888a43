"""Admission: how often a user may ask, and how many connections, open requests and body bytes one has at a time."""

from math import inf
from typing import Protocol, Self

from chatserver.errors import TooMany
from chatserver.limits import Counts, RateLimiter

ADMISSION = "chatserver.admission"
"""The key of a request's ``Admission`` in its extensions, from its head to the last byte of its response."""

OPEN_CONNECTIONS = "connections"
"""The kind of what is open that streams and WebSockets are."""

OPEN_REQUESTS = "requests"
"""The kind of all other requests, while they are on their way."""


class Admission:
    """One connection or request of a user, counted, with the bytes of its body that have come so far."""

    __slots__ = ("_bytes_limit", "_held_bytes", "_is_released", "_user", "_user_bytes", "_users")

    def __init__(self, users: Counts, user_bytes: Counts, user: str, bytes_limit: float) -> None:
        self._users = users
        self._user_bytes = user_bytes
        self._bytes_limit = bytes_limit
        self._held_bytes = 0
        self._user = user
        self._is_released = False
        users.add(user, 1)

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
        self._user_bytes.add(self._user, size)
        self._held_bytes += size

    def release_bytes(self) -> None:
        """The body has come whole, or will not."""
        self._user_bytes.add(self._user, -self._held_bytes)
        self._held_bytes = 0

    async def release(self) -> None:
        """The connection or the request is over. Once is enough.

        No cancellation cuts this short, so that it may stand in a ``finally``.
        """
        self.release_bytes()
        if not self._is_released:
            self._is_released = True
            self._users.add(self._user, -1)


class Admissions(Protocol):
    """Who may come in: the rate of each user's requests and commands, and what each user has open.

    A verb that is cancelled may have counted towards the rate, and holds nothing else.
    """

    async def count(self, user: str) -> None:
        """Count a command.

        Raises:
            TooMany: this user has asked too often.
        """
        ...

    async def admit(self, user: str) -> Admission:
        """Count a request, and hold a further stream or WebSocket of its user until it is released.

        Raises:
            TooMany: this user has asked too often, or has as many as one may have.
        """
        ...

    async def admit_request(self, user: str) -> Admission:
        """As ``admit``, of a request on its way. They are as many at most, but beside the streams: one may be a cancel.

        Raises:
            TooMany: this user has asked too often, or has as many as one may have.
        """
        ...


class LocalAdmissions:
    """The admissions of one process."""

    def __init__(self, rate_limiter: RateLimiter, limit: int, bytes_limit: float = inf) -> None:
        """``limit`` of each kind, and of bodies ``bytes_limit``, are what one user may have at a time."""
        self.rate_limiter = rate_limiter
        self.limit = limit
        self.open = {kind: Counts() for kind in (OPEN_CONNECTIONS, OPEN_REQUESTS)}
        self._bytes_limit = bytes_limit
        self._bytes = Counts()

    async def count(self, user: str) -> None:
        self.rate_limiter.count(user)

    async def admit(self, user: str) -> Admission:
        self.rate_limiter.count(user)
        return self.hold(OPEN_CONNECTIONS, user)

    async def admit_request(self, user: str) -> Admission:
        self.rate_limiter.count(user)
        return self.hold(OPEN_REQUESTS, user)

    def hold(self, kind: str, user: str) -> Admission:
        """Hold a further one of its kind.

        Raises:
            TooMany: this user has as many as one may have.
        """
        held = self.open[kind]
        if held[user] >= self.limit:
            raise self.too_many(kind)
        return Admission(held, self._bytes, user, self._bytes_limit)

    def too_many(self, kind: str) -> TooMany:
        """The refusal of a further one of its kind."""
        return TooMany(f"at most {self.limit} {kind} at a time")
