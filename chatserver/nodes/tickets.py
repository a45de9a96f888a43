"""Tickets over all nodes: issued on one, redeemed on any, once."""

from hashlib import sha256

from chatserver.auth.tickets import TICKET_SECONDS, TICKETS_LIMIT, Ticket, new_ticket, too_many_tickets
from chatserver.auth.tokens import Identity
from chatserver.errors import Unauthenticated
from chatserver.nodes.keys import ticket_key, tickets_key
from chatserver.nodes.link import Link, Script

ISSUE, REDEEM = Script("issue"), Script("redeem")


class SharedTickets:
    """The tickets of all nodes. Redis holds a hash of each: whoever reads Redis can redeem none."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def issue(self, identity: Identity) -> Ticket:
        issued = new_ticket(identity)
        name = _name(issued.ticket)
        holder = f"{identity.expires_at!r} {identity.user}"
        is_kept = await self._link.call(
            ISSUE,
            [ticket_key(name), tickets_key(identity.user)],
            [holder, name, TICKET_SECONDS * 1000, TICKETS_LIMIT],
        )
        if not is_kept:
            raise too_many_tickets()
        return issued

    async def redeem(self, ticket: str) -> Identity:
        name = _name(ticket)
        holder: bytes | None = await self._link.call(REDEEM, [ticket_key(name)], [name])
        if holder is None:
            raise Unauthenticated
        expires_at, _, user = holder.decode().partition(" ")
        identity = Identity(user, float(expires_at))
        if identity.is_expired:
            raise Unauthenticated
        return identity


def _name(ticket: str) -> str:
    return sha256(ticket.encode()).hexdigest()
