"""Tokens: JSON Web Tokens that another service issues; this module only checks them.

The algorithms are pinned to the kind of key: HS256 to the secret, public-key algorithms to a key set. So a token cannot
choose the algorithm that checks it.
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
"""The one user of `none` mode. A token for this name is refused: it would inherit all sessions of that mode."""

USER_CHARS_LIMIT = 255
LEEWAY_SECONDS = 10
"""How far the issuer's clock may be ahead of this server's. `exp` has no leeway: a token expires to the second."""

PUBLIC_KEY_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
KEYS_FRESH_SECONDS = 300.0
"""Between two fetches of keys in use. So long a key still works after its issuer has withdrawn it."""

KEYS_AGAIN_SECONDS = 10.0
"""Between two fetches at least, however many tokens name unknown keys."""

KEYS_TIMEOUT_SECONDS = 5.0
KEY_SET_BYTES_LIMIT = 256 * 1024

_NO_KEYS = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What parsing a document raises that is no key set."""


class Identity(Struct, frozen=True):
    """A user, and the Unix time at which the user's credential expires."""

    user: str
    expires_at: float = inf

    @property
    def is_expired(self) -> bool:
        return self.expires_at <= time()


def is_user(name: str) -> bool:
    """Whether a user may have this name."""
    # Printable: PostgreSQL refuses NUL, and a line end would forge a line of the log.
    return bool(name.strip()) and len(name) <= USER_CHARS_LIMIT and name.isprintable() and name != LOCAL_USER


class Tokens(Protocol):
    """A way to check tokens."""

    async def keep_fresh(self) -> None:
        """Keep the issuer's keys up to date, for as long as the server runs."""
        ...

    async def identity(self, token: str) -> Identity:
        """The user that a token names.

        Raises:
            Unauthenticated: the token is not valid.
            Unavailable: the token cannot be checked now.
        """
        ...


def tokens_of(settings: Settings) -> Tokens | None:
    """How tokens are checked; None: there are no tokens."""
    if settings.auth != "jwt":
        return None
    claims = _Claims(settings.jwt_audience, settings.jwt_issuer)
    if settings.jwks_url is not None:
        return KeySet(settings.jwks_url, claims)
    return Secret(settings.jwt_secret or "", claims)  # PyJWT warns of a secret that is too short.


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
    """Tokens that are signed with private keys. The public keys are at a URL and are fetched when they are needed."""

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
        """The key of this name. A known key waits for nothing, whatever the state of the key set's server."""
        if self._find(kid) is None:
            await self._fetched()
        if not self._keys:
            raise Unavailable("the keys for checking tokens cannot be fetched")
        key = self._find(kid)
        if key is None:
            raise Unauthenticated
        return key

    async def _fetched(self) -> None:
        """Wait for the fetch under way, or else start one, unless the last one began too recently."""
        if self._fetching is None and monotonic() - self._tried_at > KEYS_AGAIN_SECONDS:
            self._tried_at = monotonic()
            self._fetching = asyncio.create_task(
                self._fetch()
            )  # Its own task: whoever waits for the fetch may be cancelled.
        if self._fetching is not None:
            await asyncio.wait([self._fetching])

    def _find(self, kid: str | None) -> "PyJWK | None":
        """The key of this name. A token without a key's name means the only key there is."""
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        """Fetch the key set. While the fetch fails, the keys of the last key set stay valid."""
        import httpx2  # Imported here: only a server with a key set needs them.
        import jwt

        try:
            with anyio.fail_after(KEYS_TIMEOUT_SECONDS):
                found = jwt.PyJWKSet.from_json(await self._document())
            usable = [key for key in found if key.algorithm_name in PUBLIC_KEY_ALGORITHMS]
            keys = {key.key_id: key for key in usable if key.public_key_use in (None, "sig")}
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, *_NO_KEYS, jwt.PyJWTError) as error:
            if self._is_well or not self._keys:  # Once is enough while the last key set still serves.
                # Only the kind of error: the texts of such errors quote URLs and documents.
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
    """The claims that a token must have beside `sub`, where the operator demands them."""

    audience: str | None
    issuer: str | None

    def checked(self, token: str, key: Any, algorithm: str) -> Identity:
        """The identity in a token that was signed with this key and has the claims that it must have.

        Raises:
            Unauthenticated: the signature or a claim is wrong; the client is not told which.
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
        is_for_others = self.audience is None and "aud" in said  # PyJWT takes an empty `aud` for none.
        if not is_user(identity.user) or is_for_others or not identity.expires_at > time():
            raise Unauthenticated
        return identity


def _kid(token: str) -> str | None:
    """The name of the key that a token claims to be signed with."""
    import jwt

    try:
        return jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, TypeError):
        raise Unauthenticated from None
