"""ASGI's scopes of a request and of a handshake."""

import asyncio
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn import Config
from websockets.http11 import Request

from chatserver.serving.http_decoder import Head


def http_scope(config: Config, transport: asyncio.Transport, head: Head) -> dict[str, Any]:
    """The scope of a request.

    Raises:
        HttpParserInvalidURLError, UnicodeDecodeError: the target is no path.
    """
    url = httptools.parse_url(head.target)
    return _scope(config, transport, url.path, url.query or b"", head.headers) | {
        "type": "http",
        "http_version": head.version,
        "method": head.method.decode("ascii"),
    }


def websocket_scope(config: Config, transport: asyncio.Transport, request: Request) -> dict[str, Any]:
    """The scope of a handshake."""
    path, _, query = request.path.encode("ascii").partition(b"?")
    headers = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in request.headers.raw_items()]
    offered = [each.strip() for line in request.headers.get_all("Sec-WebSocket-Protocol") for each in line.split(",")]
    scope = _scope(config, transport, path, query, headers)
    return scope | {"type": "websocket", "scheme": scope["scheme"].replace("http", "ws"), "subprotocols": offered}


def _scope(
    config: Config, transport: asyncio.Transport, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]
) -> dict[str, Any]:
    return {
        "asgi": {"version": config.asgi_version, "spec_version": "2.4"},
        "http_version": "1.1",
        "server": _address(transport, "sockname"),
        "client": _address(transport, "peername"),
        "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        "root_path": config.root_path,
        "path": config.root_path + unquote(path.decode("ascii")),
        "raw_path": config.root_path.encode("ascii") + path,
        "query_string": query,
        "headers": headers,
    }


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int | None] | None:
    """An end of a connection: host and port, or the path of a socket."""
    found = transport.get_extra_info(name)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else (found, None) if found else None
