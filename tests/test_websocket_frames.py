"""RFC 6455 on the bytes of the real endpoint: of the cases of Autobahn's suite those that matter here."""

import json
from collections.abc import AsyncIterator
from random import Random

import anyio
import anyio.lowlevel
import pytest

from chatserver.serving.websocket_protocol import WebSocketProtocol
from tests.clients import Wire, WsReader
from tests.live import LiveServer, live_server
from tests.test_bad_input import BINARY, CLOSE, CONTINUATION, PING, TEXT, closing, masked

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 10.0
PONG = 10
ASK = b'{"type":"ping"}'
EURO = '{"type":"cancel","run_id":"x","ref":"€😀"}'.encode()
CUT = EURO.index("€".encode()) + 1
"""Within a character."""


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with live_server(None) as live:
        yield live


def closed_with(code: int, reason: bytes = b"") -> bytes:
    return masked(CLOSE, code.to_bytes(2, "big") + reason)


async def shaken(server: LiveServer) -> Wire:
    """A connection behind its handshake, below any library."""
    wire = await Wire.open(server)
    lines = ["GET /chat/ws HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
    wire.write("\r\n".join(lines).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await wire.read()
    assert head.startswith(b"HTTP/1.1 101 ")
    return wire


async def frames(server: LiveServer, data: bytes, count: int) -> list[tuple[int, bytes]]:
    """The first frames, as (opcode, payload), that the server says to these bytes; none of them is masked or cut."""
    found: list[tuple[int, bytes]] = []
    with anyio.fail_after(WAIT_SECONDS):
        wire = await shaken(server)
        wire.write(data)
        rest = b""
        while len(found) < count:
            rest += await wire.read()
            while len(rest) >= 2 and len(rest) >= 2 + rest[1]:
                assert rest[0] & 0xF0 == 0x80 and rest[1] < 126, rest
                found.append((rest[0] & 0x0F, rest[2 : 2 + rest[1]]))
                rest = rest[2 + rest[1] :]
        wire.cut()
    return found


# ---- pings and pongs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 124, 125])
async def test_a_ping_is_answered_with_its_payload(server: LiveServer, size: int) -> None:
    payload = bytes(Random(size).randbytes(size))
    assert await frames(server, masked(PING, payload), 1) == [(PONG, payload)]


async def test_pings_are_answered_in_order_and_pongs_that_nobody_asked_for_are_ignored(server: LiveServer) -> None:
    data = b"".join(masked(PING, bytes([n])) + masked(PONG, b"unasked") for n in range(10)) + masked(TEXT, ASK)
    said = await frames(server, data, 11)
    assert said == [*((PONG, bytes([n])) for n in range(10)), (TEXT, b'{"type":"pong"}')]


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
async def test_a_control_frame_is_short_and_whole(server: LiveServer, opcode: int) -> None:
    assert await closing(server, masked(opcode, b"\x03\xe8" + b"x" * 124)) == 1002
    assert await closing(server, masked(opcode, b"\x03\xe8", fin=False)) == 1002


async def test_the_mask_is_taken_off(server: LiveServer) -> None:
    key = bytes([1, 0x7F, 0x80, 0xFF])
    payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(ASK))
    data = bytes([0x81, 0x80 | len(ASK)]) + key + payload
    assert await frames(server, data, 1) == [(TEXT, b'{"type":"pong"}')]


# ---- fragments ------------------------------------------------------------------------------------------------------


def in_fragments(payload: bytes, size: int, between: bytes = b"") -> bytes:
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    data = masked(TEXT, pieces[0], fin=False)
    for piece in pieces[1:-1]:
        data += between + masked(CONTINUATION, piece, fin=False)
    return data + between + masked(CONTINUATION, pieces[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_a_text_may_come_in_fragments_cut_anywhere(server: LiveServer, size: int) -> None:
    said = await frames(server, in_fragments(EURO, size), 1)
    assert json.loads(said[0][1])["ref"] == "€😀"


async def test_control_frames_between_fragments_are_answered_at_once(server: LiveServer) -> None:
    said = await frames(server, in_fragments(ASK, 5, between=masked(PING, b"!") + masked(PONG)), 3)
    assert said == [(PONG, b"!"), (PONG, b"!"), (TEXT, b'{"type":"pong"}')]


async def test_empty_fragments_are_nothing(server: LiveServer) -> None:
    empty = masked(CONTINUATION, fin=False)
    data = masked(TEXT, fin=False) + empty * 3 + masked(CONTINUATION, ASK, fin=False) + empty + masked(CONTINUATION)
    assert await frames(server, data, 1) == [(TEXT, b'{"type":"pong"}')]


async def test_a_frame_may_come_byte_by_byte(server: LiveServer) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        wire = await shaken(server)
        for byte in masked(TEXT, ASK):
            wire.write(bytes([byte]))
            await anyio.lowlevel.checkpoint()
        assert (await wire.read())[2:] == b'{"type":"pong"}'
        wire.cut()


@pytest.mark.parametrize(
    "data",
    [
        masked(CONTINUATION, b"x"),
        masked(CONTINUATION, b"x", fin=False),
        masked(TEXT, b"{", fin=False) + masked(TEXT, b"}"),
        masked(TEXT, b"{", fin=False) + masked(BINARY, b"}"),
        masked(TEXT, ASK) + masked(CONTINUATION, b"x"),
        masked(TEXT, b"{", fin=False) + masked(CONTINUATION, b"}") + masked(CONTINUATION, b"}"),
    ],
    ids=["nothing", "nothing yet", "text", "binary", "behind a whole one", "behind the last"],
)
async def test_fragments_have_an_order(server: LiveServer, data: bytes) -> None:
    assert await closing(server, data) == 1002


# ---- UTF-8 ----------------------------------------------------------------------------------------------------------

BAD_TEXT = {
    "a lone byte": b"\xff",
    "a lone continuation": b"\x80",
    "overlong": b"\xc0\x80",
    "a surrogate": b"\xed\xa0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "half a character": b"\xe2\x82",
    "five bytes": b"\xf8\x88\x80\x80\x80",
}


@pytest.mark.parametrize("bad", BAD_TEXT)
async def test_text_that_is_not_utf8_closes_1007_however_it_is_cut(server: LiveServer, bad: str) -> None:
    text = ASK + BAD_TEXT[bad]
    assert await closing(server, masked(TEXT, text)) == 1007
    for size in (1, 4, len(text) - 1):
        assert await closing(server, in_fragments(text, size)) == 1007


async def test_a_character_cut_by_a_ping_is_whole_and_one_that_never_ends_is_not(server: LiveServer) -> None:
    first, rest = masked(TEXT, EURO[:CUT], fin=False), EURO[CUT:]
    said = await frames(server, first + masked(PING) + masked(CONTINUATION, rest), 2)
    assert said[0] == (PONG, b"") and json.loads(said[1][1])["ref"] == "€😀"
    assert await closing(server, first + masked(CONTINUATION)) == 1007


# ---- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
async def test_reserved_bits_mean_nothing_here(server: LiveServer, opcode: int, rsv: int) -> None:
    assert await closing(server, masked(opcode, b"", rsv=rsv)) == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
async def test_reserved_opcodes_mean_nothing_here(server: LiveServer, opcode: int) -> None:
    assert await closing(server, masked(opcode)) == 1002
    assert await closing(server, masked(TEXT, ASK) + masked(opcode, b"x")) == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
async def test_a_client_masks(server: LiveServer, opcode: int) -> None:
    assert await closing(server, masked(opcode, b"\x03\xe8", mask=False)) == 1002


@pytest.mark.parametrize("size", [2**18 + 1, 2**31, 2**63 - 1, 2**64 - 1])
async def test_a_frame_that_would_be_too_big_is_refused_by_its_head(server: LiveServer, size: int) -> None:
    code = await closing(server, bytes([0x81, 0xFF]) + size.to_bytes(8, "big") + bytes(4))
    assert code == 1009 or (size >= 2**63 and code == 1002)


# ---- closing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
async def test_a_close_is_answered_with_its_code(server: LiveServer, code: int) -> None:
    assert await closing(server, closed_with(code, "tschüß".encode())) == code


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
async def test_a_code_that_nobody_may_send_is_broken(server: LiveServer, code: int) -> None:
    assert await closing(server, closed_with(code)) == 1002


async def test_a_close_may_say_nothing_or_much_but_not_half(server: LiveServer) -> None:
    assert await frames(server, masked(CLOSE), 1) == [(CLOSE, b"")]
    assert await closing(server, closed_with(1000, b"x" * 123)) == 1000
    assert await closing(server, closed_with(1000, b"x" * 124)) == 1002
    assert await closing(server, masked(CLOSE, b"\x03")) == 1002
    for bad in BAD_TEXT.values():
        assert await closing(server, closed_with(1000, bad)) == 1007


async def test_nothing_behind_a_close_is_heard(server: LiveServer) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        wire = await shaken(server)
        wire.write(closed_with(1000) + masked(PING, b"x") + masked(TEXT, b'{"type":"send","message":"x"}'))
        said = b""
        while data := await wire.read():
            said += data
        wire.cut()
    assert said == b"\x88\x02\x03\xe8"


async def test_a_close_in_the_middle_of_a_text_breaks_it_off(server: LiveServer) -> None:
    assert await closing(server, masked(TEXT, b'{"type"', fin=False) + closed_with(1001)) == 1002


async def test_one_broken_connection_closes_no_other(server: LiveServer) -> None:
    async with await WsReader.connect(server) as reader:
        for data in (masked(3), masked(TEXT, b"\xff"), closed_with(999), masked(BINARY)):
            await closing(server, data)
        reader.send({"type": "ping"})
        with anyio.fail_after(WAIT_SECONDS):
            await reader.until("pong")


# ---- the buffer of what is to be sent --------------------------------------------------------------------------------


async def test_a_buffer_that_is_full_again_at_once_takes_nothing(server: LiveServer) -> None:
    """No further call would tell that it is full: what the runs have would all go into it."""
    wire = await shaken(server)
    (peer,) = server.server.server_state.connections
    assert isinstance(peer, WebSocketProtocol)
    writable = []
    peer.pause_writing()
    peer.resume_writing()
    for change in (peer.pause_writing, peer.resume_writing):
        change()
        await anyio.lowlevel.checkpoint()
        writable.append(peer.is_writable)
    assert writable == [False, True]
    wire.cut()
