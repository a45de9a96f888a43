"""Request bodies: from bytes within a limit to strict JSON to the Struct of a route."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import anyio
from litestar import Request
from litestar.datastructures import State

from chatserver.auth.origins import header
from chatserver.errors import BadJson, TooLarge, UnsupportedMedia
from chatserver.routes import components_of
from chatserver.strict_json import convert, json_text
from chatserver.transports.admission import ADMISSION, Admission
from chatserver.transports.asgi import AsgiScope

T = TypeVar("T")

DISCARDED_BYTES_LIMIT = 64 * 1024 * 1024
DISCARD_SECONDS = 0.5
"""After so much silence, the sender of a too large body is taken to wait for the response."""


async def read_body(request: Request[str, Any, State], kind: type[T]) -> T:
    """The body as a Struct.

    Raises:
        UnsupportedMedia, TooLarge, BadJson, BadRequest: the body is not of this kind.
    """
    headers = request.scope["headers"]
    media_type, _, parameters = header(headers, b"content-type").partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "")
    if media_type.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise UnsupportedMedia("the body must be application/json in UTF-8")
    if header(headers, b"content-encoding") not in ("", "identity"):
        raise UnsupportedMedia("the body must not be compressed")
    admission: Admission = cast(AsgiScope, request.scope)["extensions"][ADMISSION]
    try:
        body = await body_bytes(request, components_of(request).settings.max_body_bytes, admission.hold_bytes)
    finally:
        admission.release_bytes()
    return convert(json_text(body), kind)


async def body_bytes(request: Request[str, Any, State], limit: int, hold: Callable[[int], None] | None = None) -> bytes:
    """The body. ``hold`` is called with the size of each piece that comes.

    A body that is too large is read on and thrown away, up to a limit: a client that is cut off while it still sends
    would never read the refusal.

    Raises:
        TooLarge: the body is over ``limit`` bytes.
        BadJson: the peer left before the end of the body.
    """
    too_large = TooLarge(f"the body is over {limit} bytes")
    declared = header(request.scope["headers"], b"content-length")
    size = int(declared[:19]) if declared.isdecimal() else 0
    if size > limit and header(request.scope["headers"], b"expect"):
        raise too_large
    body, has_more = bytearray(), True  # A bytearray: to join many small pieces as bytes would take quadratic time.
    while has_more and max(size, len(body)) <= limit:
        piece, has_more = await _piece(request)
        if hold is not None:
            hold(len(piece))
        body += piece
    if max(size, len(body)) <= limit:
        return bytes(body)
    seen = len(body)
    with anyio.move_on_after(DISCARD_SECONDS) as patience:
        while has_more and seen <= limit + DISCARDED_BYTES_LIMIT:
            piece, has_more = await _piece(request)
            seen += len(piece)
            patience.deadline = anyio.current_time() + DISCARD_SECONDS
    raise too_large


async def _piece(request: Request[str, Any, State]) -> tuple[bytes, bool]:
    """The next piece of a body, and whether more pieces follow."""
    message = cast(dict[str, Any], await request.receive())
    if message["type"] == "http.disconnect":
        raise BadJson("the body never came")
    return message["body"], message.get("more_body", False)
