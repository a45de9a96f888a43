"""What ASGI tells the application of a connection and a request."""

import asyncio
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn import Config

from chatserver.serving.http_reader import Head


def http_scope(config: Config, transport: asyncio.Transport, head: Head) -> dict[str, Any]:
    """The scope of a request.

    Raises:
        HttpParserInvalidURLError, UnicodeDecodeError: its target is no path.
    """
    url = httptools.parse_url(head.target)
    return {
        "type": "http",
        "asgi": {"version": config.asgi_version, "spec_version": "2.3"},
        "http_version": head.version,
        "server": _address(transport, "sockname"),
        "client": _address(transport, "peername"),
        "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        "method": head.method.decode("ascii"),
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
