"""Where Redis is: its URL, and a connection that is open, authenticated and in the right database.

``redis://``, ``rediss://`` (TLS) and ``unix://`` are redis-py's. With Sentinels the URL is
``redis+sentinel://user:password@host:port,host:port/service/database``, or ``rediss+sentinel://``. User and password
are those of Redis; those of the Sentinels are the parameters ``sentinel_username`` and ``sentinel_password``.
"""

from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Sentinel
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.exceptions import RedisError

REDIS_CONNECT_SECONDS = 2.0
"""How long each step of connecting may take."""

SENTINEL_PORT = 26379

CONNECTION_OPTIONS: dict[str, Any] = {
    "protocol": 3,  # Replies, and messages of channels, over one connection in one order. Redis 6 has it.
    "socket_connect_timeout": REDIS_CONNECT_SECONDS,
    "socket_timeout": REDIS_CONNECT_SECONDS,
    "client_name": "chatserver",
    "driver_info": None,
}


class Address:
    """One Redis, or the Sentinels that know which of several is the master."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            ValueError: it is no such URL. The message does not quote it.
        """
        scheme, _, rest = url.partition("://")
        base, _, kind = scheme.partition("+")
        self._sentinel: Sentinel | None = None
        try:
            if kind == "sentinel" and base in ("redis", "rediss"):
                rest = self._with_sentinels(rest)
            elif kind:
                raise ValueError
            options: dict[str, Any] = dict(parse_url(f"{base}://{rest}"))
            self._options = options | CONNECTION_OPTIONS
            self._make: type[AbstractConnection] = self._options.pop("connection_class", Connection)
            self._make(**self._options)
        except (ValueError, TypeError):  # The latter: a parameter that redis-py does not have.
            raise ValueError("is no redis://, rediss://, unix:// or redis+sentinel:// URL") from None

    def _with_sentinels(self, rest: str) -> str:
        """Keep the Sentinels of a URL; the rest of the URL without them."""
        place, _, query = rest.partition("?")
        who, at, where = place.rpartition("@")
        hosts, _, path = where.partition("/")
        self._service, _, database = path.partition("/")
        if not self._service:
            raise ValueError
        found = [urlsplit(f"//{host}") for host in hosts.split(",")]
        parameters = [each for each in query.split("&") if each]
        of_sentinels = [each for each in parameters if each.startswith("sentinel_")]
        of_redis = [each for each in parameters if each not in of_sentinels]
        own = dict(parse_url("redis://?" + "&".join(each.removeprefix("sentinel_") for each in of_sentinels)))
        own |= {name: CONNECTION_OPTIONS[name] for name in ("socket_connect_timeout", "socket_timeout")}
        places = [(each.hostname, each.port or SENTINEL_PORT) for each in found]
        self._sentinel = Sentinel(places, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
        return f"{who}{at}/{database}?{'&'.join(of_redis)}"

    async def connect(self) -> AbstractConnection:
        """A connection to a Redis that answers.

        Raises:
            RedisError, OSError: there is none now.
        """
        options = self._options
        if self._sentinel is not None:
            host, port = await self._sentinel.discover_master(self._service)
            options = options | {"host": host, "port": port}
        connection = self._make(**options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("PING")  # Refused by a Redis that is still reading its data.
            await connection.read_response()
        except BaseException as error:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
            if isinstance(error, RuntimeError):  # So uvloop calls a socket that was closed before it was written to.
                raise ConnectionResetError(str(error)) from None
            raise
        return connection

    async def close(self) -> None:
        """Let go of the Sentinels."""
        if self._sentinel is not None:
            await self._sentinel.aclose()
