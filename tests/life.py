"""What tests of a run's life share: a run in mid answer, and ways to wait for what becomes of it."""

import json
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, ParamSpec

import anyio

from tests.clients import SSE, Reading, Transport, documents_of, get_run, request
from tests.fake_upstream import Reply
from tests.proving import Stage, Story

GRACE_SECONDS = 0.3
HEARTBEAT_SECONDS = 0.2

P = ParamSpec("P")


def in_time(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """A test that has failed when it takes long."""

    @wraps(test)
    async def timed(*args: P.args, **kwargs: P.kwargs) -> None:
        with anyio.fail_after(50):
            await test(*args, **kwargs)

    return timed


def words() -> Story:
    """5 events: start, 3 × token, done."""
    return Story(after=["one ", "two ", "three"])


async def begun(stage: Stage, transport: Transport, **fields: Any) -> tuple[Story, Reading]:
    """A run that has said two of its words, and a reader that has heard them."""
    story = stage.story(told=3, make=words)
    reading = await transport.start(stage.server, story.body | fields)
    await reading.take(3)
    return story, reading


def reply_to(stage: Stage, story: Story) -> Reply:
    """What the upstream is answering to a story's request."""
    message = story.body["message"]
    return next(each for each in stage.upstream.replies if each.request.json["messages"][-1]["content"] == message)


async def is_cut(stage: Stage, story: Story) -> None:
    """Wait until the upstream sees its connection closed."""
    reply = reply_to(stage, story)
    await stage.upstream.until(lambda: reply.state == "cut")


async def end_of(stage: Stage, run_id: str) -> dict[str, Any]:
    """The terminal event of a run, when it is there. To wait for it in this way does not keep the run going."""
    while (await get_run(stage.server, run_id))["finished_at"] is None:  # noqa: ASYNC110 - a reader would keep it going
        await anyio.sleep(0.01)
    return dict(json.loads((await documents_of(await SSE.attach(stage.server, run_id)))[-1]))


async def grace_has_passed(stage: Stage) -> None:
    """Wait for as long as an abandoned run is kept: any that was abandoned before has ended by then."""
    _, reading = await begun(stage, SSE)
    reading.cut()
    assert (await end_of(stage, reading.run_id))["finish_reason"] == "cancelled"


async def answer_in(stage: Stage, run_id: str) -> dict[str, Any]:
    """The message that a run says or has said, as its session shows it."""
    session_id = (await get_run(stage.server, run_id))["session_id"]
    messages = (await request(stage.server, "GET", f"/chat/sessions/{session_id}?branches=all")).json["messages"]
    return next(each for each in messages if each["run_id"] == run_id)


async def hang() -> str:
    """A tool that never answers."""
    await anyio.sleep_forever()
    raise AssertionError("for ever is over")


TOOLS = [hang]
