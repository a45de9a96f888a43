"""Bodies of responses that are documents, not streams: read up to a limit, whatever the server sends."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


async def read_into(body: bytearray, response: "httpx2.Response", bytes_limit: int) -> bool:
    """Append the response's body to ``body``, to its end or until there are more than so many bytes.

    Returns whether the body is whole. What has come is in ``body`` also when this call is cancelled.

    Raises:
        httpx2.HTTPError: the connection broke.
    """
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > bytes_limit:
            return False
    return True
