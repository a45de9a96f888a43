"""What model servers were seen sending, byte by byte through the whole server: what a user sees, on both transports.

Each case is a script for a raw socket, made after reports of people who run this kind of server. A user sees the text,
the reasoning, the calls and the end; nothing else of what the upstream said.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple
from unittest.mock import patch

import anyio
import pytest

from chatserver.providers import tries, turn
from tests.clients import SSE, WS, Transport, documents_of
from tests.live import CANARY, LiveServer, live_server
from tests.tcp_server import HOST, tcp_server
from tests.virtual_time import leaping_time

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 50.0
IDLE_SECONDS, LAST_WORDS_SECONDS = 10.0, 5.0
"""How long the server waits, where it matters. Only pauses take so long, and no answer of this machine."""

LEAK = "upstream-text-canary"
KEEP = object()


class Pause(NamedTuple):
    """Time that passes at once: see ``leaping_time``."""

    seconds: float


Script = Sequence[bytes | Pause]


# ---- what upstreams write -------------------------------------------------------------------------------------------


def data(document: Any) -> bytes:
    """One event of the stream."""
    text = document if isinstance(document, str) else json.dumps(document)
    return f"data: {text}\n\n".encode()


def chunk(delta: Any = KEEP, finish: Any = None, **fields: Any) -> bytes:
    choice: dict[str, Any] = {"index": 0} | ({} if delta is KEEP else {"delta": delta}) | {"finish_reason": finish}
    return data(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]} | fields
    )


def say(text: Any, finish: Any = None) -> bytes:
    return chunk({"content": text}, finish)


def think(text: str, finish: Any = None) -> bytes:
    return chunk({"reasoning_content": text}, finish)


def fragment(arguments: Any = KEEP, *, finish: Any = None, text: str | None = None, **fields: Any) -> bytes:
    """A fragment of the first call; ``name`` goes with its function, everything else with the call."""
    function = {key: fields.pop(key) for key in ("name",) if key in fields}
    function |= {} if arguments is KEEP else {"arguments": arguments}
    delta = {"tool_calls": [{"index": 0} | fields | {"function": function}]} | ({"content": text} if text else {})
    return chunk(delta, finish)


def end(reason: Any = "stop", **fields: Any) -> bytes:
    return chunk({}, reason, **fields)


DONE = b"data: [DONE]\n\n"
OK = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def stream(*steps: bytes | Pause, head: str = OK, closes: bool = True) -> Script:
    """A chunked body, each step an HTTP chunk; ``closes``: it ends as it should, otherwise the connection is cut."""
    framed = [b"%x\r\n%b\r\n" % (len(step), step) if isinstance(step, bytes) else step for step in steps]
    return [f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *framed, *([b"0\r\n\r\n"] if closes else [])]


def whole(body: Any, status: int = 200, kind: str = "application/json", headers: str = "") -> Script:
    """A body at once."""
    text = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    type_line = f"Content-Type: {kind}\r\n" if kind else ""
    return [f"HTTP/1.1 {status} X\r\n{type_line}{headers}Content-Length: {len(text)}\r\n\r\n".encode() + text]


def half(script: Script) -> Script:
    """A body that is cut."""
    (text,) = script
    assert isinstance(text, bytes)
    return [text[:-50], b""]


def refuse(status: int, error: Any, headers: str = "") -> Script:
    return whole(error if isinstance(error, list | str | bytes) else {"error": error}, status, headers=headers)


def completion(message: dict[str, Any], finish: Any = "stop", **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]} | fields


HI = stream(say("fine"), end(), DONE)
SUM = '{"expression":"17*23"}'
CALLED = ("calculator", {"expression": "17*23"}, 391)


# ---- what users see -------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a user must see of one message, and how many requests it may take."""

    text: str = ""
    end: str = "stop"
    """Of `done` the finish reason, of `error` the code; behind the code `!`, if it is to be tried again."""
    reasoning: str = ""
    calls: tuple[tuple[Any, ...], ...] = ()
    requests: int = 1


class Case(NamedTuple):
    name: str
    turns: Sequence[Script]
    seen: Seen
    settings: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it


def one(name: str, *steps: bytes | Pause, seen: Seen, closes: bool = True, head: str = OK, **settings: Any) -> Case:
    """A case of one request."""
    return Case(name, [stream(*steps, closes=closes, head=head)], seen, settings)


def refused(name: str, status: int, error: Any, code: str, requests: int = 1, headers: str = "") -> Case:
    return Case(name, [refuse(status, error, headers)], Seen(end=code, requests=requests))


def again(name: str, first: Script, seen: Seen = Seen("fine", requests=2)) -> Case:  # noqa: B008 - a constant
    """A case whose second try is answered."""
    return Case(name, [first, HI], seen)


def numbered(*values: Any) -> Iterator[tuple[int, Any]]:
    return enumerate(values)


