"""Sessions as their user sees them: listed, renamed, deleted, and grown into branches."""

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from unittest.mock import patch

import anyio
import pytest

from chatserver.sessions import Sessions
from tests.clients import TRANSPORTS, RefusedError, Transport, documents_of, get_run, is_terminal, request, text_of
from tests.fake_upstream import say
from tests.life import GRACE_SECONDS, HEARTBEAT_SECONDS, begun, in_time, is_cut
from tests.proving import Stage, each_transport, staged


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged(grace_seconds=GRACE_SECONDS, heartbeat_seconds=HEARTBEAT_SECONDS) as stage:
        yield stage


class Talk:
    """A dialogue over one transport in which the model says what the test wants it to."""

    def __init__(self, stage: Stage, transport: Transport, session_id: str) -> None:
        self.stage, self.transport, self.session_id = stage, transport, session_id
        self.path = f"/chat/sessions/{session_id}"

    async def ask(self, answer: str, **fields: Any) -> dict[str, Any]:
        """Ask, and have it answered; the run's first event."""
        self.stage.upstream.script(*say(answer))
        body = {"session_id": self.session_id} | fields
        documents = await documents_of(await self.transport.start(self.stage.server, body))
        assert text_of(documents) == answer
        return dict(json.loads(documents[0]))

    async def shown(self, branches: str = "") -> list[dict[str, Any]]:
        response = await request(self.stage.server, "GET", self.path + branches)
        assert response.status == 200
        return list(response.json["messages"])

    async def contents(self, branches: str = "") -> list[str]:
        return [each["content"] for each in await self.shown(branches)]

    @property
    def told(self) -> list[str]:
        """What the model was told last."""
        return [each["content"] for each in self.stage.upstream.requests[-1].json["messages"]]


@pytest.fixture
def talk(stage: Stage, transport: Transport, request: pytest.FixtureRequest) -> Talk:
    return Talk(stage, transport, f"{request.node.originalname[-40:]}-{transport}")


@each_transport
@in_time
async def test_the_whole_session_is_the_context_of_its_next_answer(talk: Talk) -> None:
    await talk.ask("Hello", message="Hi")
    await talk.ask("Fine", message="How are you?")
    assert talk.told == ["Hi", "Hello", "How are you?"]
    assert await talk.contents() == ["Hi", "Hello", "How are you?", "Fine"]
    messages = await talk.shown()
    assert [each["role"] for each in messages] == ["user", "assistant"] * 2
    assert [each["parent_id"] for each in messages] == [None, *(each["message_id"] for each in messages[:-1])]
    assert all(each["status"] == "complete" for each in messages)


@each_transport
@in_time
async def test_a_message_answered_again_makes_a_new_branch_from_it(talk: Talk) -> None:
    first = await talk.ask("Hello", message="Hi")
    await talk.ask("Fine", message="How are you?")
    again = await talk.ask("Good day", regenerate=first["user_message_id"])
    assert again["user_message_id"] == first["user_message_id"] and again["message_id"] != first["message_id"]
    assert talk.told == ["Hi"]
    assert await talk.contents() == ["Hi", "Good day"]
    assert await talk.contents("?branches=all") == ["Hi", "Hello", "How are you?", "Fine", "Good day"]
    await talk.ask("Yes", message="Is it?")
    assert talk.told == ["Hi", "Good day", "Is it?"]


@each_transport
@in_time
async def test_a_message_edited_makes_a_new_branch_from_what_preceded_it(talk: Talk) -> None:
    await talk.ask("Hello", message="Hi")
    second = await talk.ask("Fine", message="How are you?")
    edited = await talk.ask("Noon", message="What time is it?", regenerate=second["user_message_id"])
    assert edited["user_message_id"] != second["user_message_id"]
    assert talk.told == ["Hi", "Hello", "What time is it?"]
    assert await talk.contents() == ["Hi", "Hello", "What time is it?", "Noon"]
    by_id = {each["message_id"]: each for each in await talk.shown("?branches=all")}
    assert by_id[edited["user_message_id"]]["parent_id"] == by_id[second["user_message_id"]]["parent_id"]
    assert len(by_id) == 6


