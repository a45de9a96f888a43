"""What proofs share: a run of 60 events that is told one at a time, a server to tell it to, and what readers may see.

A proof is a plain async function that raises ``AssertionError``; the tests call it, and so does ``test_sabotage.py``.
"""

import itertools
import json
import os
import random
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.clients import (
    NDJSON,
    SSE,
    TERMINAL,
    TRANSPORTS,
    WS,
    Address,
    Reading,
    Transport,
    WsReader,
    cancel,
    documents_of,
    request,
)
from tests.fake_upstream import Chunk, Done, FakeUpstream, Gate, Reply, Step, finish, reasoning, role, token
from tests.fake_upstream import tool_call as call_chunks
from tests.live import LiveServer, live_server
from tests.merging import numbers_of, seq_of, unmerged

PATIENCE_SECONDS = 20.0
"""How long one round of a proof may take before it counts as a hang."""

PIECES = (
    *("Gr", "ü", "ße ", "👩", "\u200d", "👩\u200d", "👧", " e", "\u0301", "日本", "語\u2028", "\r\n", "\ufeff"),
    *("data: x\n\n", '"\\', "\x1f\x7f", "🏳️\u200d", "🌈", "ก็", "𝔘", "id: 9\n", "[DONE]", "🇩", "🇪", " \t "),
)
"""Text that is easily broken: characters cut in pieces, line ends of all kinds, and the words of the framing itself."""

CALLS = (("calculator", {"expression": "6 * 7"}), ("clock", {"timezone": "Zürich/👩\u200d👧"}))
"""One that has a result, and one that fails with a sentence in many bytes."""

PIECES_OF_A_CALL = 3
"""In so many fragments the model writes the arguments of each of these calls; each fragment is shown."""

ROUTE: tuple[Transport, ...] = (SSE, SSE, WS, WS, NDJSON, NDJSON, SSE, NDJSON, WS)
"""Followed round and round, it takes each of the nine steps from one transport to another once."""


each_transport = pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
each_pair = pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(*pair, id=f"{pair[0]}-{pair[1]}") for pair in itertools.product(TRANSPORTS, TRANSPORTS)],
)


# ---- what the model says --------------------------------------------------------------------------------------------


class Story:
    """One run: every event behind a gate, except that tool calls come with their pieces and results."""

    _numbers = itertools.count()

    def __init__(
        self,
        thoughts: Sequence[str] = (),
        before: Sequence[str] = (),
        calls: Sequence[tuple[str, Any]] = (),
        after: Sequence[str] = (),
    ) -> None:
        self.body = {"message": f"story {next(self._numbers)}"}
        self.reasoning, self.text = "".join(thoughts), "".join([*before, *after])
        said = ["start", *["reasoning"] * len(thoughts), *["token"] * len(before)]
        written = ["tool_input"] * len(calls) * PIECES_OF_A_CALL
        called = [*written, *["tool_call"] * len(calls), *["tool_result"] * len(calls)]
        self.types = [*said, *called, *["token"] * len(after), "done"]
        self.last = len(self.types)
        self._together = range(len(said) + 1, len(said) + len(called) + 1)
        self._gates = {seq: anyio.Event() for seq in range(2, self.last + 1)}
        self._turns = [self._turn([*map(reasoning, thoughts), *map(token, before)], 2)]
        if calls:
            made = [
                call_chunks(name, args, id=f"call_{n}", index=n, pieces=PIECES_OF_A_CALL)
                for n, (name, args) in enumerate(calls)
            ]
            self._turns[0] += [Gate(self._gates[self._together[0]]), *itertools.chain(*made), finish("tool_calls")]
            self._turns.append([])
        self._turns[-1] += self._turn([*map(token, after), finish("stop")], len(said) + len(called) + 1)

    def _turn(self, chunks: Iterable[Chunk], seq: int) -> list[Step]:
        return list(itertools.chain(*([Gate(self._gates[at]), each] for at, each in enumerate(chunks, seq))))

    def turn(self, number: int) -> list[Step]:
        """What the upstream answers to the run's first or second request."""
        return [role(), *self._turns[number], Done()]

    def tell(self, seq: int) -> int:
        """Let the model go on until this event; the last event that there will be then."""
        for each in range(2, seq + 1):
            self._gates[each].set()
        return self._together[-1] if seq in self._together else seq