W = "w0 w1 w2 w3 w4 w5 "
WORDS = [f"w{n} " for n in range(6)]
ENDS = [
    *(
        one(
            f"finish-reason-{reason!r}-in-every-chunk",
            *(say(word, reason) for word in WORDS),
            end(),
            DONE,
            seen=Seen(W),
        )
        for _, reason in numbered("null", "", "None", " null ", "NULL", False, 0, [], {}, "unspecified")
    ),
    one("finish-stop-in-every-chunk", *(say(word, "stop") for word in WORDS), DONE, seen=Seen(W)),
    one("finish-stop-in-every-chunk-no-done", *(say(word, "stop") for word in WORDS), seen=Seen(W)),
    one(
        "a-pause-behind-a-finish",
        say("a", "stop"),
        Pause(1.0),
        say("b", "stop"),
        Pause(1.0),
        say("c"),
        DONE,
        seen=Seen("abc"),
    ),
    one(
        "finish-stop-on-reasoning",
        *(b for n in range(3) for b in (think(f"r{n} ", "stop"), Pause(0.2))),
        say("The answer."),
        end(),
        DONE,
        seen=Seen("The answer.", reasoning="r0 r1 r2 "),
    ),
    one("text-behind-the-finish", say("One"), end(), say(" two."), DONE, seen=Seen("One two.")),
    one(
        "finish-then-length", say("One"), end("stop"), say(" two"), end("length"), DONE, seen=Seen("One two", "length")
    ),
    one("done-without-a-reason", say("All of it."), DONE, seen=Seen("All of it.")),
    one("done-and-a-cut", say("All of it."), DONE, closes=False, seen=Seen("All of it.")),
    one("no-done", say("Whole."), end(), seen=Seen("Whole.")),
    one("no-done-and-the-connection-stays", say("Whole."), end(), Pause(LAST_WORDS_SECONDS + 1), seen=Seen("Whole.")),
    *(
        one(f"done-as-{line!r}", say("Whole."), line, seen=Seen("Whole."))
        for line in (
            b"data: [DONE] \n\n",
            b"data:[DONE]\n\n",
            b"data: [done]\n\n",
            b"data:   [DONE]\r\n\r\n",
            b"data: [DONE] bye {\n\n",
            b"data: [DONE]}\n\n",
            b'data: "[DONE]"\n\n',
            b"event: done\ndata: [DONE]\n\n",
            b"[DONE]\n\n",
            b"data: [DONE]",
        )
    ),
    one("cut-behind-the-finish", say("Whole."), end(), closes=False, seen=Seen("Whole.")),
    one("garbage-behind-the-finish", say("Whole."), end(), b"data: {{{\n\n", say("", None), DONE, seen=Seen("Whole.")),
    one("an-error-behind-the-finish", say("Whole."), end(), data({"error": {"code": 500}}), DONE, seen=Seen("Whole.")),
    one("a-failure-behind-the-finish", say("Whole."), end(), end("network_error"), DONE, seen=Seen("Whole.")),
    one("half-a-line-behind-the-finish", say("Whole."), end(), b'data: {"cho', closes=False, seen=Seen("Whole.")),
    one("no-end-at-all", say("Half an ans"), seen=Seen("Half an ans", "upstream_truncated!")),
    one("a-cut", say("Half an ans"), closes=False, seen=Seen("Half an ans", "upstream_truncated!")),
    *(
        one(f"finish-{reason}", say("Half an ans"), end(reason), DONE, seen=Seen("Half an ans", code))
        for reason, code in (
            ("network_error", "upstream_unavailable!"),
            ("insufficient_system_resource", "upstream_unavailable!"),
            ("server_error", "upstream_unavailable!"),
            ("error", "llm_error!"),
            ("abort", "llm_error!"),
            ("MALFORMED_FUNCTION_CALL", "llm_error!"),
            ("MAX_TOKENS", "length"),
            ("max_output_tokens", "length"),
            ("model_length", "length"),
            ("SAFETY", "content_filter"),
            ("sensitive", "content_filter"),
            ("RECITATION", "content_filter"),
            ("content_filter: PROHIBITED_CONTENT", "content_filter"),
            ("eos", "stop"),
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("STOP", "stop"),
        )
    ),
    Case("finish-network_error-at-once", [stream(end("network_error"), DONE), HI], Seen("fine", requests=2)),
]

REPEATED = [
    one(
        "the-last-chunk-is-the-whole-message",
        say("One"),
        say(" two."),
        data(
            {
                "object": "chat.completion.done",
                "choices": [{"finish_reason": "stop", "message": {"content": "One two."}}],
            }
        ),
        DONE,
        seen=Seen("One two."),
    ),
    one("the-last-delta-is-the-whole", say("One"), say(" two."), say("One two.", "stop"), DONE, seen=Seen("One two.")),
    one("the-whole-behind-the-finish", say("One"), say(" two."), end(), say("One two."), DONE, seen=Seen("One two.")),
    one(
        "a-message-beside-each-delta",
        *(
            data({"choices": [{"delta": {"content": word}, "message": {"content": "".join(WORDS[: n + 1])}}]})
            for n, word in enumerate(WORDS)
        ),
        end(),
        seen=Seen(W),
    ),
    one(
        "only-messages-that-grow",
        *(data({"choices": [{"message": {"content": "".join(WORDS[: n + 1])}}]}) for n in range(6)),
        end(),
        seen=Seen(W),
    ),
    one(
        "a-reasoning-again",
        think("hm "),
        think("hm."),
        say("A"),
        say(" B"),
        chunk({"reasoning_content": "hm hm.", "content": "A B"}, "stop"),
        DONE,
        seen=Seen("A B", reasoning="hm hm."),
    ),
    one("ha-ha", say("ha"), say("ha", "stop"), DONE, seen=Seen("haha")),
    one("ha-ha-ha-ha", say("ha"), say("ha"), say("haha", "stop"), DONE, seen=Seen("hahahaha")),
    one("la-la", say("la "), say("la "), say("la la ", "stop"), DONE, seen=Seen("la la la la ")),
    one("line-by-line", say("la\n"), say("la\n"), say("la\nla\n", "stop"), DONE, seen=Seen("la\nla\nla\nla\n")),
    one("0 and 00", say("0"), say("00"), say("000"), end(), DONE, seen=Seen("000000")),
]


