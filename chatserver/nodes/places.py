"""Places over all nodes: how many runs go on at a time, of a user and of all."""

from chatserver.limits import EVERYBODY
from chatserver.nodes.open_counts import Full, OpenCounts
from chatserver.runs.places import LocalPlaces, Place, too_many_runs

OPEN_RUNS = "runs"
"""The kind of what is open that runs are."""


class SharedPlaces:
    """The places of one node among several. While Redis is away, there are none."""

    def __init__(self, counts: OpenCounts, local: LocalPlaces) -> None:
        """``local`` has given no place yet."""
        local.held = counts.make(OPEN_RUNS)
        self._counts = counts
        self._local = local

    async def acquire(self, user: str) -> Place:
        local = self._local
        limits = (user, local.user_limit), (EVERYBODY, local.limit)
        local.hold(user)
        try:
            refusal = await self._counts.admit(*(((OPEN_RUNS, name), limit) for name, limit in limits))
            if isinstance(refusal, Full):
                raise too_many_runs(limits[refusal.index][1])
        except BaseException:
            local.release(user)
            raise
        return await local.place(user)

    async def retake(self, user: str) -> Place:
        return await self._local.retake(user)  # The others hear of it with the next look.
