"""Bodies of responses that are documents, not streams: no server that is asked can make them as large as it likes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


async def read_into(body: bytearray, response: "httpx2.Response", bytes_limit: int) -> bool:
    """Add what comes to ``body`` up to the end of the response, or until there are more than so many bytes.

    Returns whether it is whole. What has come is there also when this is cancelled.

    Raises:
        httpx2.HTTPError: the connection broke.
    """
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > bytes_limit:
            return False
    return True
