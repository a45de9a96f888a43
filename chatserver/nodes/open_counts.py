"""What each node has open: a hash of counts a node, which the script that admits adds up over all nodes.

The counts of this process are the truth. The hash repeats them, each as a whole number, so whatever was written before,
or was lost, does not matter. The hash of a node that is gone expires, and with it all that the node had open.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeAlias

from msgspec import Struct

from chatserver.errors import Unavailable
from chatserver.limits import Counts
from chatserver.nodes.keys import NODES, open_key, requests_key
from chatserver.nodes.link import Link, Script
from chatserver.nodes.wire import Word

COUNTS_MS = 6000
"""How long the counts of a node stand that does not renew them."""

FIELDS_AT_ONCE = 1000
"""How many counts one call writes. Redis does nothing else meanwhile."""

ADMIT, OPEN = Script("admit"), Script("open")

Field: TypeAlias = tuple[str, str]
"""A kind of things, and the user who has them."""


class TooEarly(Struct, frozen=True):
    """The user asks too often: the request comes so many seconds too early."""

    seconds: float


class Full(Struct, frozen=True):
    """A limit is reached: the one at this index of what was wanted."""

    index: int


class OpenCounts:
    """What this node has open; the other nodes are asked before it becomes more."""

    def __init__(self, link: Link, node: str) -> None:
        self._link = link
        self._node = node
        self._key = open_key(node)
        self._kinds: dict[str, Counts] = {}
        self._changed: set[Field] = set()
        self._is_whole = False
        """Whether Redis has been given all counts, and has refused none since then."""

        link.on_up.append(self._write_all)

    def make(self, kind: str) -> Counts:
        """The counts of a further kind."""
        counts = self._kinds[kind] = _Watched(lambda user: self._change((kind, user)))
        return counts

    async def admit(
        self, *wanted: tuple[Field, float], user: str = "", per_minute: int | None = None
    ) -> TooEarly | Full | None:
        """Ask whether this node may have what it has just counted; why it may not. The caller then counts it no more.

        Args:
            wanted: the counts that have grown, each with its limit over all nodes.
            user: whose request this is.
            per_minute: how many requests this user may make in a minute; None: requests are not counted.

        Raises:
            Unavailable: Redis cannot be asked now.
        """
        args: list[Word] = [self._node, COUNTS_MS, per_minute or 0]
        for field, limit in wanted:
            args += *self._written(field), limit
            self._changed.discard(field)
        try:
            reply: int = await self._link.call(ADMIT, [NODES, self._key, requests_key(user)], args)
        except Unavailable:
            self._is_whole = False
            raise
        if reply > 0:
            return TooEarly(reply / 1_000_000)
        return Full(-reply - 1) if reply else None

    def renew(self) -> None:
        """Let the counts stand for ``COUNTS_MS`` from now, and write them all where Redis does not have them all."""
        self._write()
        if self._is_whole:
            self._post([], partial(self._compare, sum(map(len, self._kinds.values()))))
        else:
            self._write_all()

    def _compare(self, expected: int, count: int) -> None:
        if count != expected:  # After a FLUSHALL, or where this node was thought to be gone.
            self._write_all()

    def _change(self, field: Field) -> None:
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._write)
        self._changed.add(field)

    def _write(self) -> None:
        """Write what has changed in this turn of the loop, however often it has changed."""
        changed, self._changed = self._changed, set()
        if changed and self._link.is_up:  # Else all is written when it is.
            self._post(changed)

    def _write_all(self) -> None:
        self._is_whole = True
        fields = [(kind, user) for kind, counts in self._kinds.items() for user in counts]
        for start in range(0, max(1, len(fields)), FIELDS_AT_ONCE):
            self._post(fields[start : start + FIELDS_AT_ONCE], is_anew=not start)

    def _post(
        self, fields: Collection[Field], on_count: Callable[[int], None] | None = None, *, is_anew: bool = False
    ) -> None:
        """Write counts; ``on_count`` is told how many Redis has of this node."""
        args: list[Word] = [COUNTS_MS, int(is_anew)]
        for field in fields:
            args += self._written(field)

        def on_reply(reply: Any) -> None:
            if isinstance(reply, Exception):
                self._is_whole = False
            elif on_count is not None:
                on_count(reply)

        self._link.post(OPEN, [self._key], args, on_reply)

    def _written(self, field: Field) -> tuple[str, int]:
        kind, user = field
        return f"{kind}:{user}", self._kinds[kind][user]


class _Watched(Counts):
    """Counts that tell whose count has changed."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        super().__init__()
        self._on_change = on_change

    def add(self, user: str, count: int) -> None:
        super().add(user, count)
        self._on_change(user)
