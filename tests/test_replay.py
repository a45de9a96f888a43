"""Agents that are called anew for a run that has waited: nothing is told twice, and nothing new is lost."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver import AgentContext, Dialogue, Reasoning, Token, ToolCall, ToolResult, Yielded, create_app
from chatserver.events import Event
from chatserver.function_agent.replay import HELD_BYTES_LIMIT, Replay
from tests.approved_tools import LEDGER, REFERENCE
from tests.clients import BOTH, Transport, documents_of, request, text_of, types_of
from tests.live import live_server
from tests.proving import check_once
from tests.scripted_model import context_of
from tests.test_waiting import answered, done_by, is_waiting

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
each_transport = pytest.mark.parametrize("transport", BOTH, ids=repr)


def made(number: int) -> list[Event]:
    """A call that was made before the agent is called anew, with its result."""
    call_id, args = f"c{number}", {"a": number, "b": 1}
    return [
        ToolCall(call_id=call_id, tool="add", args=args),
        ToolResult(call_id=call_id, tool="add", result=number + 1, is_error=False, truncated=False, duration_ms=0),
    ]


TOLD = [
    Token(content="one "),
    Reasoning(content="Hm."),
    *made(1),
    Token(content="two "),
    *made(2),
    Token(content="three"),
]
"""What the run has told before."""


async def told_again(steps: Sequence[str | Reasoning | int], told: Sequence[Event] = TOLD) -> list[str | int]:
    """What is told of an agent that says these texts, and calls ``add`` with these numbers."""
    heard: list[str | int] = []

    def emit(step: Any) -> None:
        match step:
            case Token() | Reasoning():
                heard.append(step.content)
            case ToolCall():
                heard.append(step.args["a"])

    replay = Replay(emit, context_of(emit).calls, told)
    for step in steps:
        if isinstance(step, int):
            result = await replay.call("add", {"a": step, "b": 1})
            assert result.result == step + 1
        else:
            replay.say(Token(content=step) if isinstance(step, str) else step)
    replay.end()
    return heard


@pytest.mark.parametrize(
    ("steps", "heard"),
    [
        pytest.param(["one ", 1, "two ", 2, "three", " four"], [" four"], id="the same"),
        pytest.param(["o", "ne tw", "o three four"], [" four"], id="split in another way, and around calls"),
        pytest.param([*"one ", 1, *"two ", 2, *"three!"], ["!"], id="in letters"),
        pytest.param(["one two ", 2, "three", 1, "!"], ["!"], id="calls that end in another order"),
        pytest.param(["One: ", 1, "Two: ", 2, "three."], ["."], id="other words before recorded calls"),
        pytest.param(["one more ", 1, "two ", 2, "three", "."], ["."], id="more words before a recorded call"),
        pytest.param([1, 2, "new"], ["new"], id="nothing before recorded calls"),
        pytest.param([1, 2, "thr", "ough"], ["through"], id="a new end that begins as the old one does"),
        pytest.param([1, 2, "three", "."], ["."], id="a longer end"),
        pytest.param(["I ", "cannot."], ["I ", "cannot."], id="an end without the calls"),
        pytest.param(["one day"], ["day"], id="an end behind what was told"),
        pytest.param(["on my way"], ["on my way"], id="an end that begins as what was told"),
        pytest.param(["First ", 3, "one ", 1, "2 ", 2, "4"], ["First ", 3, "4"], id="a new call among recorded ones"),
        pytest.param([1, 2, "x ", 4, "three", "two "], ["x ", 4, "three", "two "], id="old words behind a new call"),
        pytest.param([1, 2, 1], [1], id="a call that is made twice now"),
        pytest.param([Reasoning(content="Oh."), "one ", 1, 2, "three."], ["."], id="other reasoning"),
        pytest.param([Reasoning(content="Hm."), "one ", 1, Reasoning(content="Hm."), 2], [], id="more reasoning"),
    ],
)
async def test_what_was_told_is_not_told_again(steps: list[str | Reasoning | int], heard: list[str | int]) -> None:
    assert await told_again(steps) == heard


async def test_a_run_that_begins_tells_all() -> None:
    assert await told_again(["one ", 1, "one ", 1], []) == ["one ", 1, "one ", 1]


async def test_new_text_is_held_back_up_to_a_limit() -> None:
    line = "x" * (HELD_BYTES_LIMIT // 2)
    assert await told_again([line, line, 1, "two ", 2, "three"]) == []
    assert await told_again([line, line, "y", "z", 1, line, line, 2]) == [line, line, "y", "z"]


async def test_a_question_of_a_tool_is_no_call_that_the_agent_makes_again() -> None:
    """Else all that the agent says would be held back until it ends."""
    asked = ToolCall(call_id="q", tool="ask_user", args={}, executor="client")
    result = ToolResult(call_id="q", tool="ask_user", result={}, is_error=False, truncated=False, duration_ms=0)
    heard: list[Any] = []
    replay = Replay(heard.append, context_of(heard.append).calls, [*made(1), asked, result])
    await replay.call("add", {"a": 1, "b": 1})
    replay.say(Token(content="new"))
    assert heard == [Token(content="new")]


@pytest.mark.parametrize(
    ("name", "args"),
    [("nothing", {"a": 1}), ("n" * 300, {}), ("add", {"a": 1, "b": "x" * 40_000}), ("add", {"a": 1})],
    ids=["no such tool", "a long name of none", "too long arguments", "arguments that do not fit"],
)
async def test_a_call_that_was_refused_is_known_again(name: str, args: dict[str, Any]) -> None:
    before: list[Any] = []
    first = await context_of(before.append).calls.call(name, args)
    heard: list[Any] = []
    replay = Replay(heard.append, context_of(heard.append).calls, [each for each in before if isinstance(each, Event)])
    assert await replay.call(name, args) == first and first.is_error
    assert heard == []


@pytest.mark.parametrize("told", [[*made(1)], [*made(1), Token(content="two ")]], ids=["a call", "a call and text"])
async def test_drafts_of_calls_that_were_told_are_not_told_again(told: list[Event]) -> None:
    heard: list[Any] = []
    replay = Replay(heard.append, context_of(heard.append).calls, told)
    for number in (1, 2):
        call, result = made(number)
        assert isinstance(call, ToolCall) and isinstance(result, ToolResult)
        for step in (call, result, Token(content="two ")):
            replay.say(step)
    assert [*told, *heard] == [*made(1), Token(content="two "), *made(2), Token(content="two ")]


# ---- with servers ---------------------------------------------------------------------------------------------------

DIALOGUES: list[Dialogue] = []


async def counting(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    """Says the same each time."""
    DIALOGUES.append(dialogue)
    yield Reasoning(content="Hm. ")
    yield "one "
    first = await context.call("book", {"table": 1})
    yield f"two {first} "
    yield f"three {await context.call('book', {'table': 2})}"


async def wavering(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[Yielded]:
    """Never says the same, as a model does."""
    DIALOGUES.append(dialogue)
    nth = len(DIALOGUES)
    yield Reasoning(content=f"Hm {nth}. ")
    yield f"{nth} one "
    first = await context.call("book", {"table": 1})
    yield f"{nth} two {first} "
    yield f"{nth} three {await context.call('book', {'table': 2})}"


@each_transport
@pytest.mark.parametrize(
    ("agent", "text"),
    [
        (counting, "one two table 7 is booked three table 2 is booked"),
        (wavering, "1 one 2 two table 7 is booked 3 three table 2 is booked"),
    ],
    ids=["the same words", "other words"],
)
async def test_an_agent_is_called_anew_with_the_same_dialogue_and_tells_nothing_twice(
    transport: Transport, agent: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two restarts; the first call is made with arguments that a user has edited, and still known by its own ones."""
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    DIALOGUES.clear()

    def living() -> Any:
        return live_server(
            None, directory=tmp_path, make_app=lambda chosen: create_app(chosen, agent=agent), tools=REFERENCE
        )

    with anyio.fail_after(WAIT_SECONDS):
        async with living() as server:
            reading = await transport.start(server, {"message": "Hi", "session_id": "s", "system": "Be."})
            documents = await reading.take(4)
            await is_waiting(server, reading.run_id)
            reading.cut()
        async with living() as server:
            reader = await transport.attach(server, reading.run_id, 4)
            call_id = json.loads(documents[-1])["call_id"]
            assert await answered(server, reading.run_id, call_id, transport, approve=True, args={"table": 7}) == 202
            documents += await reader.take(3)
            await is_waiting(server, reading.run_id)
            reader.cut()
        async with living() as server:
            reader = await transport.attach(server, reading.run_id, 7)
            call_id = json.loads(documents[-1])["call_id"]
            assert await answered(server, reading.run_id, call_id, transport, approve=True) == 202
            documents += await documents_of(reader)
            (_, stored) = (await request(server, "GET", "/chat/sessions/s")).json["messages"]
    check_once(documents)
    texts_and_calls = ["start", "reasoning", "token", *["tool_call", "tool_result", "token"] * 2, "done"]
    assert types_of(documents) == texts_and_calls
    assert text_of(documents) == stored["content"] == text
    assert done_by(tmp_path / "ledger") == ["book 7", "book 2"]
    assert [[each.text for each in dialogue] for dialogue in DIALOGUES] == [["Be.", "Hi"]] * 3
