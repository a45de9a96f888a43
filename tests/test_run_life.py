"""A run's life: who may leave it, who may end it, how many there may be, and that it is never silent."""

import json
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
import pytest

from chatserver.sessions import open_sessions
from tests.clients import (
    BOTH,
    NDJSON,
    SSE,
    TRANSPORTS,
    WS,
    Body,
    NdjsonReader,
    Reading,
    RefusedError,
    SseReader,
    Transport,
    WsReader,
    cancel,
    documents_of,
    get_run,
    is_terminal,
    request,
    text_of,
    types_of,
)
from tests.conftest import Scale
from tests.fake_upstream import Done, Fin, Gate, Hang, Reply, Rst, Step, call, finish, refuse, role, say, token
from tests.proving import (
    Stage,
    Story,
    cancelled_from,
    check_once,
    each_pair,
    each_transport,
    leave,
    staged,
    turns,
)

GRACE_SECONDS = 0.3
HEARTBEAT_SECONDS = 0.2
CLOSED_WITHIN_SECONDS = 1.0
"""What the contract's "at once" may take for an upstream connection, seen from the upstream."""


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged(grace_seconds=GRACE_SECONDS, heartbeat_seconds=HEARTBEAT_SECONDS) as stage:
        yield stage


@pytest.fixture(autouse=True)
async def in_time() -> AsyncIterator[None]:
    with anyio.fail_after(30):
        yield


def words() -> Story:
    """5 events: start, 3 × token, done."""
    return Story(after=["one ", "two ", "three"])


async def begun(stage: Stage, transport: Transport, **fields: Any) -> tuple[Story, Reading]:
    """A run that has said two words, and has more to say; read so far."""
    story = stage.story(told=3, make=words)
    reading = await transport.start(stage.server, story.body | fields)
    await reading.take(3)
    return story, reading


def reply_to(stage: Stage, body: Body) -> Reply:
    """The upstream's answer to the newest message of this text."""
    assert isinstance(body, dict)
    return [
        reply for reply in stage.upstream.replies if reply.request.json["messages"][-1]["content"] == body["message"]
    ][-1]


async def ending(stage: Stage, run_id: str) -> dict[str, Any]:
    """The terminal event of a run, once it is there; to wait for it is no way to keep the run going."""
    while (await get_run(stage.server, run_id))["status"] in ("running", "waiting"):
        await anyio.sleep(0.01)
    return dict(json.loads((await documents_of(await SSE.attach(stage.server, run_id)))[-1]))


async def grace_has_passed(stage: Stage) -> None:
    """Wait as long as a run that is abandoned now goes on: then any that was abandoned before has ended."""
    story, reading = await begun(stage, SSE)
    reading.cut()
    assert (await ending(stage, reading.run_id))["finish_reason"] == "cancelled"