@each_transport
@in_time
async def test_a_message_goes_on_with_the_branch_of_the_answer_that_it_names(talk: Talk) -> None:
    first = await talk.ask("Hello", message="Hi")
    left = await talk.ask("Fine", message="How are you?")
    await talk.ask("Noon", message="What time is it?", regenerate=left["user_message_id"])
    await talk.ask("Good", message="Really?", parent_id=left["message_id"])
    assert talk.told == ["Hi", "Hello", "How are you?", "Fine", "Really?"]
    assert await talk.contents() == ["Hi", "Hello", "How are you?", "Fine", "Really?", "Good"]
    assert len(await talk.contents("?branches=all")) == 8
    for wrong in (first["user_message_id"], "unknown"):
        with pytest.raises(RefusedError) as refusal:
            await talk.transport.start(talk.stage.server, {"message": "No", "parent_id": wrong})
        assert refusal.value.status == 404


@in_time
async def test_a_session_is_read_page_by_page_and_says_how_each_answer_ended(stage: Stage) -> None:
    talk = Talk(stage, TRANSPORTS[0], "long")
    for number in range(3):
        await talk.ask(f"Answer {number}", message=f"Question {number}")
    shown: list[dict[str, Any]] = []
    path = f"{talk.path}?limit=2"
    while path:
        page = (await request(stage.server, "GET", path)).json
        shown = page["messages"] + shown
        path = page["cursor"] and f"{talk.path}?limit=2&cursor={page['cursor']}"
    assert [each["content"] for each in shown[::2]] == ["Question 0", "Question 1", "Question 2"]
    assert [each["finish_reason"] for each in shown] == [None, "stop"] * 3
    for query in ("limit=0", "limit=101", "limit=x", "cursor=unknown", "cursor="):
        refused = await request(stage.server, "GET", f"{talk.path}?{query}")
        assert (refused.status, refused.json["code"]) == (400, "bad_request" if "limit" in query else "bad_cursor")


@in_time
async def test_sessions_are_found_by_their_title(stage: Stage) -> None:
    for number, title in enumerate(["Größe einer 100%-Stelle", "Über Flüsse", "About rivers"]):
        await Talk(stage, TRANSPORTS[0], f"titled-{number}").ask("Yes", message=title)
    for search, found in {
        "GR%C3%B6SSE": 1,
        "0%25-": 1,
        "%25": 1,
        "fl%C3%9CSSE": 1,
        "a": 1,
        "ver": 1,
        "%20": None,
        "": None,
    }.items():
        page = await request(stage.server, "GET", f"/chat/sessions?limit=100&search={search}")
        titles = [each["title"] for each in page.json["sessions"] if each["session_id"].startswith("titled-")]
        assert len(titles) == (3 if found is None else found), (search, titles)
    for search in ("x" * 257, "a%00b", "%1f"):
        refused = await request(stage.server, "GET", f"/chat/sessions?search={search}")
        assert (refused.status, refused.json["code"]) == (400, "bad_request")
    assert (await request(stage.server, "GET", "/chat/sessions?search=%ff%fe")).status == 200


@each_transport
@pytest.mark.parametrize("whose", ["an answer", "another session's message", "nothing"])
@in_time
async def test_only_a_question_of_the_session_can_be_answered_again(talk: Talk, whose: str) -> None:
    other = Talk(talk.stage, talk.transport, f"other-{talk.transport}-{whose[-7:].replace(' ', '-')}")
    asked, elsewhere = await talk.ask("Hello", message="Hi"), await other.ask("Hello", message="Hi")
    ids = {"an answer": asked["message_id"], "another session's message": elsewhere["user_message_id"]}
    body = {"session_id": talk.session_id, "regenerate": ids.get(whose, "nothing")}
    with pytest.raises(RefusedError) as refusal:
        await talk.transport.start(talk.stage.server, body)
    assert (refusal.value.status, refusal.value.code) == (404, "not_found")