def calls_of(name: str, *steps: bytes | Pause, text: str = "") -> Case:
    """A turn that calls the calculator once, then an answer."""
    return Case(name, [stream(*steps), HI], Seen(f"{text}fine", calls=(CALLED,), requests=2))


FIRST = fragment("", name="calculator", id="a1", type="function")
CALL_ENDS = (end("tool_calls"), DONE)
PHANTOM = {"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": None}}
CALLS = [
    *(
        one(
            f"a-phantom-call-{n}",
            chunk({"content": "Hello", "tool_calls": calls}),
            end(reason),
            DONE,
            seen=Seen("Hello"),
        )
        for n, calls in numbered(
            *(
                [PHANTOM],
                [{"index": 0, "id": "", "function": {"name": "", "arguments": ""}}],
                [{"index": 0, "function": {"arguments": "null"}}],
                [{"index": 0, "id": "call_1", "type": "function"}],
                [{}],
                [None],
                [],
                {},
                "",
                0,
            )
        )
        for reason in ("stop", "tool_calls")
    ),
    calls_of(
        "cumulative-arguments",
        fragment('{"expr', name="calculator", id="c"),
        fragment('{"expression":"17'),
        fragment(SUM),
        *CALL_ENDS,
    ),
    calls_of("cumulative-by-character", FIRST, *(fragment(SUM[: n + 1]) for n in range(len(SUM))), *CALL_ENDS),
    calls_of("cumulative-with-repeats", FIRST, *(fragment(SUM[: n // 2 + 1]) for n in range(2 * len(SUM))), *CALL_ENDS),
    calls_of("the-arguments-again", FIRST, fragment(SUM[:9]), fragment(SUM[9:]), fragment(SUM), *CALL_ENDS),
    calls_of("the-arguments-thrice", FIRST, fragment(SUM), fragment(SUM), fragment(SUM, finish="tool_calls"), DONE),
    calls_of(
        "the-arguments-again-in-a-message",
        FIRST,
        fragment(SUM[:9]),
        fragment(SUM[9:]),
        data(
            {
                "choices": [
                    {
                        "message": {
                            "content": None,
                            "tool_calls": [
                                {"id": "a1", "type": "function", "function": {"name": "calculator", "arguments": SUM}}
                            ],
                        },
                        "finish_reason": "tool_calls",
                    }
                ]
            }
        ),
        DONE,
    ),
    calls_of(
        "an-empty-object-first",
        fragment("{}", name="calculator", id="c"),
        fragment(SUM[:9]),
        fragment(SUM[9:]),
        *CALL_ENDS,
    ),
    calls_of("an-empty-object-last", FIRST, fragment(SUM[:9]), fragment(SUM[9:]), fragment("{}"), *CALL_ENDS),
    calls_of("arguments-as-an-object", fragment({"expression": "17*23"}, name="calculator", id="c"), *CALL_ENDS),
    calls_of(
        "index-as-text",
        chunk({"tool_calls": [{"index": "0", "id": "c", "function": {"name": "calculator", "arguments": SUM[:5]}}]}),
        chunk({"tool_calls": [{"index": "0", "function": {"arguments": SUM[5:]}}]}),
        *CALL_ENDS,
    ),
    calls_of(
        "one-call-not-in-a-list",
        chunk({"tool_calls": {"id": "c", "function": {"name": "calculator", "arguments": SUM}}}),
        *CALL_ENDS,
    ),
    calls_of(
        "a-finish-with-each-fragment",
        fragment(SUM[:5], name="calculator", id="c", finish="tool_calls"),
        Pause(0.3),
        fragment(SUM[5:], finish="tool_calls"),
        DONE,
    ),
    calls_of("stop-although-it-calls", fragment(SUM, name="calculator", id="c", finish="stop"), DONE),
    calls_of("done-without-a-reason-behind-a-call", fragment(SUM, name="calculator", id="c"), DONE),
    calls_of(
        "a-phantom-behind-a-call",
        fragment(SUM, name="calculator", id="c"),
        chunk({"tool_calls": [PHANTOM | {"index": 1}]}),
        *CALL_ENDS,
    ),
    Case(
        "a-finish-with-each-parallel-call",
        [
            stream(
                fragment(SUM, name="calculator", id="a", finish="tool_calls"),
                Pause(0.3),
                chunk(
                    {
                        "tool_calls": [
                            {
                                "index": 1,
                                "id": "b",
                                "function": {"name": "calculator", "arguments": '{"expression":"1+1"}'},
                            }
                        ]
                    },
                    "tool_calls",
                ),
                DONE,
            ),
            HI,
        ],
        Seen("fine", calls=(CALLED, ("calculator", {"expression": "1+1"}, 2)), requests=2),
    ),
]

BEATS = [
    *(
        one(f"a-heartbeat-{n}", beat, say("H"), beat, say("i"), beat, end(), beat, DONE, seen=Seen("Hi"))
        for n, beat in numbered(
            *(
                b"data: \n\n",
                b"data:\n\n",
                b"data: null\n\n",
                b": ping\n\n",
                b": OPENROUTER PROCESSING\n\n",
                b"data: : keepalive\n\n",
                b"event: ping\ndata: keepalive\n\n",
                b'event: ping\ndata: {"message":"still here"}\n\n',
                b"event: heartbeat\ndata: {\n\n",
                b'event: queue\ndata: {"message":"place 3"}\n\n',
                b"event: keepalive\n\n",
                b"id: 7\n\n",
                b"retry: 10\n\n",
                data({}),
                data({"type": "ping"}),
                data({"type": "heartbeat", "message": "alive"}),
                data({"choices": []}),
                data({"choices": None}),
                data([]),
                data("true"),
                data("[HEARTBEAT]"),
                data("ping"),
                data({"error": None}),
                data({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": None}),
            )
        )
    ),
    one(
        "a-queue",
        *(b for _ in range(12) for b in (b": PROCESSING\n\n", Pause(1.0))),
        say("Hi"),
        end(),
        DONE,
        seen=Seen("Hi"),
        upstream_idle_seconds=IDLE_SECONDS,
    ),
    one(
        "a-queue-of-heartbeats",
        *(b for _ in range(12) for b in (data({"type": "ping"}), Pause(1.0))),
        say("Hi"),
        end(),
        DONE,
        seen=Seen("Hi"),
        upstream_idle_seconds=IDLE_SECONDS,
    ),
    one(
        "silence",
        say("H"),
        Pause(IDLE_SECONDS + 1),
        say("i"),
        end(),
        DONE,
        seen=Seen("H", "upstream_timeout!"),
        upstream_idle_seconds=IDLE_SECONDS,
    ),
]

ODD = [
    *(
        one(f"an-odd-field-{n}", chunk({"content": "Hi"}, None, **odd), end(), DONE, seen=Seen("Hi"))
        for n, odd in numbered(
            *(
                {"id": 7, "created": "yesterday", "model": None},
                {"usage": [1, 2]},
                {"usage": "none"},
                {"usage": {"prompt_tokens": "3", "completion_tokens": {}}},
                {"x_groq": "x"},
                {"object": ["chat.completion.chunk"]},
                {"type": 7},
                {"type": ["a"]},
                {"error": {"code": 0, "message": ""}},
                {"prompt_filter_results": {}, "system_fingerprint": 3},
                {"base_resp": {"status_code": 0, "status_msg": ""}},
            )
        )
    ),
    *(
        one(f"an-odd-choice-{n}", data({"choices": [{"delta": {"content": "Hi"}} | odd]}), end(), DONE, seen=Seen("Hi"))
        for n, odd in numbered(
            *(
                {"index": "0"},
                {"index": None},
                {"logprobs": 3},
                {"finish_reason": {}},
                {"message": None},
                {"error": None},
                {"text": 3},
            )
        )
    ),
    *(
        one(f"an-odd-delta-{n}", chunk({"content": "Hi"} | odd), end(), DONE, seen=Seen("Hi"))
        for n, odd in numbered(
            *(
                {"role": 3},
                {"tool_calls": "none"},
                {"tool_calls": {"a": 1}},
                {"function_call": "x"},
                {"function_call": None},
                {"reasoning": {"effort": "low"}},
                {"reasoning_content": []},
                {"refusal": False},
                {"audio": 3},
            )
        )
    ),
    one("content-a-number", say("I count "), say(7), say(0), say(1.5), end(), DONE, seen=Seen("I count 701.5")),
    one("content-an-object", say({"text": "Hi"}), end(), DONE, seen=Seen("Hi")),
    one(
        "content-in-parts",
        say(["H", {"type": "text", "text": "i"}, {"type": "image"}, 7, None]),
        end(),
        DONE,
        seen=Seen("Hi7"),
    ),
    one(
        "two-documents-in-one-event",
        data(
            json.dumps({"choices": [{"delta": {"content": "H"}}]})
            + json.dumps({"choices": [{"delta": {"content": "i"}}]})
        ),
        end(),
        DONE,
        seen=Seen("Hi"),
    ),
    one(
        "no-blank-lines", *(each.replace(b"\n\n", b"\n") for each in (say("H"), say("i"), end(), DONE)), seen=Seen("Hi")
    ),
    one(
        "a-list-of-chunks",
        data([{"choices": [{"delta": {"content": "H"}}]}, {"choices": [{"delta": {"content": "i"}}]}]),
        end(),
        DONE,
        seen=Seen("Hi"),
    ),
    one(
        "the-text-of-the-old-api",
        data({"choices": [{"text": "Hi", "finish_reason": None}]}),
        end(),
        DONE,
        seen=Seen("Hi"),
    ),
]

HI_JSON = {"content": "Hi", "reasoning_content": "hm"}
FORMS = [
    one(
        "sse-as-json", say("Hi"), end(), DONE, head=OK.replace("text/event-stream", "application/json"), seen=Seen("Hi")
    ),
    one("sse-as-text", say("Hi"), end(), DONE, head=OK.replace("text/event-stream", "text/plain"), seen=Seen("Hi")),
    one("sse-as-nothing", say("Hi"), end(), DONE, head="HTTP/1.1 200 OK\r\n", seen=Seen("Hi")),
    *(
        Case(f"a-whole-answer-{n}", [whole(body, kind=kind)], Seen("Hi", reasoning="hm"))
        for n, (body, kind) in numbered(
            *(
                (completion(HI_JSON), "application/json"),
                (completion(HI_JSON, None), "application/json; charset=utf-8"),
                (json.dumps(completion(HI_JSON), indent=2), "application/json"),
                ("\n\n\n" + json.dumps(completion(HI_JSON), indent=2) + "\n", "application/json"),
                (completion(HI_JSON), "text/event-stream"),
                (completion(HI_JSON), ""),
                (completion({"content": "<think>\nhm</think>\n\nHi"}), "application/json"),
            )
        )
    ),
    Case(
        "a-whole-call",
        [
            whole(
                completion(
                    {
                        "content": None,
                        "tool_calls": [
                            {"id": "a", "type": "function", "function": {"name": "calculator", "arguments": SUM}}
                        ],
                    },
                    "tool_calls",
                )
            ),
            HI,
        ],
        Seen("fine", calls=(CALLED,), requests=2),
    ),
    Case("a-whole-answer-cut-by-length", [whole(completion(HI_JSON, "length"))], Seen("Hi", "length", reasoning="hm")),
    Case("half-a-whole-answer", [half(whole(completion(HI_JSON))), HI], Seen("fine", requests=2)),
    Case("a-whole-error", [whole({"error": {"message": LEAK, "code": 429}})], Seen(end="rate_limited!")),
    Case(
        "chunks-a-line-each",
        [
            whole(
                "".join(json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n" for text in "Hi")
                + json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            )
        ],
        Seen("Hi"),
    ),
    Case("a-web-page", [whole("<html>Welcome", kind="text/html")], Seen(end="llm_error")),
]


def thoughts(name: str, *texts: str, text: str = "Hi", reasoning: str = "hm", finish: str = "stop") -> Case:
    return one(f"think-{name}", *map(say, texts), end(finish), DONE, seen=Seen(text, finish, reasoning=reasoning))


THOUGHT = "<think>\nhm</think>\n\nHi"
THINK = [
    thoughts("in-one", THOUGHT),
    thoughts("by-character", *THOUGHT),
    thoughts("behind-blanks", "\n", " <think>hm</think>Hi"),
    thoughts("another-word", "<thinking>hm</thinking>Hi"),
    thoughts("magistral", "[THINK]hm[/THINK]Hi"),
    thoughts("gemini", "<thought>hm</thought>", "Hi"),
    thoughts("nothing-thought", "<think>\n\n</think>\n\n", "Hi", reasoning=""),
    thoughts("never-closed", "<think>", "hm", text="", finish="length"),
    thoughts("never-closed-at-half-a-tag", "<think>hm</thi", text="", reasoning="hm</thi", finish="length"),
    thoughts("with-other-tags", "<think>a </b> <think> </think>Hi", reasoning="a </b> <think> "),
    thoughts("not-at-the-beginning", "Use ", "<think>x</think>", text="Use <think>x</think>", reasoning=""),
    thoughts("twice", "<think>hm</think>Hi <think>x</think>", text="Hi <think>x</think>"),
    thoughts("only-closed", "a", "</think>", "b", text="a</think>b", reasoning=""),
    thoughts("another-tag", "<thin", "g>", text="<thing>", reasoning=""),
    thoughts("half-a-tag", "<thi", text="<thi", reasoning=""),
    thoughts("blanks", " ", "\n", "Hi", text=" \nHi", reasoning=""),
]

MID = say("Half an ")
IN_STREAM = [
    one(
        "in-stream-429",
        data(
            {"error": {"code": 429, "message": LEAK}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}
        ),
        seen=Seen(end="rate_limited!"),
    ),
    one(
        "in-stream-429-mid",
        MID,
        data({"error": {"code": "429", "message": LEAK}}),
        seen=Seen("Half an ", "rate_limited!"),
    ),
    one(
        "in-stream-503-mid",
        MID,
        data({"error": {"code": 503, "message": LEAK}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
        seen=Seen("Half an ", "upstream_unavailable!"),
    ),
    one("in-stream-401", data({"error": {"code": 401, "message": LEAK}}), seen=Seen(end="auth_failed")),
    one(
        "in-stream-quota",
        data({"error": {"code": "insufficient_quota", "message": LEAK}}),
        seen=Seen(end="rate_limited"),
    ),
    one(
        "in-stream-context",
        data({"error": {"code": "context_length_exceeded", "message": LEAK}}),
        seen=Seen(end="context_length"),
    ),
    one(
        "in-stream-filter",
        data({"error": {"code": "content_filter", "message": LEAK}}),
        seen=Seen(end="content_filter"),
    ),
    one("in-stream-unknown", data({"error": LEAK}), seen=Seen(end="llm_error")),
    one(
        "gemini-blocks-the-prompt", data({"promptFeedback": {"blockReason": "SAFETY"}}), seen=Seen(end="content_filter")
    ),
    again("in-stream-503", stream(data({"error": {"code": 503, "message": LEAK}}))),
    again(
        "in-stream-overloaded",
        stream(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}\n\n'),
    ),
    again(
        "in-stream-502-of-openrouter",
        stream(
            b": OPENROUTER PROCESSING\n\n",
            data(
                {
                    "error": {"code": 502, "message": LEAK},
                    "choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": "error"}],
                }
            ),
        ),
    ),
]

LONG = "context_length"
TOO_LONG: list[tuple[str, int, Any]] = [
    (
        "gemini",
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (1200000) exceeds the maximum number of tokens allowed.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
    ),
    (
        "xai",
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        },
    ),
    (
        "tgi",
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096.",
            "error_type": "validation",
        },
    ),
    (
        "tgi-inputs",
        422,
        {
            "error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1301",
            "error_type": "validation",
        },
    ),
    (
        "kimi",
        400,
        {
            "error": {
                "message": "Invalid request: Your request exceeded model token limit: 8192",
                "type": "invalid_request_error",
            }
        },
    ),
    (
        "dashscope",
        400,
        {
            "error": {
                "code": "invalid_parameter_error",
                "message": "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
            }
        },
    ),
    ("glm", 400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}),
    (
        "vllm",
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
            "code": 400,
        },
    ),
    (
        "llama.cpp",
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
            }
        },
    ),
    (
        "anthropic",
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
        },
    ),
    (
        "groq",
        400,
        {
            "error": {
                "message": "Please reduce the length of the messages or completion.",
                "type": "invalid_request_error",
                "code": "context_length_exceeded",
            }
        },
    ),
    (
        "lm-studio",
        400,
        {"error": "The number of tokens to keep from the initial prompt is greater than the context length"},
    ),
    (
        "copilot",
        400,
        {
            "error": {
                "message": "prompt token count of 140000 exceeds the limit of 128000",
                "code": "model_max_prompt_tokens_exceeded",
            }
        },
    ),
    ("text", 400, "Error: Input is too long for requested model."),
    ("text-413", 413, "Payload Too Large"),
    ("bytes", 400, b"\xff prompt is too long"),
]
REFUSALS = [
    *(Case(f"too-long-{name}", [whole(body, status)], Seen(end=LONG)) for name, status, body in TOO_LONG),
    again("408", refuse(408, {"message": LEAK})),
    again("409", refuse(409, {"message": LEAK})),
    again("503", refuse(503, {"message": LEAK})),
    again("503-with-retry-after", refuse(503, {"message": LEAK}, "Retry-After: 1\r\n")),
    refused("503-for-longer", 503, {"message": LEAK}, "upstream_unavailable!", headers="Retry-After: 30\r\n"),
    refused("529-for-longer", 529, {"message": LEAK}, "upstream_unavailable!", headers="Retry-After: 30\r\n"),
    refused("429", 429, {"message": LEAK}, "rate_limited!"),
    refused("429-spent", 429, {"message": LEAK, "type": "insufficient_quota"}, "rate_limited"),
    refused("429-spent-at-kimi", 429, {"message": LEAK, "type": "exceeded_current_quota_error"}, "rate_limited"),
    refused(
        "413-of-groq",
        413,
        {"message": "Request too large, tokens per minute", "code": "rate_limit_exceeded"},
        "rate_limited!",
    ),
    refused("401", 401, {"message": LEAK}, "auth_failed"),
    refused(
        "400-of-a-key",
        400,
        [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}],
        "auth_failed",
    ),
    refused("402", 402, {"message": "Insufficient Balance"}, "llm_error"),
    refused("404", 404, {"message": "model 'x' not found, try pulling it first"}, "llm_error"),
    refused(
        "azure-filter",
        400,
        {"code": "content_filter", "message": LEAK, "innererror": {"code": "ResponsibleAIPolicyViolation"}},
        "content_filter",
    ),
    refused("dashscope-filter", 400, {"code": "data_inspection_failed", "message": LEAK}, "content_filter"),
    refused(
        "kimi-filter",
        400,
        {"type": "content_filter", "message": "The request was rejected because it was considered high risk"},
        "content_filter",
    ),
    refused("glm-filter", 400, {"code": "1301", "message": "x"}, "content_filter"),
    refused("openrouter-moderation", 403, {"code": 403, "message": "Your input was flagged"}, "content_filter"),
]

