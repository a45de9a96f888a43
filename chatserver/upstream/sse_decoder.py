"""Server-Sent Events from bytes, without I/O, as WHATWG defines them for `data` and `event`."""

SSE_EVENT_BYTES_LIMIT = 1024 * 1024
"""A longer line or event is no chunk of a model; the largest chunks seen are tool arguments of some 100 KB."""


CR, LF = b"\r\n"
"""As numbers: to find these in bytes takes a fifth of the time."""


class EventTooLong(ValueError):
    """The upstream sends a line or an event without end."""


class SSEDecoder:
    """Bytes in, complete events out, as (type, data).

    A body that is no stream, but one JSON document, is one event. ``lines``: how many lines have ended, comments too,
    without those of events in the commonest form.
    """

    __slots__ = (
        "_at_start", "_data", "_data_bytes", "_holds_cr", "_is_between", "_is_document", "_rest", "_rest_bytes",
        "_type", "lines",
    )  # fmt: skip

    def __init__(self) -> None:
        self.lines = 0
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._type = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._at_start = True
        self._is_document: bool | None = None  # Unknown until the first line that is not blank.
        self._holds_cr = False
        self._is_between = True  # The next byte begins an event: nothing of one is held.

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """The events that ``chunk`` completes; type b"" is the default, `message`.

        Raises:
            EventTooLong: a line or an event is over ``SSE_EVENT_BYTES_LIMIT``.
        """
        if self._is_between and (whole := self._whole(chunk)):
            self._at_start = self._is_document = False
            return whole
        self._rest.append(chunk)
        self._rest_bytes += len(chunk)
        is_inside = b"\n" not in chunk and b"\r" not in chunk and not self._holds_cr
        if is_inside and self._rest_bytes <= SSE_EVENT_BYTES_LIMIT:
            self._is_between = False
            return []  # Joined only at a line end: many small pieces must not take quadratic time.
        events: list[tuple[bytes, bytes]] = []
        for line in self._lines(b"".join(self._rest)):
            self._read(line, events)
        if self._rest_bytes + self._data_bytes > SSE_EVENT_BYTES_LIMIT:
            raise EventTooLong
        self._is_between = not (self._rest or self._data or self._type)
        return events

    @staticmethod
    def _whole(chunk: bytes) -> list[tuple[bytes, bytes]]:
        """The events of a chunk that holds only whole events in the commonest form, as nearly all chunks do; else none.

        Takes about half the time of the general way.
        """
        if CR in chunk or not chunk.endswith(b"\n\n") or len(chunk) > SSE_EVENT_BYTES_LIMIT:
            return []
        if not chunk.startswith(b"data: "):
            return _typed(chunk) if chunk.startswith(b"event: ") else []
        data = chunk[6:-2]
        if LF not in data:
            return [(b"", data)]  # One event: the commonest case, since a model's tokens come one by one.
        found = [(b"", each) for each in data.split(b"\n\ndata: ")]
        return found if chunk.count(b"\n") == 2 * len(found) else []

    def flush(self) -> list[tuple[bytes, bytes]]:
        """The last event at the end of the body, where a server forgot the blank line behind it."""
        events = self.feed(b"\n\n") if self._rest or self._data else []
        if self._is_document and self._data:
            events.append((b"", b"\n".join(self._data)))
            self._data = []
        return events

    def _lines(self, text: bytes) -> list[bytes]:
        """The whole lines in ``text``; the rest is kept."""
        if self._at_start:
            text = text.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        # A CR at the very end may be half of a CR LF: it is kept until the next byte.
        self._holds_cr = text.endswith(b"\r")
        if b"\r" in text:
            text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        if self._holds_cr:
            rest += b"\r"
        self._rest, self._rest_bytes = [rest] if rest else [], len(rest)
        return lines

    def _read(self, line: bytes, events: list[tuple[bytes, bytes]]) -> None:
        self.lines += 1
        is_json, ends = line.lstrip().startswith((b"{", b"[")), line.rstrip().endswith((b"}", b"]"))
        if self._is_document is None and line.strip():
            self._is_document = is_json and not ends
        if self._is_document:
            self._add(line, line)
        elif not line:
            if self._data:
                events.append((self._type, b"\n".join(self._data)))
            self._type, self._data, self._data_bytes = b"", [], 0
        elif line.startswith(b"data:"):
            self._add(line, line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"event" or line.startswith(b"event:"):
            self._type = line[6:].removeprefix(b" ")
        elif line == b"data":
            self._add(line, b"")
        elif line.startswith(b"error:"):
            # No field of the standard, but the form in which a server reports a failure in place of a stream.
            events.append((b"error", line[6:]))
        elif is_json and ends:
            events.append((b"", line))  # Not of the standard either: a chunk without a field's name.

    def _add(self, line: bytes, data: bytes) -> None:
        self._data.append(data)
        self._data_bytes += len(line) or 1  # Blank lines count too: a document may have them without end.


def _typed(chunk: bytes) -> list[tuple[bytes, bytes]]:
    """The events of a chunk that holds only whole events, each a line with its type and a line of data; else none."""
    found = []
    for event in chunk[7:-2].split(b"\n\nevent: "):
        kind, _, data = event.partition(b"\ndata: ")
        found.append((kind, data))
    return found if all(data for _, data in found) and chunk.count(b"\n") == 3 * len(found) else []
