"""A run that its readers hear on every node while something goes wrong, and what all nodes must do again afterwards."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Self

import anyio
import pytest

from tests.clients import SSE, WS, Reading, RefusedError, documents_of, request, text_of, when_available
from tests.cluster import Cluster
from tests.merging import seq_of
from tests.program import START_SECONDS
from tests.proving import Told, answer_of, check_rest, check_same, check_whole, short_story

STOOD = 20
"""How far a run is when the trouble begins: in the middle of its text, a tool call comes next."""


class Audience:
    """A run of the first node, in mid answer, and its readers."""

    def __init__(self, nodes: Cluster[Any], told: int) -> None:
        """``told``: how far the run is at the beginning."""
        self._nodes = nodes
        self._stage = nodes.stage()
        self._story = self._stage.story(told)
        self._readings: list[Reading] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._is_joined_by(await SSE.start(self._nodes[0], self._story.body))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def run_id(self) -> str:
        return self._readings[0].run_id

    async def grows(self) -> None:
        """A reader of each other node begins to read, from the start: at the latest when the node finds Redis again."""
        for node in self._nodes.nodes[1:]:
            await self._is_joined_by(await when_available(partial(WS.attach, node, self.run_id)))

    async def _is_joined_by(self, reading: Reading) -> None:
        self._readings.append(await self._stack.enter_async_context(reading))

    async def hears(self, seq: int) -> None:
        """Let the model go on until this event, and wait until everybody has heard it."""
        self.goes_on(seq)
        for reading in self._readings:
            while not reading.documents or reading.after < seq:
                await reading.take(1)

    def goes_on(self, seq: int) -> None:
        """Let the model go on until this event."""
        self._story.tell(seq)

    async def hears_the_end(self) -> None:
        """Everybody hears all of the run, once; so does who comes late, on each node; and it is stored so."""
        self.goes_on(self._story.last)
        for reading in self._readings:
            await documents_of(reading)
        whole = self._readings[0].documents
        check_whole(whole, self._story)
        for reading in self._readings:
            check_rest(reading.documents, 0, whole)
        for _ in self._nodes:
            check_same(await self._stage.rest(SSE, Told(self.run_id, whole), 0), whole)
            await self._stage.check_stored(whole)

    async def hears_that_it_was_interrupted(self) -> None:
        """Everybody hears the same end, behind what was heard so far, and all of that is stored."""
        for reading in self._readings:
            await documents_of(reading)
        (end,) = {reading.documents[-1] for reading in self._readings}
        assert json.loads(end)["code"] == "interrupted"
        session_id = json.loads(self._readings[0].documents[0])["session_id"]
        message = (await self._stage.get(f"/chat/sessions/{session_id}"))["messages"][-1]
        for reading in self._readings:
            assert answer_of(reading.documents)["content"] == message["content"]
            assert message["content"].startswith(text_of([each for each in reading.documents if seq_of(each) <= STOOD]))


@asynccontextmanager
async def everywhere(nodes: Cluster[Any]) -> AsyncIterator[Audience]:
    """A run in mid answer, with a reader on each node."""
    async with Audience(nodes, STOOD) as audience:
        await audience.grows()
        await audience.hears(STOOD)
        yield audience


async def refuses_new_runs_and_shows_sessions(nodes: Cluster[Any]) -> None:
    for node in nodes:
        with pytest.raises(RefusedError) as refused:
            await SSE.start(node, short_story().body)
        assert (refused.value.status, refused.value.code) == (503, "unavailable")
        assert (await request(node, "GET", "/chat/sessions")).status == 200


async def answers_again(nodes: Cluster[Any]) -> None:
    """Wait until every node takes runs, and every other one reads them."""
    stage = nodes.stage()
    with anyio.fail_after(START_SECONDS):
        for node in nodes:
            story = stage.story(make=short_story)
            story.tell(story.last)
            documents = await documents_of(reading := await when_available(partial(SSE.start, node, story.body)))
            check_whole(documents, story)
            for other in nodes.others(node):
                rest = await documents_of(await when_available(partial(WS.attach, other, reading.run_id)))
                check_rest(rest, 0, documents)
