"""Membership: which nodes live, and who ends the runs of one that is gone.

Each node renews a lease in Redis, and looks for the leases of the others. A node whose lease was missing in all looks
for a while is gone. While Redis does not answer, nobody is: a look without an answer begins the count anew, and whoever
lives has a lease again with the next look. Several nodes may take the runs of one that is gone over: of each run, the
first end that is stored counts.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence, Set
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, Protocol

import anyio
from redis.exceptions import ResponseError

from chatserver.answer import Answer
from chatserver.errors import Unavailable
from chatserver.log import EventLog
from chatserver.log.journal import catch_up
from chatserver.nodes.follower import TAILS
from chatserver.nodes.keys import NODES, cancels_key, node_key, owner_key
from chatserver.nodes.link import Link, Script, check_settings
from chatserver.nodes.publisher import RUN_TTL_SECONDS
from chatserver.sessions.witness import Left

logger = logging.getLogger(__name__)

BETWEEN_LOOKS_SECONDS = 1.0
LEASE_SECONDS = 4.0
MISSED_SECONDS = 3.0
"""How long a lease is missing in all looks before its node is gone: at most 8 s after the node's last sign of life."""

CUT_OFF_SECONDS = 10.0
"""How long Redis may not answer before a node ends its runs: others may long have taken the node for gone."""

LEAVE_SECONDS = 1.0
"""How long a node that ends waits for Redis to hear of it."""

LOOK, TAKE = Script("look"), Script("take")


class Kept(Protocol):
    """The journal, as far as it has to do with runs whose owners are gone."""

    async def follow(self, run_id: str) -> EventLog | None:
        """The log of a run as it was published; None: nothing was."""
        ...

    def announce(self, run_id: str) -> None:
        """Tell whoever follows the run that it is over, and stored."""
        ...


