"""Admissions over all nodes: the rate of each user's requests, and what each user has open on any of them."""

from chatserver.errors import Unavailable
from chatserver.nodes.open_counts import Field, Full, OpenCounts, TooEarly
from chatserver.transports.admission import OPEN_CONNECTIONS, OPEN_REQUESTS, Admission, LocalAdmissions


class SharedAdmissions:
    """The admissions of one node among several. While Redis is away, they are those of this process alone."""

    def __init__(self, counts: OpenCounts, local: LocalAdmissions) -> None:
        """``local`` has admitted nobody yet."""
        local.open = {kind: counts.make(kind) for kind in local.open}
        self._counts = counts
        self._local = local

    async def count(self, user: str) -> None:
        if self._local.rate_limiter.per_minute is not None:
            await self._ask(user)

    async def admit(self, user: str) -> Admission:
        return await self._admit(OPEN_CONNECTIONS, user)

    async def admit_request(self, user: str) -> Admission:
        return await self._admit(OPEN_REQUESTS, user)

    async def _admit(self, kind: str, user: str) -> Admission:
        admission = self._local.hold(kind, user)
        try:
            if await self._ask(user, ((kind, user), self._local.limit)):
                raise self._local.too_many(kind)
        except BaseException:
            await admission.release()
            raise
        return admission

    async def _ask(self, user: str, *wanted: tuple[Field, float]) -> Full | None:
        """Ask for a request of a user, and for what it holds.

        Raises:
            TooMany: the user has asked too often.
        """
        rate_limiter = self._local.rate_limiter
        try:
            refusal = await self._counts.admit(*wanted, user=user, per_minute=rate_limiter.per_minute)
        except Unavailable:
            rate_limiter.count(user)
            return None
        if isinstance(refusal, TooEarly):
            raise rate_limiter.too_often(refusal.seconds)
        return refusal
