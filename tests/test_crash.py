"""SIGKILL at any moment: what was acknowledged is kept, and every run comes to one end that can be read."""

import json
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.clients import (
    SSE,
    TRANSPORTS,
    BrokenError,
    ClosedError,
    Reading,
    documents_of,
    get_run,
    is_terminal,
    request,
)
from tests.conftest import Scale
from tests.fake_upstream import Done, FakeUpstream, Hang, Pause, Reply, Step, call, finish, say, token
from tests.live import ServerProcess
from tests.proving import answer_of, seeded

pytestmark = pytest.mark.proof

CLIENTS = 12
EVENTS_HEARD = 200
"""Killed at the latest when its clients have heard so many events; by then they are in all phases of their runs."""


ENDLESS = "endless"


def answers(reply: Reply) -> Iterable[Step]:
    """Runs of all kinds: over at once, going on at a pace, with a tool, and one without end."""
    messages = reply.request.json["messages"]
    match int(messages[-1]["content"]) % 4 if messages[-1]["role"] == "user" else 0:
        case 0:
            yield from say("short and sweet", 3)
        case 1:
            for number in range(40):
                yield from (token(f"{number} "), Pause(0.01))
            yield from (finish(), Done())
        case 2:
            yield from call("calculator", {"expression": "6 * 7"})
        case _:
            yield from (token(ENDLESS), Hang())


@dataclass
class Asked:
    """A request, and what its client was told before the server died."""

    body: dict[str, Any]
    run_id: str | None = None
    documents: list[bytes] = field(default_factory=list)

    @property
    def is_acknowledged(self) -> bool:
        return self.run_id is not None

    @property
    def is_over(self) -> bool:
        return bool(self.documents) and is_terminal(self.documents[-1])


class Load:
    """Clients that ask and read, over all transports, until their server is gone."""

    def __init__(self, rng: random.Random, kill_at: int) -> None:
        self.asked: list[Asked] = []
        self._rng = rng
        self._left = kill_at
        self._moment = anyio.Event()

    async def until_killed(self, server: ServerProcess) -> None:
        """Load the server, and kill it just after its clients have heard so many events."""
        async with anyio.create_task_group() as tasks:
            for _ in range(CLIENTS):
                tasks.start_soon(self._client, server)
            await self._moment.wait()
            await anyio.sleep(self._rng.uniform(0, 0.05))
            server.kill()
        await server.wait()

    async def _client(self, server: ServerProcess) -> None:
        with suppress(BrokenError, ClosedError, ConnectionError):
            while True:
                number = self._rng.getrandbits(32)
                asked = Asked({"message": str(number), "session_id": f"s{number}", "idempotency_key": f"k{number}"})
                self.asked.append(asked)
                if number % 5 == 0:
                    response = await request(server, "POST", "/chat/runs", asked.body)
                    asked.run_id = response.json["run_id"]
                else:
                    async with await self._rng.choice(TRANSPORTS).start(server, asked.body) as reading:
                        await self._read(reading, asked)

    async def _read(self, reading: Reading, asked: Asked) -> None:
        async for document in reading:
            asked.run_id = reading.run_id
            asked.documents.append(document)
            self._left -= 1
            if self._left == 0:
                self._moment.set()
            if ENDLESS.encode() in document:
                return


class Verdict:
    """What a later life of the server must say of what an earlier one was asked."""

    def __init__(self, server: ServerProcess, rng: random.Random) -> None:
        self._server = server
        self._rng = rng

    async def of(self, asked: Asked) -> None:
        if not asked.is_acknowledged:
            await self._of_the_unknown(asked)
            return
        assert asked.run_id is not None
        run = await get_run(self._server, asked.run_id)
        session = await self._session(asked)
        question, answer = session["messages"]
        assert (question["role"], question["content"]) == ("user", asked.body["message"])
        assert (answer["role"], answer["run_id"]) == ("assistant", asked.run_id)
        assert session["active_run_id"] is None
        if asked.documents:
            assert question["message_id"] == json.loads(asked.documents[0])["user_message_id"]
        if run["status"] == "completed":
            assert (run["error"], answer["status"]) == (None, "complete")
        else:
            assert (run["status"], run["error"]["code"], answer["status"]) == ("failed", "interrupted", "partial")
        await self._ends_once(asked, run, answer)
        again = await documents_of(await SSE.start(self._server, asked.body))
        assert {json.loads(each)["run_id"] for each in again} == {asked.run_id}

    async def _ends_once(self, asked: Asked, run: dict[str, Any], answer: dict[str, Any]) -> None:
        """From any cursor that the dead server may have handed out, the log leads to its one end."""
        seen = len(asked.documents)
        stored = answer["parts"]
        cursors = {0, seen // 2, max(0, seen - 1), seen}
        if run["status"] == "failed":
            cursors |= {seen + 1, seen + 10}  # The dead server may have said more than was heard.
        for after in cursors - {run["last_seq"]}:
            documents = await documents_of(await self._attach(run, after))
            seqs = [json.loads(each)["seq"] for each in documents]
            assert after < seqs[0] and seqs == sorted(set(seqs)) and seqs[-1] == run["last_seq"]
            assert sum(map(is_terminal, documents)) == 1
            assert answer_of([*asked.documents[:after], *documents])["parts"] == stored
            assert not asked.is_over or documents[-1] == asked.documents[-1]
        async with await self._attach(run, run["last_seq"]) as reading:
            assert await reading.next() is None

    async def _attach(self, run: dict[str, Any], after: int) -> Reading:
        return await self._rng.choice(TRANSPORTS).attach(self._server, run["run_id"], after)

    async def _of_the_unknown(self, asked: Asked) -> None:
        """Nobody knows whether it was taken; asking again with the same key can be done safely."""
        response = await request(self._server, "POST", "/chat/runs", asked.body)
        assert response.status == 202
        session = await self._session(asked)
        assert [each["content"] for each in session["messages"] if each["role"] == "user"] == [asked.body["message"]]

    async def _session(self, asked: Asked) -> dict[str, Any]:
        response = await request(self._server, "GET", f"/chat/sessions/{asked.body['session_id']}")
        assert response.status == 200, asked
        return dict(response.json)


@pytest.mark.timeout(600)
async def test_a_killed_server_has_lost_nothing_it_acknowledged_and_left_no_run_without_end(
    tmp_path: Path, scale: Scale
) -> None:
    rng, kills = seeded(), scale(4, 20)
    acknowledged = over = 0
    async with FakeUpstream() as upstream:
        upstream.always(answers)
        server = ServerProcess(upstream.url, tmp_path, is_forked=True, retention_seconds=0.1, grace_seconds=3600.0)
        asked: list[Asked] = []
        for kill in range(kills + 1):
            async with server:
                with anyio.fail_after(50):
                    verdict = Verdict(server, rng)
                    async with anyio.create_task_group() as tasks:
                        for each in asked:
                            tasks.start_soon(verdict.of, each)
                    if kill < kills:
                        load = Load(rng, kill_at=rng.randrange(1, EVENTS_HEARD) if kill else EVENTS_HEARD)
                        await load.until_killed(server)
                        asked = load.asked
                        acknowledged += sum(each.is_acknowledged for each in asked)
                        over += sum(each.is_over for each in asked)
    assert 0 < over < acknowledged, "the moments were not random enough"
    assert server.stderr == []
