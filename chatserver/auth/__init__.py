"""Authentication: who sends a request or opens a WebSocket, and from which page.

A token (`Authorization: Bearer`, or the cookie) or a ticket (`?ticket=`) names the user, each for a limited time. In
`none` mode everybody is one local user, without end.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, TypeAlias
from urllib.parse import parse_qs

from chatserver.auth.origins import Origins, header
from chatserver.auth.tickets import LocalTickets, Ticket, Tickets
from chatserver.auth.tokens import LOCAL_USER, Identity, Tokens, is_user, tokens_of
from chatserver.errors import Forbidden, Unauthenticated
from chatserver.settings import Settings

__all__ = ["COOKIE", "LOCAL_USER", "Gate", "Identity", "TellUser", "Ticket"]

logger = logging.getLogger(__name__)

COOKIE = "chatserver_token"
SAFE_METHODS = frozenset({"GET", "HEAD"})


TellUser: TypeAlias = Callable[[Mapping[str, Any]], str | Awaitable[str | None] | None]
"""Foreign code that tells the user of a connection by its scope; None: it is nobody's."""


class Gate:
    """Checks the `Host` and the `Origin` of a connection, and finds its user."""

    def __init__(self, settings: Settings, tell_user: TellUser | None = None) -> None:
        self.origins = Origins(settings)
        self.tickets: Tickets = LocalTickets()
        self._tokens: Tokens | None = tokens_of(settings)
        self._tell_user = tell_user

    async def keep_fresh(self) -> None:
        """Keep the issuer's keys up to date, for as long as the server runs."""
        if self._tokens is not None:
            await self._tokens.keep_fresh()

    async def identify(self, scope: Mapping[str, Any], *, by_ticket: bool = False) -> Identity:
        """The user of a connection, by its first credential: a ticket (with ``by_ticket``), the header, the cookie.

        Where foreign code tells the user, only a ticket comes before that.

        Raises:
            Unauthenticated: the credential is missing or not valid.
            Forbidden: a cookie came with a request that a foreign page could have sent.
            Unavailable: tokens cannot be checked now.
        """
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True) if by_ticket else {}
        if "ticket" in query:
            return await self.tickets.redeem(",".join(query["ticket"]))
        if self._tell_user is not None:
            return await _told(self._tell_user(scope))
        if self._tokens is None:
            return Identity(LOCAL_USER)
        if credentials := header(scope["headers"], b"authorization"):
            scheme, _, token = credentials.partition(" ")
            return await self._tokens.identity(token.strip() if scheme.lower() == "bearer" else "")
        if token := _cookie(header(scope["headers"], b"cookie")):
            # A browser adds its cookies to the requests of any page, and the `Origin` to all but plain reading.
            if scope.get("method") not in SAFE_METHODS and not header(scope["headers"], b"origin"):
                raise Forbidden("a cookie needs an `Origin` beside it")
            return await self._tokens.identity(token)
        raise Unauthenticated


async def _told(told: str | Awaitable[str | None] | None) -> Identity:
    """The identity that foreign code has told of.

    Raises:
        Unauthenticated: it is nobody, or no user may have the name; a name may come from outside, as that in a token.
        TypeError: what was told is no name.
    """
    user: Any = await told if isawaitable(told) else told
    if user is None:
        raise Unauthenticated
    if not isinstance(user, str):
        raise TypeError(f"`user` gives a name or None, and not a `{type(user).__name__}`")
    if not is_user(user):
        logger.warning("`user` gave a name that is none: it has 1 to 255 printable characters, and is not `local`")
        raise Unauthenticated
    return Identity(user)


def _cookie(cookies: str) -> str:
    """The value of our cookie, whatever other cookies stand beside it; of several, all values with commas between."""
    pairs = (cookie.partition("=") for cookie in cookies.split(";"))
    return ", ".join(value.strip().strip('"') for name, _, value in pairs if name.strip() == COOKIE)
