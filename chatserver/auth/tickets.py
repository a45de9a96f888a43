"""Tickets: for browsers where they cannot send a header. A ticket works once, since URLs end up in logs."""

import secrets
from collections import OrderedDict
from math import ceil
from time import monotonic, time
from typing import Protocol

from msgspec import Struct

from chatserver.auth.tokens import Identity
from chatserver.errors import TooMany, Unauthenticated
from chatserver.limits import Counts

TICKET_BYTES = 32
TICKET_SECONDS = 60
TICKETS_LIMIT = 100
"""How many tickets one user may hold at a time: as many as connections."""


class Ticket(Struct, frozen=True):
    """What `POST /chat/tickets` answers; ``expires_in`` is in seconds."""

    ticket: str
    expires_in: int

    def __repr__(self) -> str:
        return f"Ticket(ticket='***', expires_in={self.expires_in})"


def new_ticket(identity: Identity) -> Ticket:
    """A ticket of 256 random bits. It lasts no longer than the credential that it was asked for with."""
    expires_in = ceil(min(TICKET_SECONDS, max(0, identity.expires_at - time())))
    return Ticket(secrets.token_urlsafe(TICKET_BYTES), expires_in)


def too_many_tickets() -> TooMany:
    """The refusal of a further ticket."""
    return TooMany(f"at most {TICKETS_LIMIT} tickets at a time", retry_after=TICKET_SECONDS)


class Tickets(Protocol):
    """All tickets that are neither used nor too old."""

    async def issue(self, identity: Identity) -> Ticket:
        """A new ticket for a user.

        Raises:
            TooMany: this user has enough of them.
            Unavailable: tickets cannot be kept now.
        """
        ...

    async def redeem(self, ticket: str) -> Identity:
        """Who asked for the ticket. It is used up by this, also for whoever is cancelled in here.

        Raises:
            Unauthenticated: it was never issued, is used up or too old.
            Unavailable: nobody can tell now.
        """
        ...


class _Issued(Struct, frozen=True):
    identity: Identity
    until: float
    """On the clock that nobody sets."""


class LocalTickets:
    """The tickets of one process."""

    def __init__(self) -> None:
        # They all last equally long: the oldest is the first, and an ordered dict finds it at once.
        self._tickets: OrderedDict[str, _Issued] = OrderedDict()
        self._users = Counts()

    async def issue(self, identity: Identity) -> Ticket:
        self._forget_old()
        if self._users[identity.user] >= TICKETS_LIMIT:
            raise too_many_tickets()
        issued = new_ticket(identity)
        self._tickets[issued.ticket] = _Issued(identity, monotonic() + TICKET_SECONDS)
        self._users.add(identity.user, 1)
        return issued

    async def redeem(self, ticket: str) -> Identity:
        if ticket not in self._tickets:
            raise Unauthenticated
        held = self._forget(ticket)
        if held.until <= monotonic() or held.identity.is_expired:
            raise Unauthenticated
        return held.identity

    def _forget_old(self) -> None:
        now = monotonic()
        while self._tickets and self._tickets[oldest := next(iter(self._tickets))].until <= now:
            self._forget(oldest)

    def _forget(self, ticket: str) -> _Issued:
        held = self._tickets.pop(ticket)
        self._users.add(held.identity.user, -1)
        return held
