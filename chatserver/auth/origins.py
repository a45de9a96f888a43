"""`Host` and `Origin`: a foreign web page is refused, also by a server without users."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from chatserver.errors import Forbidden
from chatserver.settings import LOOPBACK_HOSTS, WILDCARD_HOSTS, Settings
from chatserver.syntax import address_of

PROBES = ("/livez", "/readyz")
"""Load balancers ask for these paths without the server's name or without any `Host`. The answers tell of no user."""

PROXY_HEADERS = (b"forwarded", b"via", b"x-forwarded-", b"x-real-ip")
"""How the names of headers begin by which a proxy shows."""

_NO_HOST = re.compile(r"[^a-z0-9.:_\[\]-]")


class Origins:
    """Checks `Host` and `Origin`: neither DNS rebinding nor a foreign page gets through."""

    def __init__(self, settings: Settings) -> None:
        hosts = (*LOOPBACK_HOSTS, settings.host, *settings.allowed_hosts)
        self._hosts = {_without_brackets(host.lower()) for host in hosts}
        self._is_everywhere = settings.host in WILDCARD_HOSTS
        self.allowed = {_as_sent(origin.lower()) for origin in settings.allowed_origins}

    def check(self, scope: Mapping[str, Any]) -> None:
        """Check a connection.

        Raises:
            Forbidden: the origin is foreign, or the host is not this server's.
        """
        headers = scope["headers"]
        host = header(headers, b"host").lower()  # Two `Host` headers, joined by a comma, are no host.
        # DNS rebinding needs a name: a server on all addresses of a machine may be asked by any of these addresses.
        by_address = self._is_everywhere and address_of(_name(host)) is not None
        is_ours = host in self._hosts or _name(host) in self._hosts or by_address
        if not is_ours and not is_probe(scope):
            raise Forbidden("this server does not answer for that host")
        origin = header(headers, b"origin").lower()
        if origin and origin not in self.allowed and not (is_ours and _is_own(origin, host, scope["scheme"])):
            raise Forbidden("this origin is not allowed")


def is_probe(scope: Mapping[str, Any]) -> bool:
    """Whether the request is a load balancer's health check."""
    return scope["path"].removeprefix(scope.get("root_path", "")) in PROBES


def is_from_own_machine(scope: Mapping[str, Any]) -> bool:
    """Whether a program of this very machine asks, and no proxy that runs on this machine for somebody else.

    A proxy shows by its headers, or by the public name in `Host`; nginx that is told nothing, by HTTP/1.0.
    """
    client = address_of(scope["client"][0] or "") if scope["client"] else None
    host = _name(header(scope["headers"], b"host").lower())
    is_by_proxy = any(name.startswith(PROXY_HEADERS) for name, _ in scope["headers"]) or scope["http_version"] == "1.0"
    return client is not None and client.is_loopback and _is_loopback(host) and not is_by_proxy


def _is_loopback(host: str) -> bool:
    address = address_of(host)
    return host in LOOPBACK_HOSTS if address is None else address.is_loopback


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """A header's value; of a header that comes twice, all values with commas between."""
    return b", ".join(value for key, value in headers if key == name).decode("latin-1").strip()


@lru_cache(maxsize=16)  # Few entries: the client chooses the text, and it may be long.
def _name(host: str) -> str:
    """The host without its port and brackets; an empty text where the header is no host."""
    try:
        return "" if _NO_HOST.search(host) else urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _as_sent(origin: str) -> str:
    """An origin as browsers send it: without the default port of its scheme, and without a slash at the end."""
    origin = origin.rstrip("/")
    scheme, _, _ = origin.partition(":")
    return origin.removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/"))


def _is_own(origin: str, host: str, scheme: str) -> bool:
    secure = scheme in ("https", "wss")
    return origin == f"{'https' if secure else 'http'}://{host}"
