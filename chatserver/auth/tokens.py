"""Tokens: JSON Web Tokens that somebody else issues; here they are only checked.

The algorithms are pinned to the kind of key: HS256 to the secret, public-key ones to a key set, so that no token can
choose how it is checked.
"""

import asyncio
import logging
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from msgspec import Struct

from chatserver.errors import Unauthenticated, Unavailable
from chatserver.settings import Settings
from chatserver.upstream.body import read_into

if TYPE_CHECKING:
    from jwt import PyJWK

logger = logging.getLogger(__name__)

LOCAL_USER = "local"
"""Everybody in `none` mode. A token for this name would inherit what anybody has said there: none is good."""

USER_CHARS_LIMIT = 255
LEEWAY_SECONDS = 10
"""How much the issuer's clock may be ahead of ours. At `exp` a token is over, to the second."""

PUBLIC_KEY_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
KEYS_FRESH_SECONDS = 300.0
"""Between two fetches of keys that are used: how long one that its issuer has withdrawn is still good."""

KEYS_AGAIN_SECONDS = 10.0
"""Between two fetches at least, however many tokens name keys that are not there."""

KEYS_TIMEOUT_SECONDS = 5.0
KEY_SET_BYTES_LIMIT = 256 * 1024

_NO_KEYS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What comes of documents that are no key sets."""


class Identity(Struct, frozen=True):
    """A user, and until when (Unix time) this is known."""

    user: str
    expires_at: float = inf

    @property
    def is_expired(self) -> bool:
        return self.expires_at <= time()


class Tokens(Protocol):
    """A way to check tokens."""

    async def keep_fresh(self) -> None:
        """Keep up with whoever issues tokens, for as long as the server runs."""
        ...

    async def identity(self, token: str) -> Identity:
        """Whom a token names.

        Raises:
            Unauthenticated: it is not good.
            Unavailable: it cannot be checked now.
        """
        ...


def tokens_of(settings: Settings) -> Tokens | None:
    """How tokens are checked; None: there are none."""
    if settings.auth == "none":
        return None
    claims = _Claims(settings.jwt_audience, settings.jwt_issuer)
    if settings.jwks_url is not None:
        return KeySet(settings.jwks_url, claims)
    return Secret(settings.jwt_secret or "", claims)  # PyJWT warns of one that is too short.


class Secret:
    """Tokens that are signed with a secret which the issuer and this server share."""

    def __init__(self, secret: str, claims: "_Claims") -> None:
        self._secret = secret
        self._claims = claims

    async def keep_fresh(self) -> None:
        """A secret stays as it is."""

    async def identity(self, token: str) -> Identity:
        return self._claims.checked(token, self._secret, "HS256")


class KeySet:
    """Tokens that are signed with private keys whose public ones are at a URL; fetched when they are needed."""

    def __init__(self, url: str, claims: "_Claims") -> None:
        self._url = url
        self._claims = claims
        self._keys: dict[str | None, PyJWK] = {}
        self._tried_at = -inf
        self._is_well = True
        self._fetching: asyncio.Task[None] | None = None

    async def identity(self, token: str) -> Identity:
        key = await self._key(_kid(token))
        return self._claims.checked(token, key, key.algorithm_name)

    async def keep_fresh(self) -> None:
        while True:
            await anyio.sleep(KEYS_FRESH_SECONDS if self._is_well else KEYS_AGAIN_SECONDS)
            if self._keys:
                await self._fetched()

    async def _key(self, kid: str | None) -> "PyJWK":
        """The key of this name. One that is known waits for nothing, whatever becomes of the server of the keys."""
        if self._find(kid) is None:
            await self._fetched()
        if not self._keys:
            raise Unavailable("the keys that tokens are checked with cannot be fetched")
        key = self._find(kid)
        if key is None:
            raise Unauthenticated
        return key

    async def _fetched(self) -> None:
        """Wait for the fetch that is going, else for a new one unless it would come too soon."""
        if self._fetching is None and monotonic() - self._tried_at > KEYS_AGAIN_SECONDS:
            self._tried_at = monotonic()
            self._fetching = asyncio.create_task(self._fetch())  # Not of who waits, and may leave.
        if self._fetching is not None:
            await asyncio.wait([self._fetching])

    def _find(self, kid: str | None) -> "PyJWK | None":
        """The key of this name. A token that names none means the only one."""
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        """Take the key set as it is now; while it cannot be had, the keys of the last one are still good."""
        import httpx2  # Only who has a key set needs these.
        import jwt

        try:
            with anyio.fail_after(KEYS_TIMEOUT_SECONDS):
                found = jwt.PyJWKSet.from_json(await self._document())
            usable = [key for key in found if key.algorithm_name in PUBLIC_KEY_ALGORITHMS]
            keys = {key.key_id: key for key in usable if key.public_key_use in (None, "sig")}
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, *_NO_KEYS, jwt.PyJWTError) as error:
            if self._is_well or not self._keys:  # Once is enough of a set that can do without.
                # Only its kind: the texts of such errors quote URLs and documents.
                logger.warning("the key set cannot be fetched: %s", type(error).__name__)
            self._is_well = False
        else:
            self._keys, self._is_well = keys, True
        finally:
            self._fetching = None

    async def _document(self) -> str:
        import httpx2

        async with httpx2.AsyncClient() as client, client.stream("GET", self._url) as response:
            response.raise_for_status()
            document = bytearray()
            if not await read_into(document, response, KEY_SET_BYTES_LIMIT):
                raise ValueError("too large")
        return document.decode()


class _Claims(Struct, frozen=True):
    """What a token must say beside `sub`, where the operator has said so."""

    audience: str | None
    issuer: str | None

    def checked(self, token: str, key: Any, algorithm: str) -> Identity:
        """The identity in a token that was signed with this key and says what it must.

        Raises:
            Unauthenticated: it was not, or does not; which of the two is nobody's business.
        """
        import jwt

        try:
            said = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["sub"]},
            )
            identity = Identity(said["sub"], float(said.get("exp", inf)))
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise Unauthenticated from None
        # Printable: no NUL for a database to choke on, no line end for a log.
        is_name = identity.user.strip() and len(identity.user) <= USER_CHARS_LIMIT and identity.user.isprintable()
        is_for_others = self.audience is None and "aud" in said  # To PyJWT, an empty one is none.
        if not is_name or identity.user == LOCAL_USER or is_for_others or not identity.expires_at > time():
            raise Unauthenticated
        return identity


def _kid(token: str) -> str | None:
    """The name of the key that a token claims to be signed with."""
    import jwt

    try:
        return jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, TypeError):
        raise Unauthenticated from None