EVERY = [*ENDS, *REPEATED, *CALLS, *BEATS, *ODD, *FORMS, *THINK, *IN_STREAM, *REFUSALS]


# ---- the stage ------------------------------------------------------------------------------------------------------


class RawUpstream:
    """A socket that answers each request with the next script, the last one again and again."""

    def __init__(self, pause: Callable[[float], Awaitable[None]]) -> None:
        self._pause = pause
        self.requests: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.connections = 0
        self.url = ""
        self._turns: list[Script] = []
        self._checks: Any = None

    def play(self, turns: Sequence[Script], checks: Any = None) -> None:
        """Begin a case; ``checks`` may refuse a request by a script of its own."""
        self._turns, self._checks = list(turns), checks
        self.requests.clear()
        self.heads.clear()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if head.startswith("get "):  # Which models there are; that is not told here.
                writer.write(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
                continue
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            self.heads.append(head)
            self.requests.append(json.loads(await reader.readexactly(length)))
            script = self._checks(self.requests) if self._checks else None
            if script is None:
                script = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
            for step in script:
                if isinstance(step, Pause):
                    await self._pause(step.seconds)
                else:
                    writer.write(step)
                    await writer.drain()
            if not _is_ended(script):
                break


def _is_ended(script: Script) -> bool:
    return script[-1] == b"0\r\n\r\n" or len(script) == 1


@asynccontextmanager
async def raw_upstream(pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream(pause)
    async with tcp_server(upstream.answer) as port:
        upstream.url = f"http://{HOST}:{port}/v1"
        yield upstream


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[tuple[LiveServer, RawUpstream]]:
    with (
        leaping_time(turn) as clock,
        patch.object(turn, "LAST_WORDS_SECONDS", LAST_WORDS_SECONDS),
        patch.object(tries, "RETRY_DEADLINE_SECONDS", IDLE_SECONDS),
        patch.object(tries, "backoff", lambda: iter([0.01] * tries.RETRIES_LIMIT)),
    ):
        async with raw_upstream(clock.pause) as upstream, live_server(upstream.url) as server:
            yield server, upstream


async def seen_of(server: LiveServer, transport: Transport, body: dict[str, Any], requests: Sequence[Any]) -> Seen:
    with anyio.fail_after(PATIENCE_SECONDS):
        events = [json.loads(each) for each in await documents_of(await transport.start(server, body))]
    assert LEAK not in json.dumps(events)
    last = events[-1]
    ending = last["finish_reason"] if last["type"] == "done" else last["code"] + "!" * last["retryable"]
    results = {each["call_id"]: each["result"] for each in events if each["type"] == "tool_result"}
    return Seen(
        text="".join(each["content"] for each in events if each["type"] == "token"),
        end=ending,
        reasoning="".join(each["content"] for each in events if each["type"] == "reasoning"),
        calls=tuple((e["tool"], e["args"], results[e["call_id"]]) for e in events if e["type"] == "tool_call"),
        requests=len(requests),
    )


numbers = count()


@pytest.mark.parametrize("transport", [SSE, WS], ids=str)
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
async def test_a_user_sees_what_was_meant(
    stage: tuple[LiveServer, RawUpstream], case: Case, transport: Transport
) -> None:
    server, upstream = stage
    upstream.play(case.turns)
    body = {"message": f"Hello {next(numbers)}"}
    if not case.settings:
        assert await seen_of(server, transport, body, upstream.requests) == case.seen
        return
    async with live_server(upstream.url, **case.settings) as other:
        assert await seen_of(other, transport, body, upstream.requests) == case.seen


# ---- more than one request ------------------------------------------------------------------------------------------


async def test_a_session_goes_on_behind_an_answer_that_failed(stage: tuple[LiveServer, RawUpstream]) -> None:
    """For models whose roles must alternate, two messages of the user are one."""
    server, upstream = stage

    def alternating(requests: list[dict[str, Any]]) -> Script | None:
        roles = [each["role"] for each in requests[-1]["messages"]]
        if roles != (["user", "assistant"] * len(roles))[: len(roles)]:
            return refuse(400, {"message": "Conversation roles must alternate user/assistant/user/assistant/..."})
        return None

    upstream.play([refuse(429, {"message": "busy"}), stream(end(), DONE), HI], alternating)
    body = {"session_id": f"alternates-{next(numbers)}"}
    ends = [await seen_of(server, SSE, body | {"message": f"m{n}"}, ()) for n in range(4)]
    assert [each.end for each in ends] == ["rate_limited!", "stop", "stop", "stop"]
    told = [(each["role"], each["content"]) for each in upstream.requests[-1]["messages"]]
    assert told == [("user", "m0\n\nm1\n\nm2"), ("assistant", "fine"), ("user", "m3")]


NO_TOOLS = {"message": "m does not support tools", "type": "invalid_request_error"}
NO_OPTIONS = json.dumps(
    {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]}}
)
NO_MAX_TOKENS = {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", "param": "max_tokens"}
NO_TEMPERATURE = {"message": "Unsupported value: 'temperature' does not support 0.5", "param": "temperature"}
NO_STREAM = {"message": "Your organization must be verified to stream this model.", "param": "stream"}
WHOLE = whole(completion({"content": "fine"}))


@pytest.mark.parametrize(
    ("refusals", "left_out", "answer"),
    [
        ([refuse(400, NO_TOOLS)], {"tools"}, HI),
        ([refuse(404, {"message": "No endpoints found that support tool use."})], {"tools"}, HI),
        ([refuse(500, {"code": 500, "message": "tools param requires --jinja flag"})], {"tools"}, HI),
        ([stream(data({"error": NO_TOOLS}))], {"tools"}, HI),
        ([refuse(422, NO_OPTIONS)], {"stream_options"}, HI),
        ([refuse(400, NO_MAX_TOKENS)], {"max_tokens"}, HI),
        ([refuse(400, NO_TEMPERATURE)], {"temperature"}, HI),
        ([refuse(400, NO_STREAM)], {"stream_options"}, WHOLE),
        (
            [refuse(422, NO_OPTIONS), refuse(400, NO_TOOLS), refuse(400, NO_TEMPERATURE)],
            {"stream_options", "tools", "temperature"},
            HI,
        ),
    ],
)
async def test_a_refused_parameter_is_left_out_and_remembered_for_its_model(
    stage: tuple[LiveServer, RawUpstream],
    caplog: pytest.LogCaptureFixture,
    refusals: list[Script],
    left_out: set[str],
    answer: Script,
) -> None:
    server, upstream = stage
    model = f"model-{next(numbers)}"
    body = {"message": "Hi", "model": model, "temperature": 0.5, "max_output_tokens": 9}
    upstream.play([*refusals, answer])
    for requests in (len(refusals) + 1, len(refusals) + 2):
        assert await seen_of(server, SSE, body, upstream.requests) == Seen("fine", requests=requests)
    first, *_, last = upstream.requests
    assert set(first) - set(last) == left_out
    assert set(last) - set(first) == ({"max_completion_tokens"} if "max_tokens" in left_out else set())
    assert last["stream"] is (answer is HI)
    assert len([line for line in caplog.messages if "left out from now on" in line and model in line]) == 1
    upstream.play([HI])
    await seen_of(server, SSE, body | {"model": "another"}, ())
    assert set(upstream.requests[0]) == set(first)


async def test_a_parameter_is_not_remembered_for_a_refusal_that_it_was_not(
    stage: tuple[LiveServer, RawUpstream], caplog: pytest.LogCaptureFixture
) -> None:
    """Who writes what a server then quotes must not take the tools from all."""
    server, upstream = stage
    body = {"message": "tools are not supported", "model": f"model-{next(numbers)}"}
    upstream.play([refuse(400, {"message": f"cannot read: {body['message']}"})])
    assert (await seen_of(server, SSE, body, upstream.requests)) == Seen(end="llm_error", requests=2)
    upstream.play([HI])
    await seen_of(server, SSE, body, ())
    assert "tools" in upstream.requests[0]
    assert "left out" not in caplog.text


async def test_settings_leave_parameters_out_at_once(stage: tuple[LiveServer, RawUpstream]) -> None:
    _, upstream = stage
    upstream.play([HI])
    async with live_server(upstream.url, upstream_omit=("tools", "max_tokens", "stream_options")) as server:
        await seen_of(server, WS, {"message": "Hi", "max_output_tokens": 9}, ())
    (request,) = upstream.requests
    assert set(request) == {"model", "messages", "stream", "max_completion_tokens"}


@pytest.mark.parametrize("status", [408, 409])
async def test_a_stale_connection_is_not_used_for_the_next_try(
    stage: tuple[LiveServer, RawUpstream], status: int
) -> None:
    server, upstream = stage
    upstream.play([HI])
    await seen_of(server, SSE, {"message": "Hi"}, ())
    connections = upstream.connections
    upstream.play([refuse(status, {"message": "stale"}), HI])
    assert (await seen_of(server, SSE, {"message": "Hi"}, upstream.requests)) == Seen("fine", requests=2)
    assert upstream.connections == connections + 1


async def test_a_server_is_not_asked_before_the_time_that_it_names(stage: tuple[LiveServer, RawUpstream]) -> None:
    server, upstream = stage
    upstream.play([refuse(503, {"message": "later"}, "Retry-After-Ms: 900\r\nRetry-After: 1\r\n"), HI])
    began = asyncio.get_running_loop().time()
    assert (await seen_of(server, SSE, {"message": "Hi"}, upstream.requests)) == Seen("fine", requests=2)
    assert asyncio.get_running_loop().time() - began >= 0.9


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_client_is_told_when_to_come_back(stage: tuple[LiveServer, RawUpstream], status: int) -> None:
    server, upstream = stage
    upstream.play([refuse(status, {"message": "later"}, "Retry-After: 30\r\n")])
    last = json.loads((await documents_of(await SSE.start(server, {"message": "Hi"})))[-1])
    assert (last["type"], last["retry_after"], len(upstream.requests)) == ("error", 30.0, 1)


# ---- the log --------------------------------------------------------------------------------------------------------

PROMPT = "My diagnosis is something that nobody else shall come to know."
QUOTED = f"{LEAK}: key {CANARY}, Bearer abcdefgh-12345678, cannot read '{PROMPT}' \x1b[31m\n\nnext line"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (refuse(400, {"message": QUOTED, "code": "bad"}), ["answered 400", LEAK, "code bad"]),
        (refuse(401, {"message": QUOTED}), ["answered 401", LEAK]),
        (refuse(429, {"message": QUOTED}), ["answered 429", LEAK]),
        (refuse(503, QUOTED), ["answered 503", LEAK, "tried again in"]),
        (refuse(404, {"message": "model 'm' not found"}), ["answered 404", "model 'm' not found"]),
        (stream(data({"error": {"message": QUOTED, "code": 418}})), ["in the stream", LEAK]),
        (stream(say("Hi"), data({"error": {"message": QUOTED, "code": 502}})), ["in the stream", LEAK]),
        (stream(say("Hi"), end("network_error")), ["gave the answer up", "network_error"]),
        (stream(say("Hi"), closes=False), ["ended in mid answer"]),
        (stream(say("Hi"), data("{{")), ["makes no sense"]),
        (whole("<html>", kind="text/html"), ["a web page"]),
    ],
)
async def test_the_log_says_why_in_one_line_with_the_run_and_no_secret(
    stage: tuple[LiveServer, RawUpstream], caplog: pytest.LogCaptureFixture, script: Script, words: list[str]
) -> None:
    server, upstream = stage
    upstream.play([script])
    with caplog.at_level(logging.WARNING):
        events = [json.loads(each) for each in await documents_of(await WS.start(server, {"message": PROMPT}))]
    lines = [line for line in caplog.messages if "the model server" in line]
    assert len(lines) == len(upstream.requests)
    for word in [events[0]["run_id"], *words]:
        assert word in lines[0]
    for line in lines:
        assert line.isprintable()
        assert len(line) < 400
        for secret in (CANARY, "abcdefgh", "diagnosis", "nobody else"):
            assert secret not in line
    message = events[-1]["message"]
    for word in (LEAK, CANARY, "diagnosis", "Traceback"):
        assert word not in message


