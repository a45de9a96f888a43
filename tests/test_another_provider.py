"""The same chat by another API, Responses: a model is told what it said, with what it alone understands.

The agent, the run and the sessions are those of Chat Completions; nothing of them is told which API is asked. What
`test_transcript.py` holds for that API is held here for this one.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from chatserver.dialogue import INTERRUPTED_CALL, INTERRUPTED_TEXT
from chatserver.providers.api import LEAVINGS_BYTES_LIMIT
from tests.clients import BOTH, SSE, Transport, cancel, documents_of, request, types_of
from tests.fake_upstream import FakeUpstream, Request, refuse
from tests.live import LiveServer, ServerProcess, live_server
from tests.responses_events import (
    Item,
    added,
    answer,
    call_item,
    completed,
    counted,
    created,
    done,
    message_item,
    reasoning_item,
    summary,
    token,
    written,
)
from tests.slow_tools import REFERENCE
from tests.tool_calls import call_ids_of

pytestmark = pytest.mark.anyio

SECONDS = 40.0
each_transport = pytest.mark.parametrize("transport", BOTH, ids=str)
SETTINGS: dict[str, Any] = {"tools": REFERENCE, "model": "m", "upstream_api": "responses"}

SUMMED_UP = [{"type": "summary_text", "text": "hm"}]
THOUGHT = reasoning_item("gAAA-CANARY", "rs_1", summary=SUMMED_UP)
CALLED = [
    THOUGHT,
    message_item("Look:", "msg_0", phase="commentary"),
    reasoning_item("gAAB-CANARY", "rs_2"),
    call_item("add", {"a": 1, "b": 2}, "call.1", "fc_1"),
    call_item("add", {"a": 3, "b": 4}, "call.2", "fc_2"),
]
SPOKEN = [reasoning_item("gAAC-CANARY", "rs_3"), message_item("Three", "msg_1", phase="final_answer")]


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def output(call_id: str, text: str) -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


OUTPUTS = [output("call.1", "3"), output("call.2", "7")]
ANSWER = [*CALLED, *OUTPUTS, *SPOKEN]


def foreign(items: Sequence[Item], call_ids: Iterable[str] = ()) -> list[Item]:
    """The same for another model, which knows the calls by these ids."""
    ids, open_ids, told = iter(call_ids), list[str](), list[Item]()
    for item in items:
        bare = {name: value for name, value in item.items() if name not in ("id", "status", "phase")}
        match item.get("type"):
            case "reasoning":
                continue
            case "function_call":
                bare["call_id"] = next(ids, item["call_id"])
                open_ids.append(bare["call_id"])
            case "function_call_output":
                bare["call_id"] = open_ids.pop(0)
        told.append(bare)
    return told


async def ask(
    server: LiveServer | ServerProcess, upstream: FakeUpstream, transport: Transport, **body: Any
) -> tuple[list[bytes], list[Request]]:
    """The events of an answer with a turn of calls and a last one, and what the upstream was asked."""
    upstream.script(*answer(*CALLED, usage=counted(5, 5)))
    upstream.script(*answer(*SPOKEN, usage=counted(5, 5)))
    begin = len(upstream.requests)
    with anyio.fail_after(SECONDS):
        documents = await documents_of(await transport.start(server, {"session_id": "s"} | body))
    return documents, upstream.requests[begin:]


def inputs(requests: Sequence[Request]) -> list[Any]:
    return [each.json["input"] for each in requests]


@each_transport
async def test_a_model_is_told_what_it_said_by_this_api_too(transport: Transport, tmp_path: Path) -> None:
    settings = SETTINGS | {"directory": tmp_path}
    async with FakeUpstream() as upstream:
        async with live_server(upstream.url, **settings) as server:
            documents, asked = await ask(server, upstream, transport, message="One", system="Be brief.")
            types = ["start", "reasoning", "token", "tool_input", "tool_call", "tool_result", "token", "done"]
            assert [each for each, *_ in _runs(types_of(documents))] == [each for each, *_ in _runs(types)]
            events = [json.loads(each) for each in documents]
            assert [each["content"] for each in events if each["type"] == "token"][-2:] == ["Th", "ree"]
            assert events[-1]["usage"] == {"input_tokens": 10, "output_tokens": 10, "estimated": False}
            assert asked[0].json["instructions"] == "Be brief."
            one = [user("One"), *ANSWER]
            assert inputs(asked) == [one[:1], one[: 1 + len(CALLED) + 2]]
            start, asked = await ask(server, upstream, transport, message="Two")
            two = [*one, user("Two")]
            assert inputs(asked) == [two, [*two, *CALLED, *OUTPUTS]]
            again = json.loads(start[0])["user_message_id"]
            _, asked = await ask(server, upstream, transport, regenerate=again)
            assert inputs(asked)[0] == two
            session = await request(server, "GET", "/chat/sessions/s")
            assert "CANARY" not in b"".join([*documents, *start]).decode() + session.body.decode()
        async with live_server(upstream.url, **settings) as server:
            ids = await call_ids_of(server)
            _, asked = await ask(server, upstream, transport, message="Three", model="another")
            assert inputs(asked)[0] == [*foreign([*two, *ANSWER], ids), user("Three")]
            of_another = (await call_ids_of(server))[len(ids) :]
            _, asked = await ask(server, upstream, transport, message="Four")
            assert inputs(asked)[0] == [*two, *ANSWER, user("Three"), *foreign(ANSWER, of_another), user("Four")]


def _runs(types: Sequence[str]) -> list[tuple[str]]:
    """Each type once for all events of it in a row."""
    return [(each,) for index, each in enumerate(types) if not index or types[index - 1] != each]


HANGING = [THOUGHT, call_item("add", {"a": 1, "b": 2}, "fn.0", "fc_0"), call_item("hang", {}, "fn.1", "fc_1")]
CUT_OFF = [
    *HANGING,
    output("fn.0", "3"),
    output("fn.1", INTERRUPTED_CALL),
    *foreign([message_item(INTERRUPTED_TEXT)]),
]


@each_transport
async def test_a_call_that_was_cancelled_is_told_with_its_turn(transport: Transport, tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, directory=tmp_path, **SETTINGS) as server:
        upstream.script(*answer(*HANGING))
        with anyio.fail_after(SECONDS):
            reading = await transport.start(server, {"message": "One", "session_id": "s"})
            while (event := json.loads((await reading.take(1))[0]))["type"] != "tool_result":
                pass
            await cancel(server, event["run_id"])
            *_, last = map(json.loads, await documents_of(reading))
        assert last["finish_reason"] == "cancelled"
        _, asked = await ask(server, upstream, transport, message="Two")
        assert inputs(asked)[0] == [user("One"), *CUT_OFF, user("Two")]


async def test_a_call_that_a_crash_cut_off_is_told_with_its_turn(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*answer(*HANGING))
        async with ServerProcess(upstream.url, tmp_path, is_forked=True, **SETTINGS) as server:
            reading = await SSE.start(server, {"message": "One", "session_id": "s"})
            with anyio.fail_after(SECONDS), closing(sqlite3.connect(tmp_path / "chat.db")) as database:
                stored = "SELECT count(*) FROM messages WHERE parts LIKE '%\"result\":3%'"
                while not database.execute(stored).fetchone()[0]:  # noqa: ASYNC110 - a checkpoint tells nobody
                    await anyio.sleep(0.01)
            server.kill()
            await server.wait()
            reading.cut()
            await server.start()
            _, asked = await ask(server, upstream, SSE, message="Two")
            assert inputs(asked)[0] == [user("One"), *CUT_OFF, user("Two")]


async def test_what_the_model_server_cannot_read_again_is_left_out_of_one_dialogue() -> None:
    unreadable = {"message": "The encrypted content gAAA could not be verified.", "code": "invalid_encrypted_content"}
    async with FakeUpstream() as upstream, live_server(upstream.url, **SETTINGS) as server:
        await ask(server, upstream, SSE, message="One")
        upstream.script(*refuse(400, unreadable))
        upstream.script(*answer(message_item("Hi")))
        documents = await documents_of(await SSE.start(server, {"message": "Two", "session_id": "s"}))
        assert json.loads(documents[-1])["type"] == "done"
        refused, taken = inputs(upstream.requests[-2:])
        assert refused == [user("One"), *ANSWER, user("Two")]
        assert taken == foreign(refused)
        _, asked = await ask(server, upstream, SSE, message="Three")
        assert inputs(asked)[0][:-1] == [*refused, *foreign([message_item("Hi")])]


async def told_again(server: LiveServer, upstream: FakeUpstream, *steps: Any) -> list[Item]:
    """How a turn of these steps is told with the next message."""
    upstream.script(*created(), *steps)
    upstream.script(*answer(message_item("end")))
    upstream.script(*answer(message_item("end")))
    start, *_ = await documents_of(await SSE.start(server, {"message": "One"}))
    await documents_of(await SSE.start(server, {"message": "Two", "session_id": json.loads(start)["session_id"]}))
    begin, *items = upstream.requests[-1].json["input"]
    upstream.forget_scripts()
    assert begin == user("One")
    return [each for each in items if each not in (user("Two"), *foreign([message_item("end")]))]


async def test_what_cannot_go_back_is_left_out_and_spoils_nothing() -> None:
    said, plain = message_item("Hi", "m"), foreign([message_item("Hi")])
    huge = reasoning_item("x" * LEAVINGS_BYTES_LIMIT)
    open_thought = reasoning_item(None, content=[{"type": "reasoning_text", "text": "hm"}])
    called, result = call_item("add", {"a": 1, "b": 2}), output("call_1", "3")
    cases: list[tuple[list[Any], list[Item]]] = [
        ([*written(huge, 0), *written(said, 1), completed()], plain),
        ([*written(reasoning_item(None), 0), *written(said, 1), completed()], plain),
        ([*written(said, 0), *written(THOUGHT, 1), completed()], plain),
        ([*written(open_thought, 0), *written(said, 1), completed()], plain),
        ([*written(open_thought, 0), *written(called, 1), completed()], [open_thought, called, result]),
        ([*written(THOUGHT, 0), *written(said, 1), token("!", 1), completed()], foreign([message_item("Hi!")])),
        ([summary("hm"), done(THOUGHT), token("Hi", 1), completed(THOUGHT, said)], plain),
        ([added(THOUGHT), completed(THOUGHT, said)], [THOUGHT, said]),
        ([done({"type": "web_search_call", "id": "ws"}), *written(THOUGHT, 1), *written(said, 2), completed()],
         [THOUGHT, said]),
    ]  # fmt: skip
    async with FakeUpstream() as upstream, live_server(upstream.url, **SETTINGS) as server:
        for steps, told in cases:
            back = [{name: value for name, value in each.items() if value is not None} for each in told]
            assert await told_again(server, upstream, *steps) == back
