"""Bytes to requests, without a connection: heads and bodies within their limits, trailers dropped, offers ignored.

BETWEEN ──first byte──▶ HEAD ──▶ BODY ──last byte──▶ BETWEEN
                         ├─▶ OFFER ──without it──▶ HEAD
                         └─▶ WEBSOCKET
"""

from enum import Enum, auto
from typing import Protocol

import httptools
from msgspec import Struct

from chatserver.errors import BadHttp, HeadTooLarge
from chatserver.serving.http_bytes import (
    HEAD_BYTES_LIMIT,
    Unread,
    has_body,
    in_origin_form,
    is_too_much,
    offers_websocket,
    without_offers,
)


class Stage(Enum):
    """How far the request is that comes in."""

    BETWEEN = auto()
    HEAD = auto()
    OFFER = auto()
    """The head offers a protocol that this server does not have. The head is decoded again, without the offer."""

    BODY = auto()
    WEBSOCKET = auto()
    """The head asks for a WebSocket: nothing more is decoded here."""


class Head(Struct, frozen=True):
    """The head of a request: a target in origin form, header names in lower case."""

    method: bytes
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool


class RequestEvents(Protocol):
    """The receiver of the requests."""

    def request_began(self, head: Head) -> None: ...

    def body_came(self, data: bytes) -> None: ...

    def request_came(self) -> None: ...

    def websocket_asked(self, head: Head) -> None: ...


class RequestDecoder:
    """The requests of one connection, decoded a head or a piece of a body at a time."""

    __slots__ = (
        "_body_bytes_left", "_headers", "_made", "_requests", "_target", "_trailer_bytes", "_trailers",
        "_useless_bytes", "came_bytes", "stage", "unread",
    )  # fmt: skip

    def __init__(self, requests: RequestEvents) -> None:
        self.stage = Stage.BETWEEN
        self.unread = Unread()
        self.came_bytes = 0
        """How many bytes have come since the owner set this to 0."""
        self._requests = requests
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._trailers = self._trailer_bytes = self._useless_bytes = self._body_bytes_left = 0
        self._made: httptools.HttpRequestParser | None = None

    @property
    def _parser(self) -> httptools.HttpRequestParser:
        if self._made is None:
            self._made = httptools.HttpRequestParser(self)
            # More may come behind a request that closes the connection: it is decoded, and gets no response.
            self._made.set_dangerous_leniencies(lenient_data_after_close=True)
        return self._made

    def rest(self) -> None:
        """Do without a parser until the next request: it takes 0.9 KB, and knows nothing between two requests."""
        if self.stage is Stage.BETWEEN:
            self._made = None

    def close(self) -> None:
        """Read no more, and break the reference cycle with the parser."""
        self.unread.clear()
        del self._made, self._requests

    @property
    def is_in_request(self) -> bool:
        return self.stage in (Stage.HEAD, Stage.OFFER, Stage.BODY)

    def decode_next(self) -> bool:
        """Decode the next piece, which goes into one request at most; False: more must come first.

        Raises:
            BadHttp, HeadTooLarge: nothing more can be read.
        """
        piece = self.unread.next_piece(self._body_bytes_left)
        if not piece:
            return False
        self._useless_bytes += len(piece)
        self.came_bytes += len(piece)
        self._body_bytes_left -= min(len(piece), self._body_bytes_left)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._upgraded()
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, HeadTooLarge):
                raise error.__context__ from None
            raise BadHttp from error
        except httptools.HttpParserError as error:
            raise BadHttp from error
        if self.is_in_request and self._useless_bytes > HEAD_BYTES_LIMIT:
            raise HeadTooLarge
        return True

    def _upgraded(self) -> None:
        """Behind the head of a request for another protocol."""
        if self.stage is Stage.OFFER:
            head = self._head()
            self._made = None  # The old parser would take a body for the other protocol.
            self._parser.feed_data(without_offers(head.method, head.target, head.version, head.headers))
        elif self.stage is Stage.WEBSOCKET:
            head = self._head()
            if self.unread or has_body(head.headers):
                raise BadHttp  # RFC 6455, 4.1: a client waits until the WebSocket is there.
            try:
                self._requests.websocket_asked(head)
            except (httptools.HttpParserError, UnicodeDecodeError) as error:
                raise BadHttp from error

    def _head(self) -> Head:
        parser = self._parser
        return Head(
            parser.get_method(),
            self._target,
            parser.get_http_version(),
            self._headers,
            keep_alive=parser.get_http_version() != "1.0" and parser.should_keep_alive(),
        )

    # the parser's calls

    def on_message_begin(self) -> None:
        self._target, self._headers = b"", []
        self.stage = Stage.HEAD

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.stage is Stage.HEAD:
            self._headers.append((name.lower(), value))
        elif self.stage is Stage.BODY:
            self._trailers += 1  # Counted and dropped: a header that a proxy checks must not come as a trailer.
            self._trailer_bytes += len(name) + len(value)
            if is_too_much(self._trailers, self._trailer_bytes):
                raise HeadTooLarge

    def on_headers_complete(self) -> None:
        size = len(self._target) + sum(len(name) + len(value) for name, value in self._headers)
        if is_too_much(len(self._headers), size):
            raise HeadTooLarge
        if not self._target.startswith(b"/") and b"://" in self._target:  # A path, or its query, may hold a URL.
            self._target, self._headers = in_origin_form(self._target, self._headers)
        if self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT":
            # Another protocol than WebSocket (h2c, offered by curl and Java): answered as if there were no offer.
            self.stage = Stage.WEBSOCKET if offers_websocket(self._headers) else Stage.OFFER
            return
        self._useless_bytes = self.came_bytes = self._trailers = self._trailer_bytes = 0
        self._body_bytes_left = sum(int(value) for name, value in self._headers if name == b"content-length")
        self._requests.request_began(self._head())
        self._headers = []  # Let go of the list: a browser's headers take 2 KB.
        self.stage = Stage.BODY

    def on_body(self, body: bytes) -> None:
        self._useless_bytes = 0
        self._requests.body_came(body)

    def on_message_complete(self) -> None:
        if self.stage is Stage.BODY:
            self._useless_bytes = 0
            self.stage = Stage.BETWEEN
            self._requests.request_came()