async def test_the_log_says_that_nobody_is_there(caplog: pytest.LogCaptureFixture) -> None:
    async with live_server("http://127.0.0.1:1/v1") as server:
        events = [json.loads(each) for each in await documents_of(await SSE.start(server, {"message": "Hi"}))]
    lines = [line for line in caplog.messages if "cannot be reached" in line]
    assert len(lines) == 3
    assert all(events[0]["run_id"] in line and "refused" in line.lower() for line in lines), lines


async def test_the_log_says_that_no_safe_connection_could_be_made(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\nplain HTTP only")

    async with tcp_server(refuse_tls) as port, live_server(f"https://{HOST}:{port}/v1") as server:
        events = [json.loads(each) for each in await documents_of(await SSE.start(server, {"message": "Hi"}))]
    assert "SSL" in next(line for line in caplog.messages if "cannot be reached" in line)
    assert events[-1]["code"] == "upstream_unavailable"
    assert "certificate" in events[-1]["message"]


@pytest.mark.parametrize(
    ("script", "word"),
    [
        (refuse(401, {"message": "no"}), "OPENAI_API_KEY"),
        (refuse(404, {"message": "model 'm' not found"}), "CHATSERVER_MODEL"),
        (refuse(400, {"message": "Model Not Exist"}), "CHATSERVER_MODEL"),
        (refuse(404, "404 page not found"), "OPENAI_BASE_URL"),
        (refuse(402, {"message": "Insufficient Balance"}), "account"),
        (refuse(429, {"code": "insufficient_quota"}), "quota"),
        (whole("<html>", kind="text/html"), "OPENAI_BASE_URL"),
    ],
)
async def test_the_message_says_what_an_operator_can_do(
    stage: tuple[LiveServer, RawUpstream], script: Script, word: str
) -> None:
    server, upstream = stage
    upstream.play([script])
    last = json.loads((await documents_of(await SSE.start(server, {"message": "Hi"})))[-1])
    assert word in last["message"]
