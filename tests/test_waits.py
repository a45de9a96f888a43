"""What is stored of runs that wait, on both databases: each answer is recorded once, and each run has one owner."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from chatserver.answer import Answer
from chatserver.commands import ChatRequest
from chatserver.dialogue import INTERRUPTED_CALL
from chatserver.errors import AlreadyAnswered, NotFound, RunLost
from chatserver.events import Usage
from chatserver.parts import TextPart, ToolCallPart
from chatserver.resources import timestamp
from chatserver.sessions import Begun, Progress, Sessions, open_sessions
from chatserver.sessions.leases import LOOKS
from chatserver.waiting import UNAPPROVED, UNRETURNED, Approved, Refused, Resolution, Wait, WaitingCall
from tests.databases import ask, said
from tests.test_leases import look

pytestmark = pytest.mark.anyio

OPEN = ToolCallPart(call_id="c", tool="book", args={}, needs_approval=True)
TOLD = Answer((TextPart("Well"), OPEN))


@pytest.fixture
async def other(url: str) -> AsyncIterator[Sessions]:
    """The sessions as another process has them open."""
    async with open_sessions(url) as opened:
        yield opened


def wait(*call_ids: str, seconds: float = 60.0) -> Wait:
    expires_at = timestamp(datetime.now(UTC) + timedelta(seconds=seconds))
    calls = {call_id: WaitingCall(expires_at) for call_id in call_ids or ("c",)}
    return Wait(ChatRequest(model="m", temperature=0.5), calls)


async def stored(sessions: Sessions, begun: Begun, is_waiting: bool = True, **options: Any) -> Any:
    progress = Progress(TOLD, said("Well"), Usage(5, 6), options.get("billed", 0))
    kept = options.get("wait") or wait()
    return await sessions.waits.store(begun.run.run_id, kept, progress, is_waiting, options.get("limit", inf))


async def test_a_run_that_waits_shows_what_it_has_said_and_what_it_has_spent(sessions: Sessions) -> None:
    begun = await ask(sessions, session_id="s")
    assert await stored(sessions, begun) == {}
    run = await sessions.run("ann", begun.run.run_id)
    assert (run.status, run.last_seq, run.usage, run.finished_at) == ("waiting", 1, Usage(5, 6), None)
    assert await sessions.log(run.run_id) is None, "it is not over"
    message = (await sessions.session("ann", "s")).messages[-1]
    assert (message.status, message.parts) == ("streaming", TOLD.parts)
    today = timestamp()[:10]
    assert await sessions.spent_on("ann", today) == 11
    await stored(sessions, begun, billed=11)
    assert await sessions.spent_on("ann", today) == 11, "what was counted is not counted again"


async def test_an_answer_is_recorded_once_and_makes_the_run_go_on(sessions: Sessions, other: Sessions) -> None:
    begun = await ask(sessions)
    run_id = begun.run.run_id
    with pytest.raises(NotFound):
        await sessions.waits.check("ann", run_id, "c")
    await stored(sessions, begun)
    assert await other.waits.check("ann", run_id, "c") == ("waiting", OPEN)
    outcomes: list[object] = []

    async def answer(by: Sessions, resolution: Resolution) -> None:
        try:
            outcomes.append(await by.waits.answer(run_id, "c", resolution))
        except AlreadyAnswered:
            outcomes.append("late")

    async with anyio.create_task_group() as tasks:
        for by in (other, sessions) * 3:
            tasks.start_soon(answer, by, Approved())
    assert outcomes.count("late") == 5
    assert (await sessions.run("ann", run_id)).status == "running"
    assert await sessions.waits.answers([run_id, "nope"]) == {run_id: {"c": Approved()}}
    assert await other.waits.answers([run_id]) == {}, "it is another process's"
    for late in (lambda: other.waits.check("ann", run_id, "c"), lambda: other.waits.answer(run_id, "c", Refused("no"))):
        with pytest.raises(AlreadyAnswered):
            await late()


async def test_a_run_with_an_answer_is_never_stored_as_waiting(sessions: Sessions) -> None:
    """Else whoever takes it over would make the call again."""
    begun = await ask(sessions)
    await stored(sessions, begun, is_waiting=False, wait=wait("c", "d"))
    assert await sessions.waits.answer(begun.run.run_id, "c", Approved()) is True
    assert await stored(sessions, begun, wait=wait("c", "d")) == {"c": Approved()}
    assert (await sessions.run("ann", begun.run.run_id)).status == "running"
    assert not await sessions.waits.park(begun.run.run_id)


async def test_a_call_that_waits_not_is_not_answered(sessions: Sessions) -> None:
    begun = await ask(sessions)
    run_id = begun.run.run_id
    await stored(sessions, begun)
    for user, run, call_id in (("bob", run_id, "c"), ("ann", "nope", "c"), ("ann", run_id, "d")):
        with pytest.raises(NotFound):
            await sessions.waits.check(user, run, call_id)
    with pytest.raises(AlreadyAnswered):
        await sessions.waits.answer(run_id, "d", Approved())
    assert (await sessions.run("ann", run_id)).status == "waiting", "what is refused has changed nothing"


async def test_a_parked_run_is_claimed_by_one_process_with_all_that_it_needs(
    sessions: Sessions, other: Sessions
) -> None:
    begun = await ask(sessions, session_id="s")
    run_id = begun.run.run_id
    kept = wait()
    await stored(sessions, begun, wait=kept)
    assert await other.waits.claim(run_id) is None, "it is not parked"
    assert not await other.waits.park(run_id), "it is another process's"
    assert await sessions.waits.park(run_id)
    assert await sessions.waits.answer(run_id, "c", Approved()) is None, "nobody would go on with it"
    assert await look(other) == await look(sessions) == [], "it was not abandoned"
    claims: list[Any] = []

    async def claim(by: Sessions) -> None:
        claims.append(await by.waits.claim(run_id))

    async with anyio.create_task_group() as tasks:
        for by in (sessions, other) * 3:
            tasks.start_soon(claim, by)
    (taken,) = [each for each in claims if each is not None]
    assert (taken.user, taken.user_message_id, taken.wait) == ("ann", begun.user_message_id, kept)
    assert (taken.log, taken.said, taken.run.usage) == (said("Well"), TOLD, Usage(5, 6))


async def test_the_waiting_runs_of_a_dead_process_are_parked_and_its_running_ones_are_ended(
    sessions: Sessions, other: Sessions
) -> None:
    waits, answered = await ask(other, session_id="s"), await ask(other, session_id="t")
    for begun in (waits, answered):
        await stored(other, begun)
    await other.waits.answer(answered.run.run_id, "c", Approved())
    for _ in range(LOOKS + 1):
        await look(sessions)
    assert (await sessions.run("ann", waits.run.run_id)).status == "waiting"
    assert await sessions.waits.due() == []
    assert (await sessions.run("ann", answered.run.run_id)).status == "failed"
    (_, part) = (await sessions.session("ann", "t")).messages[-1].parts
    assert isinstance(part, ToolCallPart) and part.is_error and "not known" in part.result
    with pytest.raises(RunLost):
        await stored(other, waits)
    assert (await sessions.waits.claim(waits.run.run_id)) is not None
    assert await look(sessions) == []


async def test_an_answer_that_a_dead_process_has_not_taken_is_left_to_the_next_one(
    sessions: Sessions, other: Sessions
) -> None:
    untaken, taken = await ask(other, session_id="s"), await ask(other, session_id="t")
    for begun in (untaken, taken):
        await stored(other, begun)
        assert await sessions.waits.answer(begun.run.run_id, "c", Approved()) is False
    await other.waits.take(taken.run.run_id, ["c"])
    for _ in range(LOOKS + 1):
        await look(sessions)
    run_id = untaken.run.run_id
    assert (await sessions.run("ann", taken.run.run_id)).status == "failed", "its call may have been made"
    assert await sessions.waits.due() == [run_id]
    with pytest.raises(RunLost):
        await other.waits.take(run_id, ["c"])
    with pytest.raises(AlreadyAnswered):
        await other.waits.check("ann", run_id, "c")
    assert await sessions.waits.claim(run_id) is not None
    assert await sessions.waits.answers([run_id]) == {run_id: {"c": Approved()}}
    assert await sessions.waits.due() == [], "it is somebody's"


KINDS: list[dict[str, Any]] = [{"needs_approval": True}, {"needs_approval": True}, {}, {"executor": "client"}]
CALLS = Answer(
    tuple([replace(OPEN, **{"call_id": f"c{n}", "needs_approval": False} | kind) for n, kind in enumerate(KINDS)])
)


async def test_a_run_of_a_dead_process_waits_on_if_one_of_its_calls_does_whatever_went_on_beside_it(
    sessions: Sessions, other: Sessions
) -> None:
    """A call whose answer was taken waits no more. The run is due at once, since there is something to tell of it."""
    begun = await ask(other, session_id="s")
    run_id, progress = begun.run.run_id, Progress(CALLS, said("Well"), Usage(5, 6), 0)
    assert await other.waits.store(run_id, wait("c0", "c1", "c3"), progress, False, inf) == {}
    await other.waits.answer(run_id, "c1", Approved({"table": 5}))
    for _ in range(LOOKS + 1):
        await look(sessions)
    run = await sessions.run("ann", run_id)
    assert (run.status, run.last_seq) == ("waiting", 1)
    assert await sessions.waits.due() == [run_id]
    with pytest.raises(RunLost):
        await other.waits.store(run_id, wait("c0"), progress, False, inf)
    taken = await sessions.waits.claim(run_id)
    assert taken is not None
    assert list(taken.wait.calls) == ["c0", "c3"]
    assert (taken.said, taken.log, taken.answers) == (CALLS, said("Well"), {"c1": Approved({"table": 5})})


async def test_a_run_of_a_dead_process_ends_when_the_answers_to_all_its_calls_were_taken(
    sessions: Sessions, other: Sessions
) -> None:
    begun = await ask(other, session_id="s")
    run_id, progress = begun.run.run_id, Progress(CALLS, said("Well"), Usage(5, 6), 0)
    await other.waits.store(run_id, wait("c0", "c1"), progress, False, inf)
    await other.waits.answer(run_id, "c0", Refused("no"))
    assert await sessions.waits.answer(run_id, "c1", Approved()) is False
    assert await other.waits.store(run_id, wait("c1"), progress, False, inf) == {"c1": Approved()}, "taken with that"
    for _ in range(LOOKS + 1):
        await look(sessions)
    assert (await sessions.run("ann", run_id)).status == "failed"


async def test_of_calls_that_a_dead_process_had_not_stored_as_waiting_those_with_an_approval_were_not_made(
    sessions: Sessions, other: Sessions
) -> None:
    begun = await ask(other, session_id="s")
    await other.checkpoint({begun.run.run_id: CALLS})
    for _ in range(LOOKS + 1):
        await look(sessions)
    assert (await sessions.run("ann", begun.run.run_id)).status == "failed"
    parts = (await sessions.session("ann", "s")).messages[-1].parts
    words = [part.result for part in parts if isinstance(part, ToolCallPart)]
    assert words == [UNAPPROVED, UNAPPROVED, INTERRUPTED_CALL, UNRETURNED]


async def test_a_process_that_is_cut_off_leaves_a_run_with_its_answer(sessions: Sessions, other: Sessions) -> None:
    begun = await ask(sessions)
    run_id = begun.run.run_id
    await stored(sessions, begun)
    await other.waits.answer(run_id, "c", Approved())
    assert not await sessions.waits.park(run_id), "it goes on here"
    assert await sessions.waits.park(run_id, even_running=True)
    assert await other.waits.due() == [run_id]
    assert await other.waits.claim(run_id) is not None
    await other.waits.take(run_id, ["c"])
    assert not await other.waits.park(run_id, even_running=True), "its call is being made"


async def test_so_many_runs_of_a_user_wait(sessions: Sessions) -> None:
    first, second, foreign = [await ask(sessions, user=user, session_id=each) for user, each in USERS]
    for begun in (first, first, foreign):
        await stored(sessions, begun, limit=1)
    refused = await stored(sessions, second, wait=wait("c", "d"), limit=1)
    assert list(refused) == ["c", "d"] and all("at a time" in each.words for each in refused.values())
    assert (await sessions.run("ann", second.run.run_id)).status == "running"
    assert not await sessions.waits.park(second.run.run_id, even_running=True), "none of its calls waits"


USERS = (("ann", "s"), ("ann", "t"), ("bob", "s"))


async def test_parked_runs_with_expired_calls_are_due(sessions: Sessions) -> None:
    late, early = await ask(sessions, session_id="s"), await ask(sessions, session_id="t")
    await stored(sessions, late)
    await stored(sessions, early, wait=wait("c", "d", seconds=-1))
    assert await sessions.waits.due() == []
    for begun in (late, early):
        assert await sessions.waits.park(begun.run.run_id)
    assert await sessions.waits.due() == [early.run.run_id]


async def test_what_waits_goes_with_its_session(sessions: Sessions) -> None:
    begun = await ask(sessions, session_id="s")
    await stored(sessions, begun)
    await sessions.waits.answer(begun.run.run_id, "c", Approved())
    assert await sessions.delete("ann", "s", [begun.run.run_id]) is None
    assert await sessions.waits.answers([begun.run.run_id]) == {}
    with pytest.raises(RunLost):
        await stored(sessions, begun)
