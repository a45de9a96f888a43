"""ASGI's scopes of a request and of a handshake."""

import asyncio
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn import Config

from chatserver.serving.http_decoder import Head


def http_scope(config: Config, transport: asyncio.Transport, head: Head) -> dict[str, Any]:
    """The scope of a request.

    Raises:
        HttpParserInvalidURLError, UnicodeDecodeError: the target is no path.
    """
    return _scope(config, transport, head) | {"type": "http", "method": head.method.decode("ascii")}


def websocket_scope(config: Config, transport: asyncio.Transport, head: Head) -> dict[str, Any]:
    """The scope of a handshake; raises as ``http_scope``."""
    scope = _scope(config, transport, head)
    lines = [value.decode("latin-1") for name, value in head.headers if name == b"sec-websocket-protocol"]
    offered = [each.strip() for line in lines for each in line.split(",")]
    return scope | {"type": "websocket", "scheme": scope["scheme"].replace("http", "ws"), "subprotocols": offered}


def _scope(config: Config, transport: asyncio.Transport, head: Head) -> dict[str, Any]:
    url = httptools.parse_url(head.target)
    return {
        "asgi": {"version": config.asgi_version, "spec_version": "2.4"},
        "http_version": head.version,
        "server": _address(transport, "sockname"),
        "client": _address(transport, "peername"),
        "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        "root_path": config.root_path,
        "path": config.root_path + unquote(url.path.decode("ascii")),
        "raw_path": config.root_path.encode("ascii") + url.path,
        "query_string": url.query or b"",
        "headers": head.headers,
    }


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int | None] | None:
    """An end of a connection: host and port, or the path of a socket."""
    found = transport.get_extra_info(name)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else (found, None) if found else None
