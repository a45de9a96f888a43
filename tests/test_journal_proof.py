"""Whatever is lost, cut and deleted: all nodes show what the owner wrote, in order. Each way to break that is seen."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha1
from random import Random
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from anyio.lowlevel import checkpoint

from chatserver.events import Event, Token, appended
from chatserver.log import StoredLog
from chatserver.nodes import follower, publisher
from chatserver.nodes.follower import Follower
from chatserver.nodes.keys import blocks_key, node_key, owner_key, run_key
from chatserver.nodes.link import Script
from chatserver.nodes.owned_log import OwnedLog
from tests.conftest import Scale
from tests.journals import WAIT_SECONDS, Node, Witness, agrees, is_at, is_shown, node
from tests.logs import a_run, end, start
from tests.redis_process import RedisProcess

pytestmark = [pytest.mark.anyio, pytest.mark.proof]


# ---- the proofs -----------------------------------------------------------------------------------------------------


async def followers_agree(server: RedisProcess, rng: Random, events: int) -> None:
    """Runs of one owner, read on all nodes from the start on, while messages, connections and keys are lost."""
    runs = {f"run {number}": list(a_run(events)) for number in range(3)}
    with losing_messages(lambda: rng.random() < 0.2), patch.object(follower, "SILENT_SECONDS", 0.5):
        await _followers_agree(server, rng, runs)


async def _followers_agree(server: RedisProcess, rng: Random, runs: dict[str, list[Event]]) -> None:
    database = dict[str, StoredLog]()
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(server, name, database)) for name in "abc"]
        logs = {run_id: await nodes[0].own(run_id) for run_id in runs}
        witnesses = [Witness(await each.follow(run_id)) for run_id in runs for each in nodes[1:]]
        witnesses += [Witness(log) for log in logs.values()]
        async with anyio.create_task_group() as tasks:
            for witness in witnesses:
                tasks.start_soon(witness.read)
            for run_id, drafts in runs.items():
                tasks.start_soon(_write, logs[run_id], drafts, rng, database)
            tasks.start_soon(_disturb, server, nodes, list(runs), rng)
        for witness in witnesses:
            witness.check(runs[witness.log.run_id])


async def _write(log: OwnedLog, drafts: list[Event], rng: Random, database: dict[str, StoredLog]) -> None:
    for draft in drafts:
        if draft is drafts[-1]:
            database[log.run_id] = log.stored(appended(draft, log.run_id, log.last_seq + 1))
        log.append(draft)
        if rng.random() < 0.1:
            await anyio.sleep(rng.choice([0, 0, 0.001, 0.01]))


async def _disturb(server: RedisProcess, nodes: list[Node], run_ids: list[str], rng: Random) -> None:
    for _ in range(20):
        await anyio.sleep(rng.choice([0.001, 0.01, 0.05]))
        run_id, each = rng.choice(run_ids), rng.choice(nodes)
        match rng.randrange(5):
            case 0 if each.link._wire is not None:
                each.link._wire.abort("cut by the test")
            case 1:
                server.cli("DEL", run_key(run_id))
            case 2:
                server.cli("XTRIM", run_key(run_id), "MAXLEN", "0")
            case 3:
                server.cli("DEL", blocks_key(run_id))
            case _:
                server.cli("FLUSHALL")
                await anyio.sleep(0.02)
                server.cli("SET", node_key("a"), "1")


@contextmanager
def losing_messages(is_lost: Callable[[], bool]) -> Iterator[None]:
    """Some messages of channels reach nobody."""
    heard = Follower._hear

    def hear(self: Follower, followed: Any, message: bytes) -> None:
        if not is_lost():
            heard(self, followed, message)

    with patch.object(Follower, "_hear", hear):
        yield


async def gaps_are_filled(server: RedisProcess) -> None:
    """A journal that has lost its end in mid run; a follower that comes afterwards reads it from Redis alone."""
    async with node(server, "a") as owner, node(server, "b") as other:
        log = await owner.own("run")
        drafts: list[Event] = [start(), *[Token(content=f"{number} ") for number in range(50)], end()]
        for draft in drafts[:30]:
            log.append(draft)
            await checkpoint()
        await is_shown(log)
        server.cli("DEL", run_key("run"))
        for draft in drafts[30:-1]:
            log.append(draft)
        await is_shown(log)
        found = await other.follow("run")
        await is_at(found, 51)
        log.append(drafts[-1])
        await agrees(found, drafts)


async def fenced_owner_is_silent(server: RedisProcess) -> None:
    """Another node has taken the run over: nothing of the old owner is shown or kept any more."""
    async with node(server, "a") as owner, node(server, "b") as other:
        log = await owner.own("run")
        log.append(start())
        await is_shown(log)
        found = await other.follow("run")
        server.cli("HSET", owner_key("run"), "node", "b")
        log.append(Token(content="too late"))
        await _silent(server, log, found.last_seq)


async def owner_without_lease_is_silent(server: RedisProcess) -> None:
    """Others may take a node without a lease for gone, and its runs over, at any moment."""
    async with node(server, "a") as owner:
        log = await owner.own("run")
        log.append(start())
        await is_shown(log)
        server.cli("DEL", node_key("a"))
        log.append(Token(content="too late"))
        await _silent(server, log, 1)


async def _silent(server: RedisProcess, log: OwnedLog, last_seq: int) -> None:
    await anyio.sleep(0.1)
    assert log.shown.last_seq == last_seq == 1, "it shows more"
    assert server.cli("XLEN", run_key("run")) == "1", "it publishes more"


async def nothing_is_shown_early(server: RedisProcess) -> None:
    """Also the owner's own readers are not given what Redis has not confirmed."""
    async with node(server, "a") as owner:
        log = await owner.own("run")
        server.freeze()
        try:
            log.append(start())
            await anyio.sleep(0.1)
            assert log.shown.last_seq == 0, "it shows what Redis has not"
        finally:
            server.thaw()
        await is_shown(log)


