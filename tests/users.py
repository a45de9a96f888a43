"""Users for tests: tokens of all kinds, and a server that asks for them."""

import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

import jwt

from tests.live import LiveServer, live_server

SECRET = "a secret of more than 32 bytes for tests"
OTHER_SECRET = "another secret of more than 32 bytes ..."


def token(user: Any = "ann", seconds: float = 3600, *, secret: str = SECRET, **claims: Any) -> str:
    """A token of HS256; a claim of None is left out."""
    said = {"sub": user, "exp": time() + seconds} | claims
    return jwt.encode({name: value for name, value in said.items() if value is not None}, secret, "HS256")


def unsigned(user: str = "ann", algorithm: str = "none") -> str:
    """A token that says that it needs no signature."""
    parts = {"alg": algorithm, "typ": "JWT"}, {"sub": user, "exp": time() + 3600}
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def of(user: str, seconds: float = 3600) -> dict[str, str]:
    """The header that lets a user in."""
    return bearer(token(user, seconds))


@asynccontextmanager
async def guarded_server(upstream_url: str | None, **settings: Any) -> AsyncIterator[LiveServer]:
    """A server that knows its users by ``SECRET``."""
    async with live_server(upstream_url, **({"auth": "jwt", "jwt_secret": SECRET} | settings)) as server:
        yield server