@in_time
async def test_sessions_are_listed_from_the_last_used_on_page_by_page() -> None:
    async with staged() as stage:
        talks = [Talk(stage, TRANSPORTS[number % 3], f"s{number}") for number in range(5)]
        for number, talk in enumerate(talks):
            await talk.ask("Yes", message=f"Question {number}\nand its rest")
        await talks[1].ask("Again", message="Another")
        found: list[dict[str, Any]] = []
        path = "/chat/sessions?limit=2"
        while path:
            page = (await request(stage.server, "GET", path)).json
            assert len(page["sessions"]) <= 2
            found += page["sessions"]
            path = page["cursor"] and f"/chat/sessions?limit=2&cursor={page['cursor']}"
        assert [each["session_id"] for each in found] == ["s1", "s4", "s3", "s2", "s0"]
        assert found[0]["title"] == "Question 1"
        assert all(each["created_at"] <= each["updated_at"] and each["active_run_id"] is None for each in found)


@in_time
async def test_a_session_has_the_title_that_it_is_given(stage: Stage) -> None:
    talk = Talk(stage, TRANSPORTS[0], "renamed")
    await talk.ask("Hello", message="Hi")
    response = await request(stage.server, "PATCH", talk.path, {"title": "  A better\tname "})
    assert (response.status, response.json["title"]) == (200, "A better name")
    await talk.ask("Fine", message="How are you?")
    assert (await request(stage.server, "GET", talk.path)).json["title"] == "A better name"
    assert (await request(stage.server, "PATCH", "/chat/sessions/unknown", {"title": "No"})).status == 404


@each_transport
@in_time
async def test_a_session_is_deleted_with_all_it_holds_and_its_active_run_is_cancelled_first(
    stage: Stage, transport: Transport
) -> None:
    talk = Talk(stage, transport, f"deleted-{transport}")
    first = await talk.ask("Hello", message="Hi")
    story, reading = await begun(stage, transport, session_id=talk.session_id)
    assert (await request(stage.server, "DELETE", talk.path)).status == 204
    documents = await documents_of(reading)
    assert is_terminal(documents[-1]) and json.loads(documents[-1])["finish_reason"] == "cancelled"
    await is_cut(stage, story)
    assert (await request(stage.server, "DELETE", talk.path)).status == 404
    assert (await request(stage.server, "GET", talk.path)).status == 404
    for run_id in (first["run_id"], reading.run_id):
        with pytest.raises(RefusedError) as refusal:
            await get_run(stage.server, run_id)
        assert refusal.value.status == 404
        for each in TRANSPORTS:
            with pytest.raises(RefusedError) as refusal:
                await each.attach(stage.server, run_id)
            assert refusal.value.status == 404
    listed = (await request(stage.server, "GET", "/chat/sessions?limit=100")).json["sessions"]
    assert talk.session_id not in [each["session_id"] for each in listed]
    await talk.ask("Nice to meet you", message="Hi again")
    assert await talk.contents("?branches=all") == ["Hi again", "Nice to meet you"]


@each_transport
@in_time
async def test_a_message_to_a_session_that_is_being_deleted_begins_it_anew(stage: Stage, transport: Transport) -> None:
    talk = Talk(stage, transport, f"deleted-and-begun-{transport}")
    await talk.ask("Hello", message="Hi")
    begins, gate, delete = anyio.Event(), anyio.Event(), Sessions.delete

    async def late(self: Sessions, *args: Any) -> str | None:
        begins.set()
        await gate.wait()
        return await delete(self, *args)

    async def remove() -> None:
        assert (await request(stage.server, "DELETE", talk.path)).status == 204

    with patch.object(Sessions, "delete", late):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remove)
            await begins.wait()
            tasks.start_soon(partial(talk.ask, "Hello again", message="Hi again"))
            for _ in range(3):  # By then the server has the message.
                await request(stage.server, "GET", "/livez")
            gate.set()
    assert await talk.contents("?branches=all") == ["Hi again", "Hello again"]
