"""The demo model: without a key the server shows all it does, through the same SDK as with any other model."""

import json
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from chatserver.providers import demo, demo_script, turn
from chatserver.providers.client import DEMO_URL
from chatserver.providers.demo_transport import DemoTransport
from tests.clients import BOTH, SSE, Transport, documents_of
from tests.fake_upstream import FakeUpstream, say
from tests.live import LiveServer, live_server
from tests.virtual_time import leaping_time

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
IDLE_SECONDS = 5.0
COMPLETIONS = f"{DEMO_URL}/chat/completions"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveServer]:
    async with live_server(None, directory=tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches the words come."""
    monkeypatch.setattr(demo, "TOKEN_SECONDS", 0.0)


async def ask(server: LiveServer, message: str, transport: Transport = SSE, **fields: Any) -> list[dict[str, Any]]:
    """All events of the answer."""
    with anyio.fail_after(WAIT_SECONDS):
        documents = await documents_of(await transport.start(server, {"message": message} | fields))
    return [json.loads(each) for each in documents]


def said(events: Sequence[dict[str, Any]], kind: str = "token") -> str:
    return "".join(event["content"] for event in events if event["type"] == kind)


def of_type(events: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def shape(events: Sequence[dict[str, Any]]) -> str:
    """The types in order, each run of one type once."""
    return re.sub(r"(\b\w+\b)( \1\b)+", r"\1", " ".join(event["type"] for event in events))


# ---- what it answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_the_first_question_of_a_newcomer_shows_tools_at_work(server: LiveServer, transport: Transport) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    events = await ask(server, "What time is it in Tokyo, and what is 17 * 23?", transport)
    assert shape(events) == "start token tool_input tool_call tool_result token done"
    assert [(each["tool"], each["args"]) for each in of_type(events, "tool_call")] == [
        ("clock", {"timezone": "Asia/Tokyo"}),
        ("calculator", {"expression": "17 * 23"}),
    ]
    results = {each["tool"]: each["result"] for each in of_type(events, "tool_result") if not each["is_error"]}
    told = datetime.fromisoformat(results["clock"])
    assert before <= told <= datetime.now(UTC) and told.utcoffset() == timedelta(hours=9)
    assert results["calculator"] == 391
    assert f"**{results['clock']}**" in said(events) and "**391**" in said(events)
    done = events[-1]
    assert done["finish_reason"] == "stop"
    assert not done["usage"]["estimated"] and done["total_tokens"] > 0
    assert events[0]["model"] == server.settings.model


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("What is 17 * 23?", 391),
        ("2+2", 4),
        ("and (2 + 3) * 4 please", 20),
        ("10 / 4", 2.5),
        ("what's 2 ** 10?", 1024),
        ("6 × 7", 42),
        ("9 ÷ 3 =", 3),
        ("3 x 4", 12),
        ("7 - 10", -3),
    ],
)
async def test_a_sum_is_calculated(server: LiveServer, question: str, value: float) -> None:
    events = await ask(server, question)
    assert [(each["tool"], each["result"]) for each in of_type(events, "tool_result")] == [("calculator", value)]
    assert f"**{json.dumps(of_type(events, 'tool_result')[0]['result'])}**" in said(events)


@pytest.mark.parametrize(
    ("question", "zones"),
    [
        ("What time is it?", ["UTC"]),
        ("Time in Berlin and in New York?", ["Europe/Berlin", "America/New_York"]),
        ("Which DAY is it in Sydney", ["Australia/Sydney"]),
    ],
)
async def test_the_time_is_looked_up_where_it_was_asked_for(
    server: LiveServer, question: str, zones: list[str]
) -> None:
    events = await ask(server, question)
    assert [each["args"] for each in of_type(events, "tool_call")] == [{"timezone": zone} for zone in zones]
    assert not any(each["is_error"] for each in of_type(events, "tool_result"))


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_it_reasons_when_asked_to_think(server: LiveServer, transport: Transport) -> None:
    events = await ask(server, "Think about rivers.", transport)
    assert shape(events) == "start reasoning token done"
    assert "rivers" in said(events, "reasoning") and "thought" in said(events)


@pytest.mark.parametrize(("question", "last"), [("Count to 500.", 500), ("please count to 1", 1), ("COUNT up to 7", 7)])
async def test_it_counts(server: LiveServer, question: str, last: int) -> None:
    events = await ask(server, question)
    assert said(events) == " ".join(str(number) for number in range(1, last + 1))
    tokens = of_type(events, "token")
    assert tokens[-1]["seq"] - tokens[0].get("first_seq", tokens[0]["seq"]) + 1 == last


@pytest.mark.parametrize(
    "question", ["Hello", "What can you do?", "How was 2026-11-22?", "ça va 🦜", "I never fail to try"]
)
async def test_anything_else_is_answered_by_what_it_can_do(server: LiveServer, question: str) -> None:
    text = said(await ask(server, question))
    for word in ("clock", "calculator", "Think", "Count", "OPENAI_API_KEY", "after", *demo_script.FAULTS):
        assert word in text


async def test_a_limit_of_tokens_is_kept(server: LiveServer) -> None:
    events = await ask(server, "Count to 500.", max_output_tokens=3)
    assert (said(events), events[-1]["finish_reason"]) == ("1 2 3", "length")


# ---- what it fails with ---------------------------------------------------------------------------------------------

FAULTS = {
    "429": ("rate_limited", True, 7, False),
    "quota": ("rate_limited", False, None, False),
    "401": ("auth_failed", False, None, False),
    "context": ("context_length", False, None, False),
    "500": ("upstream_unavailable", True, None, False),
    "stall": ("upstream_timeout", True, None, True),
    "truncate": ("upstream_truncated", True, None, True),
    "garbage": ("llm_error", False, None, True),
}


def test_every_fault_is_held_here() -> None:
    assert set(FAULTS) == set(demo_script.FAULTS)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "stall"])
@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_fault_ends_in_its_error(server: LiveServer, transport: Transport, fault: str) -> None:
    assert_failed(await ask(server, f"Fail with {fault}", transport), fault)


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_stall_ends_in_its_error(tmp_path: Path, transport: Transport) -> None:
    with leaping_time(turn) as clock:
        async with live_server(None, directory=tmp_path, upstream_idle_seconds=IDLE_SECONDS) as impatient:
            reading = await transport.start(impatient, {"message": "Fail with a stall"})
            documents = await reading.take(2)
            for _ in range(3):  # Behind each pause, some of the words may still come.
                await clock.pause(IDLE_SECONDS + 1)
            documents += await documents_of(reading)
    assert_failed([json.loads(each) for each in documents], "stall")


def assert_failed(events: Sequence[dict[str, Any]], fault: str) -> None:
    code, retryable, retry_after, has_begun = FAULTS[fault]
    error = events[-1]
    assert shape(events) == ("start token error" if has_begun else "start error")
    assert (error["code"], error["retryable"], error["retry_after"]) == (code, retryable, retry_after)
    assert "demo" not in error["message"], "nothing that the upstream says is quoted"


async def test_without_a_kind_it_fails_in_mid_answer(server: LiveServer) -> None:
    assert (await ask(server, "Please fail"))[-1]["code"] == "upstream_truncated"


# ---- one code path --------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[httpx2.Request]:
    """The requests to the demo model as the SDK sends them; it answers as ever."""
    heard: list[httpx2.Request] = []
    answer = DemoTransport.handle_async_request

    async def listening(transport: DemoTransport, request: httpx2.Request) -> httpx2.Response:
        heard.append(request)
        return await answer(transport, request)

    monkeypatch.setattr(DemoTransport, "handle_async_request", listening)
    return heard


def messages_of(request: httpx2.Request) -> list[dict[str, Any]]:
    return list(json.loads(request.content)["messages"])


async def test_it_is_asked_by_the_sdk_and_told_of_tools_and_results(
    server: LiveServer, heard: list[httpx2.Request]
) -> None:
    await ask(server, "What is 17 * 23?", system="Be brief.")
    first, second = heard
    for each in heard:
        assert "openai" in each.headers["user-agent"].lower() and "x-stainless-lang" in each.headers
        assert str(each.url) == COMPLETIONS
        body = json.loads(each.content)
        assert body["stream"] is True and body["stream_options"] == {"include_usage": True}
        assert [tool["function"]["name"] for tool in body["tools"]] == ["clock", "calculator", "book_table", "work"]
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 * 23?"}]
    assert messages_of(first) == asked
    assert messages_of(second)[:2] == asked
    assert [each["role"] for each in messages_of(second)[2:]] == ["assistant", "tool"]
    assert messages_of(second)[-1]["content"] == "391"


async def test_after_tools_the_dialogue_goes_on_and_is_told_whole(
    server: LiveServer, heard: list[httpx2.Request]
) -> None:
    questions = ("What is 17 * 23?", "Think about it.", "Count to 3.")
    tools, thought, counted = [await ask(server, question, session_id="dialogue") for question in questions]
    assert (said(thought)[:6], said(counted)) == ("I have", "1 2 3")
    told = [(each["role"], each["content"]) for each in messages_of(heard[-1])]
    at = of_type(tools, "tool_call")[0]["seq"]
    before = said([event for event in tools if event["seq"] <= at])
    behind = said([event for event in tools if event["seq"] > at])
    assert told == [
        ("user", "What is 17 * 23?"),
        ("assistant", before),
        ("tool", "391"),
        ("assistant", behind),
        ("user", "Think about it."),
        ("assistant", said(thought)),
        ("user", "Count to 3."),
    ]


async def test_where_an_upstream_is_named_there_is_no_demo(tmp_path: Path, heard: list[httpx2.Request]) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, directory=tmp_path) as server:
        upstream.script(*say("Not me."))
        assert said(await ask(server, "Hello")) == "Not me." and not heard


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
async def test_no_proxy_and_no_header_of_the_environment_is_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    async with live_server(None, directory=tmp_path, openai_custom_headers="Authorization: Bearer mine") as server:
        assert said(await ask(server, "Count to 3.")) == "1 2 3"


@pytest.mark.parametrize("transport", BOTH, ids=repr)
async def test_a_running_answer_ends_while_the_server_drains(
    tmp_path: Path, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second turn is a new request to a server that takes no others."""
    monkeypatch.setattr(demo, "TOKEN_SECONDS", 0.05)
    async with live_server(None, directory=tmp_path) as server:
        with anyio.fail_after(WAIT_SECONDS):
            reading = await transport.start(server, {"message": "What is 17 * 23?"})
            await reading.take(2)
            server.begin_drain()
            rest = [json.loads(document) for document in await documents_of(reading)]
    assert shape(rest) == "token tool_input tool_call tool_result token done"
    assert "**391**" in said(rest)


# ---- what it is asked ------------------------------------------------------------------------------------------------


async def answered(body: Any) -> httpx2.Response:
    """The whole response to a request as another program might send it."""
    with anyio.fail_after(WAIT_SECONDS):
        response = await DemoTransport().handle_async_request(httpx2.Request("POST", COMPLETIONS, json=body))
        await response.aread()
    return response


async def test_it_streams_as_chat_completions_does() -> None:
    answer = await answered({"model": "m", "messages": [{"role": "user", "content": "Count to 2"}], "stream": True})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    *chunks, usage = [json.loads(each.removeprefix("data: ")) for each in events]
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "m")}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "1 2"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": None, "tools": None, "max_tokens": None},
        {"messages": [{}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Count to 2"}]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": "count to " + "9" * 5000}], "max_tokens": 1},
        {"messages": [{"role": "user", "content": "1" * 30_000 + " * 1"}]},
        {"messages": [{"role": "user", "content": "(" * 30_000}]},
        {"messages": [{"role": "user", "content": "fail " * 6_000}]},
    ],
    ids=lambda body: str(body)[:60],
)
async def test_an_odd_request_is_answered_to_its_end(body: Any) -> None:
    answer = await answered(body)
    assert answer.status_code == 200 and answer.text.startswith("data: {")
