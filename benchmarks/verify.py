"""No contender is timed before its answers were seen to be whole: every token, in order, once, in valid frames."""

import http.client
from collections.abc import Collection, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec
from websockets import Subprotocol, WebSocketException
from websockets.sync.client import connect

from benchmarks.script import Script, index_of, tokens_of
from benchmarks.servers import Contender, NotStarted
from chatserver.bench.connections import Target, Transport

if TYPE_CHECKING:
    from benchmarks.conductor import Conductor

TOKENS = 50
SCRIPTS = (Script(TOKENS, "bulk"), Script(TOKENS, "500"))
SECONDS = 20.0


class Rejected(Exception):
    """A contender's answer is not what it has to be; it must not be timed."""


def sse_documents(text: str) -> list[bytes]:
    """The documents of an event stream, each checked against its own `id` and `event`.

    Raises:
        Rejected: it is no event stream.
    """
    documents = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name and name in fields:
                raise Rejected(f"two `{name}` lines in one event")
            fields[name] = value.removeprefix(" ")
        if "data" in fields:
            document = _decoded(fields["data"].encode())
            if (fields.get("id"), fields.get("event")) != (str(document.get("seq")), document.get("type")):
                raise Rejected(f"`id` or `event` contradicts {fields['data']}")
            documents.append(fields["data"].encode())
    return documents


def check(documents: Iterable[bytes], tokens: int) -> None:
    """All of a run, and nothing else.

    Raises:
        Rejected: something is missing, doubled, out of order or no JSON.
    """
    read = [_decoded(each) for each in documents]
    events = [each for each in read if "seq" in each]
    kinds = [each["type"] for each in events]
    if kinds != ["start", *["token"] * (len(kinds) - 2), "done"]:
        raise Rejected(f"the events are {kinds[:3]} … {kinds[-3:]}")
    texts = [tokens_of(str(each["content"])) for each in events[1:-1]]
    spans = [1, *map(len, texts), 1]
    wanted = [(seq - span + 1, seq) for span, seq in zip(spans, accumulate(spans), strict=True)]
    if [(each.get("first_seq", each["seq"]), each["seq"]) for each in events] != wanted:
        raise Rejected("the events are not numbered 1, 2, 3 …")
    indices = [index_of(token) for tokens in texts for token in tokens]
    if indices != list(range(tokens)):
        seen = set(indices)
        lost, doubled = tokens - len(seen), len(indices) - len(seen)
        raise Rejected(f"{lost} tokens lost, {doubled} doubled" if lost or doubled else "the tokens are out of order")


def _decoded(data: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(data, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise Rejected(f"no JSON object: {data[:100]!r}: {error}") from None


def answer(target: Target, transport: Transport, script: Script) -> list[bytes]:
    """One whole run, read with well-known libraries and not with the lab's own client.

    Raises:
        Rejected: there is none.
    """
    try:
        if transport == "SSE":
            connection = http.client.HTTPConnection(target.host, target.port, timeout=SECONDS)
            body = msgspec.json.encode({"message": script.message})
            connection.request("POST", "/chat/stream", body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                content_type = response.headers.get_content_type()
                text = response.read().decode()
            connection.close()
            if content_type != "text/event-stream":
                raise Rejected(f"{content_type}: {text[:200]}")
            return sse_documents(text)
        documents: list[bytes] = []
        url, offered = f"ws://{target.host}:{target.port}/chat/ws", [Subprotocol("chatserver.v1")]
        with connect(url, subprotocols=offered, proxy=None) as socket:
            socket.send(msgspec.json.encode({"type": "send", "message": script.message}).decode())
            while not documents or _decoded(documents[-1])["type"] not in ("done", "error", "rejected"):
                documents.append(socket.recv(SECONDS, decode=False))
    except (OSError, EOFError, http.client.HTTPException, WebSocketException) as error:
        raise Rejected(f"{type(error).__name__}: {error}") from None
    else:
        return documents


def verify(conductor: "Conductor", contenders: Collection[Contender]) -> dict[Contender, str]:
    """Ask each contender for the kinds of script that it will be timed with; those that fail, with the reason."""
    rejected: dict[Contender, str] = {}
    for contender in contenders:
        try:
            target = Target("127.0.0.1", conductor.server(contender.name).port)
            for script in SCRIPTS:
                check(answer(target, contender.transport, script), script.tokens)
        except (Rejected, NotStarted) as error:
            rejected[contender] = f"{contender.title}: {error}"
    return rejected
