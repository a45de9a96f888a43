"""The access log, where an operator wants one: a line for each request and each WebSocket, when it has ended."""

import logging
from collections.abc import Iterable
from time import monotonic

from chatserver.syntax import one_line
from chatserver.transports.asgi import AsgiScope

logger = logging.getLogger("chatserver.access")

PATH_CHARS = 256


class AccessLine:
    """What is known so far of a request or a WebSocket.

    A line has the method (`WS` for a WebSocket), the path, the status or close code, the `Content-Length` of the answer
    and milliseconds. The query is left out: a ticket may be in it. `cut` stands behind the status of an answer that
    did not come to its end, as when the peer has left.
    """

    def __init__(self, scope: AsgiScope) -> None:
        logger.setLevel(logging.INFO)
        path = one_line(scope["raw_path"].decode("latin-1"))
        self._began = monotonic()
        self._method = scope.get("method", "WS")
        self._path = path if len(path) <= PATH_CHARS else f"{path[:PATH_CHARS]}…"
        self._status = self._length = "-"
        self._is_told = False

    def answered(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._status = str(status)
        self._length = next((value.decode() for name, value in headers if name == b"content-length"), "-")

    def over(self, *, is_whole: bool) -> None:
        """Write the line; once is enough."""
        if not self._is_told:
            self._is_told = True
            cut = "" if is_whole else " cut"
            milliseconds = (monotonic() - self._began) * 1000
            logger.info(
                "%s %s %s%s %s %.0f ms", self._method, self._path, self._status, cut, self._length, milliseconds
            )