async def lost_messages_are_found(server: RedisProcess) -> None:
    """Also the last one, behind which nothing comes."""
    async with node(server, "a") as owner, node(server, "b") as other:
        log = await owner.own("run")
        with losing_messages(lambda: True):
            found = await other.follow("run")
            for _ in range(3):
                log.append(Token(content="x"))
                await is_shown(log)
                await is_at(found, log.last_seq)


@pytest.mark.timeout(600)
async def test_all_nodes_show_what_the_owner_wrote(redis_server: RedisProcess, scale: Scale) -> None:
    for seed in range(scale(3, 60)):
        redis_server.cli("FLUSHALL")
        with anyio.fail_after(WAIT_SECONDS):
            await followers_agree(redis_server, Random(seed), 400)


Proof = Callable[[RedisProcess], Awaitable[None]]
PROOFS: list[Proof] = [
    gaps_are_filled,
    fenced_owner_is_silent,
    owner_without_lease_is_silent,
    nothing_is_shown_early,
    lost_messages_are_found,
]


@pytest.mark.parametrize("proof", PROOFS)
async def test_proof(redis_server: RedisProcess, proof: Proof) -> None:
    with anyio.fail_after(WAIT_SECONDS):
        await proof(redis_server)


# ---- sabotage -------------------------------------------------------------------------------------------------------

HANG, HANG_SECONDS = "no end", 1.5


@asynccontextmanager
async def changed(old: str, new: str) -> AsyncIterator[None]:
    """The script that publishes, with one thing said otherwise."""
    source = publisher.PUBLISH.source
    assert old.encode() in source
    script = Script("publish")
    script.source = source.replace(old.encode(), new.encode())
    script.digest = sha1(script.source, usedforsecurity=False).hexdigest()
    with patch.object(publisher, "PUBLISH", script):
        yield


@asynccontextmanager
async def shown_at_once() -> AsyncIterator[None]:
    append = OwnedLog.append

    def append_and_show(self: OwnedLog, draft: Event) -> object:
        new = append(self, draft)
        self.show_all()
        return new

    with patch.object(OwnedLog, "append", append_and_show):
        yield


@asynccontextmanager
async def no_look() -> AsyncIterator[None]:
    with patch.object(Follower, "_look", lambda self: None):
        yield


@asynccontextmanager
async def gap_ignored() -> AsyncIterator[None]:
    """What does not follow is kept all the same."""
    keep = Follower._feed

    def feed(self: Follower, followed: Any, chunk: bytes) -> bool:
        log = followed.log
        log.last_seq = max(log.last_seq, int(chunk.split(b'"seq":')[1].split(b",")[0]) - 1)
        return keep(self, followed, chunk)

    with patch.object(Follower, "_feed", feed):
        yield


@dataclass(frozen=True)
class Case:
    """A fault, the proof that is there for it, and what the proof says then."""

    fault: Callable[[], Any]
    proof: Proof
    verdict: str

    def __str__(self) -> str:
        name = self.proof.func if isinstance(self.proof, partial) else self.proof
        return f"{getattr(self.fault, '__name__', 'script')}-{getattr(name, '__name__', name)}"


random_losses = partial(followers_agree, rng=Random(1), events=400)
CASES = [
    Case(partial(changed, "if owner == node then", "if true then"), fenced_owner_is_silent, "shows more"),
    Case(partial(changed, "if tail == before then", "if true then"), gaps_are_filled, HANG),
    Case(partial(changed, "== 0 then\n    return false", "== 7 then\n"), owner_without_lease_is_silent, "shows more"),
    Case(shown_at_once, nothing_is_shown_early, "shows what Redis has not"),
    Case(shown_at_once, fenced_owner_is_silent, "shows more"),
    Case(no_look, lost_messages_are_found, HANG),
    Case(gap_ignored, random_losses, "something else|out of range"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_fault_turns_its_proof_red(redis_server: RedisProcess, case: Case) -> None:
    verdict = "it stays green"
    async with case.fault():
        try:
            with anyio.move_on_after(HANG_SECONDS if case.verdict == HANG else WAIT_SECONDS) as scope:
                await case.proof(redis_server)
            if scope.cancel_called:
                verdict = HANG
        except BaseExceptionGroup as group:
            verdict = repr(group.exceptions)
    assert re.search(case.verdict, verdict), verdict