def long_story() -> Story:
    """60 events: start, 8 × reasoning, 12 × token, 2 calls in 3 pieces each, 2 results, 28 × token, done."""
    pieces = itertools.cycle(PIECES)
    thoughts, before, after = (list(itertools.islice(pieces, count)) for count in (8, 12, 28))
    return Story(thoughts, before, CALLS, after)


def short_story() -> Story:
    """3 events: start, token, done."""
    return Story(after=["é👩\u200d👧"])


# ---- the server -----------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A server, and its upstream that answers each request with the story whose message it holds."""

    server: LiveServer
    upstream: FakeUpstream
    _stories: dict[str, Story] = field(default_factory=dict)

    def story(self, told: int = 1, make: Callable[[], Story] = long_story) -> Story:
        """A new story, told up to an event."""
        story = make()
        self._stories[story.body["message"]] = story
        story.tell(told)
        return story

    def answer(self, reply: Reply) -> Iterable[Step]:
        messages = reply.request.json["messages"]
        story = self._stories[[each["content"] for each in messages if each["role"] == "user"][-1]]
        return story.turn(messages[-1]["role"] == "tool")

    async def told(self, make: Callable[[], Story] = long_story, transport: Transport = SSE) -> "Told":
        """A run that is over, as somebody read it who was there at each event."""
        story, documents = self.story(make=make), list[bytes]()
        with anyio.fail_after(PATIENCE_SECONDS):
            async with await transport.start(self.server, story.body) as reading:
                for seq in range(1, story.last):
                    story.tell(seq)
                    documents += await reading.take(1)
                story.tell(story.last)
                documents += await documents_of(reading)
        check_whole(documents, story)
        return Told(reading.run_id, documents)

    async def rest(self, transport: Transport, run: "Told", after: int) -> list[bytes]:
        """All that a reader of a finished run gets from a cursor, merged texts as what they stand for."""
        return unmerged(await self.sent(transport, run, after), run.documents)

    async def sent(self, transport: Transport, run: "Told", after: int) -> list[bytes]:
        """All that a reader of a finished run is sent from a cursor; the stream ends by itself."""
        with anyio.fail_after(PATIENCE_SECONDS):
            reading = await transport.attach(self.server, run.run_id, after)
            if after < run.last:
                return await documents_of(reading)
            async with reading:
                assert await reading.next() is None, "something follows the end"
            return []

    async def get(self, path: str) -> Any:
        response = await request(self.server, "GET", path)
        assert response.status == 200, response
        return response.json

    async def check_stored(self, documents: Sequence[bytes]) -> None:
        """The run and the message on disk say what its readers saw, and that it ended as they saw it end."""
        start, end = json.loads(documents[0]), json.loads(documents[-1])
        run = await self.get(f"/chat/runs/{start['run_id']}")
        message = (await self.get(f"/chat/sessions/{start['session_id']}"))["messages"][-1]
        ends = {"stop": ("completed", "complete"), "cancelled": ("cancelled", "partial")}
        found, answer = (run["status"], message["status"]), answer_of(documents)
        assert found == ends[end["finish_reason"]], f"after {end['finish_reason']} the store says {found}"
        assert run["last_seq"] == end["seq"], f"the store says {run['last_seq']} of {end['seq']} events"
        assert {name: message[name] for name in answer} == answer, f"the store holds {message}"


@dataclass(frozen=True)
class Told:
    """A finished run and its uncut documents."""

    run_id: str
    documents: list[bytes]

    @property
    def last(self) -> int:
        return seq_of(self.documents[-1])


@asynccontextmanager
async def staged(directory: Path | None = None, **settings: Any) -> AsyncIterator[Stage]:
    """A stage of its own for one proof."""
    async with FakeUpstream() as upstream, live_server(upstream.url, directory=directory, **settings) as server:
        stage = Stage(server, upstream)
        upstream.always(stage.answer)
        yield stage


# ---- what readers may see -------------------------------------------------------------------------------------------


