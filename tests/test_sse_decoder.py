"""The SSE decoder does what the WHATWG standard says, however the bytes are cut."""

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatserver.upstream.sse_decoder import SSE_EVENT_BYTES_LIMIT, EventTooLong, SSEDecoder

BOM = b"\xef\xbb\xbf"


def decoded(chunks: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    decoder = SSEDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def by_the_standard(body: bytes) -> list[tuple[bytes, bytes]]:
    """Section 9.2.6 "Interpreting an event stream", word for word, on a whole body; and JSON that is in no field."""
    events: list[tuple[bytes, bytes]] = []
    data, event_type = b"", b""
    text = body.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = text.split(b"\n")[:-1]
    first = next((line for line in lines if line.strip()), b"")
    if is_json(first) and not ends_json(first):
        return []  # A document, which has ended when the body has.
    for line in lines:
        if not line:
            if data:
                events.append((event_type, data.removesuffix(b"\n")))
            data, event_type = b"", b""
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            event_type = value
        elif field == b"data":
            data += value + b"\n"
        elif field == b"error" and field != line:
            events.append((b"error", line[6:]))
        elif is_json(line) and ends_json(line):
            events.append((b"", line))
    return events


def is_json(line: bytes) -> bool:
    return line.strip()[:1] in (b"{", b"[")


def ends_json(line: bytes) -> bool:
    return line.strip()[-1:] in (b"}", b"]")


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [(b"", b"YHOO\n+2\n10")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [(b"", b"first event"), (b"", b"second event"), (b"", b" third event")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [(b"", b""), (b"", b"\n")]),
        (b"data:test\n\ndata: test\n\n", [(b"", b"test")] * 2),
        (
            b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
            [(b"add", b"73857293"), (b"remove", b"2153"), (b"add", b"113411")],
        ),
        (b"event: lost\n\ndata: the type was of nothing\n\n", [(b"", b"the type was of nothing")]),
        (b"retry: 10\n\n: ping\n\nunknown: x\n\n\n\n", []),
        (b"data: never finished", []),
    ],
)
def test_the_examples_of_the_standard(body: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert decoded([body]) == events == by_the_standard(body)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize("start", [b"", BOM], ids=["plain", "BOM"])
def test_lines_end_in_any_way_and_a_bom_is_skipped(start: bytes, end: bytes) -> None:
    body = start + end.join([b"event: token", b"data: a", b"data: b", b"", b"data: c", b"", b""])
    # A CR at the end of what has come may be half a CR LF: the next byte tells.
    assert decoded([body, b":"]) == [(b"token", b"a\nb"), (b"", b"c")]


def test_a_bom_is_skipped_once_and_only_at_the_start() -> None:
    assert decoded([BOM + BOM + b"data: a\n\n", BOM + b"data: b\n\n", b"data: c\n\n"]) == [(b"", b"c")]


pieces = st.lists(
    st.sampled_from(
        [
            b"data",
            b"event",
            b"id",
            b":",
            b": ",
            b" ",
            b"\n",
            b"\r",
            b"\r\n",
            b"x",
            b"\xc3\xa9",
            b"\0",
            BOM,
            b"\xef",
            b"{",
            b"}",
            b"[",
            b"error",
        ]
    ),
    max_size=40,
).map(b"".join)


@given(pieces | st.binary(max_size=60), st.data())
@example(b"data: a\r\n\r\ndata: b\r\r\n\n", None)
@example(BOM + b"data\n\n", None)
@example(b"event: a\nevent\ndata\n\n", None)
def test_every_cut_gives_what_the_standard_says(body: bytes, data: st.DataObject | None) -> None:
    body += b":"  # So that no CR is left at the end.
    places = st.lists(st.integers(0, len(body)), max_size=len(body))
    cuts = sorted(data.draw(places)) if data else list(range(len(body)))
    chunks = [body[start:end] for start, end in pairwise([0, *cuts, len(body)])]
    assert decoded(chunks) == by_the_standard(body)


@pytest.mark.parametrize("rest", [b"", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("body", [b"event: e\ndata: a\ndata: b", BOM + b"event: e\ndata: a\ndata: b"])
def test_the_end_of_the_body_completes_the_last_event_once(body: bytes, rest: bytes) -> None:
    """Not so in the standard, but some servers forget the blank line behind their last event."""
    decoder = SSEDecoder()
    assert [*decoder.feed(body + rest), *decoder.flush()] == [(b"e", b"a\nb")]
    assert decoder.flush() == []


@pytest.mark.parametrize("body", [b"", b": ping\n\n", b"data: a\n\n", BOM, b"id: 7"])
def test_the_end_of_the_body_makes_no_event_of_nothing(body: bytes) -> None:
    decoder = SSEDecoder()
    decoder.feed(body)
    assert decoder.flush() == []


def test_a_chunk_of_whole_events_is_seen_as_that() -> None:
    assert SSEDecoder()._whole(b'data: {"x": 1}\n\ndata: 2\n\n') == [(b"", b'{"x": 1}'), (b"", b"2")]


class Slow(SSEDecoder):
    """Reads no chunk in the short way."""

    @staticmethod
    def _whole(chunk: bytes) -> list[tuple[bytes, bytes]]:
        return []


@given(st.lists(pieces | st.just(b"data: x\n\n"), min_size=1, max_size=6))
@example([b"data: a\n\n", b"data", b": b\n\n", b"data: c\n\n"])
@example([b"event: e\n", b"data: a\n\n"])
@example([b"data: a\r", b"\ndata: b\n\n"])
def test_whole_events_are_the_same_whichever_way_they_are_read(chunks: list[bytes]) -> None:
    decoder, slow = SSEDecoder(), Slow()
    for chunk in chunks:
        assert decoder.feed(chunk) == slow.feed(chunk)
    assert decoder.flush() == slow.flush()


def test_json_in_no_field_is_an_event_at_once() -> None:
    """How some servers say that they failed where a stream was asked for."""
    assert decoded([b'{"error": "x"}\nerror: y\n[{}]\n']) == [
        (b"", b'{"error": "x"}'),
        (b"error", b" y"),
        (b"", b"[{}]"),
    ]


@pytest.mark.parametrize("start", [b"", b"\n\n \n", BOM])
@pytest.mark.parametrize("document", [b'{"a": 1}', b'{\n "a":\n\n {\n}\n}', b'[\n{"a": 1}\n]', b'[{\n"a": 1}\n]\n'])
def test_a_body_that_is_a_document_is_one_event_at_its_end(start: bytes, document: bytes) -> None:
    for size in (1, 3, 100):
        body, decoder = start + document, SSEDecoder()
        events = [each for at in range(0, len(body), size) for each in decoder.feed(body[at : at + size])]
        events += decoder.flush()
        assert [(kind, json.loads(data)) for kind, data in events] == [(b"", json.loads(document))]
        assert decoder.flush() == []


def test_a_stray_bracket_in_a_stream_is_no_document() -> None:
    for first in (b"data: a\n\n", b": a\n", b"id: 7\n"):
        assert decoded([first, b"{\n", b"data: b\n\n"])[-1] == (b"", b"b")


def test_lines_are_counted_that_say_nothing() -> None:
    decoder, counts = SSEDecoder(), []
    for chunk in (b": ping\n", b"\n", b": pi", b"ng\n", b"xx"):
        decoder.feed(chunk)
        counts.append(decoder.lines)
    assert counts == [1, 2, 2, 3, 3]


AT_LIMIT = b"data: ".ljust(SSE_EVENT_BYTES_LIMIT, b"x")


@pytest.mark.parametrize("cut", [6, 100, SSE_EVENT_BYTES_LIMIT])
@pytest.mark.parametrize("rest", [b"\n\n", b"\n\ndata: next", b"\n\n" + AT_LIMIT])
def test_an_event_at_its_limit_is_read(cut: int, rest: bytes) -> None:
    assert decoded([AT_LIMIT[:cut], AT_LIMIT[cut:], rest]) == [(b"", AT_LIMIT[6:])]
    assert decoded([AT_LIMIT[:cut], AT_LIMIT[cut:] + b"\n", rest[1:]]) == [(b"", AT_LIMIT[6:])]


@pytest.mark.parametrize("start", [b"data: ", b": ", b"", b"data: a\n\ndata: "])
def test_a_line_without_end_is_refused(start: bytes) -> None:
    with pytest.raises(EventTooLong):
        decoded([start, *[b"x" * 65536] * (SSE_EVENT_BYTES_LIMIT // 65536 + 1)])


@pytest.mark.parametrize("line", [b"data: x\n", b"data:\n", b"data\n", b"data:" + b"y" * 1000 + b"\n"])
def test_an_event_without_end_is_refused(line: bytes) -> None:
    """Lines that never become an event would be collected for as long as they come."""
    with pytest.raises(EventTooLong):
        decoded([line * (65536 // len(line))] * (4 * SSE_EVENT_BYTES_LIMIT // 65536))