class Membership:
    """This node among the others; to the leases of the database, it is their ``Witness``."""

    is_fence = True

    def __init__(self, link: Link, node: str) -> None:
        self.node = node
        self.journal: Kept | None = None
        """Where the runs of nodes that are gone are kept; None: they cannot be read yet."""

        self.on_look: list[Callable[[Sequence[str]], None]] = []
        """Called after each look, with the runs of this node that are to be cancelled."""

        self.on_forgotten: Callable[[], None] = _nobody
        """Called when Redis has lost its data, or when another node may have taken runs of this one."""

        self.on_cut_off: Callable[[], None] = _nobody
        """Called again and again while Redis does not answer, as soon as others may take this node for gone."""

        self._on_gone: Callable[[], None] = _nobody
        self._link = link
        self._silent_seconds = 0.0
        self._asked_at = 0.0
        self._looked_at = 0.0  # When the last look was sent that has an answer.
        self._is_looking = False
        self._living: Set[str] = frozenset()
        self._known = set[str]()  # All that were ever seen, until they are gone and have left nothing.
        self._cancels: Sequence[str] = ()  # What the last reply told to cancel: a reply that is lost is repeated.
        self._missing: dict[str, float] = {}  # Since which look the lease of each is missing.
        self._strangers: dict[str | None, float] = {}  # Since which look the database names each, and Redis does not.

    async def keep(self) -> None:
        """Renew the lease and look for the others, for ever."""
        while True:
            await anyio.sleep(BETWEEN_LOOKS_SECONDS)
            was_cut_off = self._is_cut_off
            self._silent_seconds += BETWEEN_LOOKS_SECONDS  # Not what a clock says: this process may have been frozen.
            if self._is_cut_off and not was_cut_off:
                logger.error("Redis does not answer: others may take this node for gone, so its running answers end")
            if self._is_cut_off:
                self.on_cut_off()
            self.look()

    @property
    def _is_cut_off(self) -> bool:
        return self._silent_seconds > CUT_OFF_SECONDS

    def look(self) -> None:
        """Renew the lease and look for the others, unless a look has no answer yet."""
        if not self._is_looking:
            self._is_looking = True
            self._asked_at = monotonic()
            self._link.post(LOOK, *self._asked(), self._saw)

    def _asked(self) -> tuple[Sequence[str], Sequence[str | int]]:
        keys = NODES, node_key(self.node), cancels_key(self.node)
        return keys, (self.node, round(LEASE_SECONDS * 1000), node_key(""), *self._cancels)

    def _saw(self, reply: Any) -> None:
        self._is_looking = False
        if isinstance(reply, Exception):
            self._living, self._missing, self._strangers = frozenset(), {}, {}
            return
        self._looked_at, now = self._asked_at, monotonic()
        if self._is_cut_off:
            logger.warning("Redis answers again: this node takes runs")
        self._silent_seconds = 0.0
        living, missing, self._cancels = ([each.decode() for each in part] for part in reply[1:])
        self._living = frozenset(living)
        self._known.update(living, missing)
        forgotten = self._known.difference(living, missing)  # With the data of Redis: their leases might hold still.
        since = dict.fromkeys(missing, now) | dict.fromkeys(forgotten, now + LEASE_SECONDS)
        self._missing = {node: self._missing.get(node, at) for node, at in since.items()}
        if self._missing:  # Where a lock shows that a node is dead, its runs end now.
            self._on_gone()
        if reply[0]:
            self.on_forgotten()
        for each in self.on_look:
            each(self._cancels)

    @property
    def is_answered(self) -> bool:
        """Whether Redis has answered the last look, and is connected still."""
        return self._link.is_up and bool(self._living)

    def _gone(self) -> set[str]:
        """Whose lease was missing for long, counted from the reply to the first look to the sending of the last one.

        So it is counted too short where this process was frozen, or had no processor, and never too long.
        """
        return {node for node, since in self._missing.items() if self._looked_at - since >= MISSED_SECONDS}

    async def join(self) -> None:
        """Be one of the nodes from now on, or from when Redis can be used.

        Raises:
            SettingsError: as ``check_settings``.
        """
        self._asked_at = monotonic()
        try:
            self._saw(await self._link.call(LOOK, *self._asked()))
        except (ResponseError, Unavailable) as error:
            check_settings(error.__cause__ if isinstance(error, Unavailable) else error)

    async def leave(self) -> None:
        """Be none of the nodes any more: what this node has left, if anything, is ended at once."""
        with suppress(Unavailable), anyio.move_on_after(LEAVE_SECONDS, shield=True):
            await self._link.command("DEL", node_key(self.node))
            await self._link.command("SREM", NODES, self.node)

    # What the leases of the database ask.

    def watch(self, on_gone: Callable[[], None]) -> None:
        self._on_gone = on_gone

    async def gone(self, owners: Set[str | None], silent: Set[str | None], dead: Set[str | None]) -> Set[str | None]:
        """As ``Witness``. Of whoever was never seen here, Redis may have lost the lease: then it comes again."""
        if not self.is_answered:
            raise Unavailable("Redis does not say who lives")
        gone, at = self._gone(), self._looked_at
        if forgotten := gone - owners:
            await self._link.command("SREM", NODES, *forgotten)
            self._known -= forgotten
        self._strangers = {each: self._strangers.get(each, at) for each in owners - self._known}
        unseen = {each for each, since in self._strangers.items() if at - since >= LEASE_SECONDS + MISSED_SECONDS}
        return (owners & gone) | (silent & unseen) | (dead - self._living)

    def mistaken(self) -> None:
        self.on_forgotten()

    async def take(self, run_ids: Sequence[str], owner: str | None) -> dict[str, Left]:
        if self.journal is None:
            raise Unavailable("the journal cannot be read yet")
        keys = node_key(owner or ""), cancels_key(owner or ""), *map(owner_key, run_ids)
        taken, cancelled = await self._link.call(TAKE, keys, (self.node, owner or "", RUN_TTL_SECONDS))
        left = dict[str, Left]()
        for run_id in [run_ids[place - 1] for place in taken]:
            left[run_id] = Left(await self._said(self.journal, run_id), run_id.encode() in cancelled)
        return left

    async def _said(self, journal: Kept, run_id: str) -> Answer | None:
        """All that was published of a run of which nothing is published any more."""
        (tail,) = await self._link.call(TAILS, (), (run_id,))
        if (log := await journal.follow(run_id)) is None:
            return None
        await catch_up(log, tail)
        return log.answer()

    async def ended(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            if self.journal is not None:
                self.journal.announce(run_id)


def _nobody(*_: object) -> None:
    """Nobody is told."""


@asynccontextmanager
async def open_membership(link: Link, node: str) -> AsyncIterator[Membership]:
    """Be a node until the end of the block.

    Raises:
        SettingsError: as ``check_settings``.
    """
    membership = Membership(link, node)
    await membership.join()
    link.on_up.append(membership.look)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(membership.keep)
        try:
            yield membership
        finally:
            tasks.cancel_scope.cancel()
            await membership.leave()
