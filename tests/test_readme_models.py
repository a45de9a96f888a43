"""Each line of README that names a model server, tried against a script of that server's own."""

import re
import shlex
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import pytest

from chatserver.settings.loading import load
from tests.clients import SSE
from tests.live import live_server
from tests.test_documents import README, fenced
from tests.test_upstream_cases import (
    CALLED,
    DONE,
    HI,
    SUM,
    RawUpstream,
    Script,
    Seen,
    chunk,
    data,
    end,
    fragment,
    raw_upstream,
    refuse,
    say,
    seen_of,
    stream,
    think,
)

pytestmark = pytest.mark.anyio

KEY = "sk-test-canary"
BODY = {"message": "What is 17*23?", "max_output_tokens": 9}


class Server(NamedTuple):
    """What a server takes, and what it answers."""

    path: str
    header: str
    """In the head of each request."""
    turns: list[Script]
    seen: Seen
    lacks: frozenset[str] = frozenset()
    """What its requests, at last, do not have."""


BEARER = f"authorization: bearer {KEY}"
CALL = {"id": "a1", "type": "function", "function": {"name": "calculator", "arguments": SUM}}
NAMELESS: dict[str, Any] = {"id": "", "created": 0, "model": ""}
FINE = Seen("fine", calls=(CALLED,), requests=2)
NO_MAX_TOKENS = {
    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
    "param": "max_tokens",
}
SERVERS = {
    "OpenAI": Server(
        "/v1/chat/completions",
        BEARER,
        [stream(fragment("", name="calculator", id="a1"), fragment(SUM), end("tool_calls"), DONE), HI],
        FINE,
        frozenset({"max_tokens"}),
    ),
    "Azure OpenAI": Server(
        "/openai/v1/chat/completions",
        BEARER,
        [
            refuse(400, NO_MAX_TOKENS),
            stream(
                data(NAMELESS | {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}),
                fragment(SUM, name="calculator", id="a1"),
                end("tool_calls"),
                DONE,
            ),
            HI,
        ],
        FINE._replace(requests=3),
        frozenset({"max_tokens"}),
    ),
    "Azure OpenAI with a dated API": Server(
        "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21",
        f"api-key: {KEY}",
        [refuse(400, {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}})],
        Seen(end="content_filter"),
    ),
    "DeepSeek": Server(
        "/chat/completions",
        BEARER,
        [
            stream(
                b": keep-alive\n\n" * 3,
                think("hm"),
                chunk({"content": None, "tool_calls": [{"index": 0} | CALL], "reasoning_content": None}),
                end("tool_calls"),
                DONE,
            ),
            HI,
        ],
        FINE._replace(reasoning="hm"),
    ),
    "Gemini": Server(
        "/v1beta/openai/chat/completions",
        BEARER,
        [stream(chunk({"role": "assistant", "tool_calls": [CALL]}, "tool_calls"), DONE), stream(say("fine"), DONE)],
        FINE,
    ),
    "OpenRouter": Server(
        "/api/v1/chat/completions",
        "http-referer: https://chat.example\r\nx-title: chat",
        [
            stream(
                b": OPENROUTER PROCESSING\n\n",
                data({"error": {"code": 502, "message": "down"}, "choices": [{"delta": {}, "finish_reason": "error"}]}),
            ),
            stream(
                chunk({"content": "", "reasoning": "hm"}), fragment(SUM, name="calculator", id="a1"), end("tool_calls")
            ),
            HI,
        ],
        FINE._replace(reasoning="hm", requests=3),
    ),
    "Ollama": Server(
        "/v1/chat/completions",
        "",
        [stream(fragment(SUM, name="calculator", id="call_1", finish="tool_calls"), end("tool_calls"), DONE), HI],
        FINE,
    ),
    "Ollama, a model that knows no tools": Server(
        "/v1/chat/completions", "", [stream(say("fine"), end(), DONE)], Seen("fine"), frozenset({"tools"})
    ),
    "LM Studio": Server(
        "/v1/chat/completions",
        "",
        [
            stream(
                say("<think>"),
                say("hm"),
                say("</think>"),
                fragment("", name="calculator", id="7"),
                fragment(SUM),
                end(),
            ),
            stream(say("fine"), end()),
        ],
        FINE._replace(reasoning="hm"),
    ),
    "vLLM": Server(
        "/v1/chat/completions",
        "",
        [
            refuse(400, {"message": '"auto" tool choice requires --enable-auto-tool-choice', "code": 400}),
            stream(say("fine"), end(stop_reason=None), data({"choices": [], "usage": {"prompt_tokens": 3}}), DONE),
        ],
        Seen("fine", requests=2),
        frozenset({"tools"}),
    ),
    "llama.cpp": Server(
        "/v1/chat/completions",
        "",
        [
            refuse(500, {"code": 500, "message": "tools param requires --jinja flag", "type": "server_error"}),
            stream(say("fine"), end(), DONE),
        ],
        Seen("fine", requests=2),
        frozenset({"tools"}),
    ),
}


def lines() -> dict[str, dict[str, str]]:
    """What README sets for each server."""
    (block,) = [each for each in fenced(README, "sh") if "# OpenAI\n" in each]
    found = {}
    for name, command in re.findall(r"^# ([^;\n]+).*\n(.+ \.venv/bin/chatserver serve)$", block, re.MULTILINE):
        plain = re.sub(r"\$('[^']*')", lambda quoted: quoted[1].replace("\\n", "\n"), command)
        *settings, _, verb = shlex.split(plain.replace("…", KEY))
        assert verb == "serve"
        found[name] = dict(each.split("=", 1) for each in settings)
    return found


LINES = lines()


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[RawUpstream]:
    async with raw_upstream() as upstream:
        yield upstream


def test_each_line_of_readme_is_tried() -> None:
    assert LINES.keys() == SERVERS.keys()


@pytest.mark.parametrize("name", LINES)
async def test_a_server_is_reached_as_readme_says(upstream: RawUpstream, name: str) -> None:
    server, settings = SERVERS[name], load(LINES[name])
    base = settings.openai_base_url
    if base is None:
        # OpenAI's own address is the SDK's: its name is kept, and the way there is bent.
        base = "https://api.openai.com/v1"
    parts = urlsplit(base)
    bent = urlunsplit(parts._replace(scheme="http", netloc=urlsplit(upstream.url).netloc))
    upstream.play(server.turns)
    chosen = {
        each: getattr(settings, each) for each in ("openai_api_key", "openai_custom_headers", "model", "upstream_omit")
    }
    if name == "OpenAI":
        chosen["upstream_omit"] = ("max_tokens",)  # As for its own host.
    async with live_server(bent, **chosen) as live:
        assert await seen_of(live, SSE, BODY, upstream.requests) == server.seen
    for head in upstream.heads:
        assert head.startswith(f"post {server.path} http/1.1\r\n".lower())
        assert server.header in head
    last = upstream.requests[-1]
    assert last["model"] == settings.model
    assert not server.lacks & set(last)