def check_same(documents: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """Byte for byte the same, none lost, none twice."""
    for number, (got, wanted) in enumerate(zip(documents, expected, strict=False), 1):
        assert got == wanted, f"document {number} is {got!r}, not {wanted!r}"
    assert len(documents) == len(expected), f"{len(documents)} documents, not {len(expected)}"


def check_once(documents: Sequence[bytes]) -> None:
    """Numbered 1, 2, 3 … without a gap, merged or not, of one run, with one terminal event, the last one."""
    messages = [json.loads(each) for each in documents]
    seqs = [seq for each in documents for seq in numbers_of(each)]
    assert seqs == list(range(1, len(seqs) + 1)), f"seqs are {seqs}"
    assert len({each["run_id"] for each in messages}) == 1
    ends = [each["seq"] for each in messages if each["type"] in TERMINAL]
    assert ends == seqs[-1:], f"terminal events at {ends} of {len(seqs)}"


def check_whole(documents: Sequence[bytes], story: Story) -> None:
    """All of the story, and nothing else."""
    check_once(documents)
    types = [json.loads(each)["type"] for each in documents for _ in numbers_of(each)]
    assert types == story.types, f"types are {types}"
    answer = answer_of(documents)
    assert (answer["content"], said_in(answer["parts"], "reasoning")) == (story.text, story.reasoning)


async def check_silence(reader: WsReader) -> None:
    """A WebSocket does not end with its runs: all it still says is the answer to a ping."""
    reader.send({"type": "ping"})
    assert (frame := await reader.frame()).type == "pong", f"behind the terminal event: {frame.raw!r}"


def check_rest(documents: Sequence[bytes], after: int, whole: Sequence[bytes]) -> None:
    """The documents are all that follows a cursor; texts may be merged."""
    check_same(unmerged(documents, whole), whole[after:])


def answer_of(documents: Iterable[bytes]) -> dict[str, Any]:
    """The answer as a client puts it together that knows only the contract."""
    parts: list[dict[str, Any]] = []
    for event in map(json.loads, documents):
        facts = {name: value for name, value in event.items() if name not in ("type", "run_id", "seq")}
        match event["type"]:
            case "token" | "reasoning":
                kind = "text" if event["type"] == "token" else "reasoning"
                if not parts or parts[-1]["type"] != kind:
                    parts.append({"type": kind, "text": ""})
                parts[-1]["text"] += event["content"]
            case "tool_call":
                no_result = dict.fromkeys(("result", "is_error", "truncated", "duration_ms"))
                parts.append({"type": "tool_call"} | facts | no_result)
            case "tool_result":
                call = next(part for part in parts if part.get("call_id") == event["call_id"])
                call |= facts
            case "snapshot":
                parts = event["parts"]
    return {"content": said_in(parts, "text"), "parts": parts}


def said_in(parts: Iterable[dict[str, Any]], kind: str) -> str:
    """All text of one kind of parts."""
    return "".join(part["text"] for part in parts if part["type"] == kind)


# ---- moments --------------------------------------------------------------------------------------------------------


def seeded() -> random.Random:
    """Randomness whose seed a failure shows; `CHATSERVER_SEED` gives it again."""
    seed = int(os.environ.get("CHATSERVER_SEED") or secrets.randbits(32))
    sys.stdout.write(f"CHATSERVER_SEED={seed}\n")
    return random.Random(seed)


def tell(result: str) -> None:
    """Say what a proof has counted; ``pytest -rP`` shows it."""
    sys.stdout.write(f"{result}\n")


async def turns(count: int) -> None:
    """Let the loop, with client, server and upstream in it, turn so many times."""
    for _ in range(count):
        await checkpoint()


async def leave(reading: Reading, way: int) -> None:
    """Go in one of the ways that clients go."""
    match way % 3:
        case 0:
            reading.cut()
        case 1:
            reading.reset()
        case _:
            await reading.leave()


@dataclass
class Hold:
    """A call that is held: it has ``come``, and goes on when ``let`` is set."""

    come: anyio.Event = field(default_factory=anyio.Event)
    let: anyio.Event = field(default_factory=anyio.Event)
    is_used: bool = False


@contextmanager
def held(owner: type, name: str, *, done: bool) -> Iterator[Hold]:
    """Hold the first call of an async method: before it does anything, or when it has done all but return."""
    original, hold = getattr(owner, name), Hold()

    async def holding(*args: Any, **kwargs: Any) -> Any:
        is_first, hold.is_used = not hold.is_used, True
        if not is_first:
            return await original(*args, **kwargs)
        result = await original(*args, **kwargs) if done else None
        hold.come.set()
        await hold.let.wait()
        return result if done else await original(*args, **kwargs)

    with patch.object(owner, name, holding):
        try:
            yield hold
        finally:
            hold.let.set()


async def cancelled_from(server: Address, transport: Transport, run_id: str) -> None:
    """Cancel as a client of this transport that does not read the run."""
    if transport is not WS:
        assert (await cancel(server, run_id)).status == 202
        return
    async with await WsReader.connect(server) as reader:
        await reader.cancel(run_id)
