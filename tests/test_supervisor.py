"""The supervisor of workers, with played workers in virtual time: who is started, told and ended, and when."""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import pytest

from chatserver.runs.lives import SHUTDOWN_SECONDS
from chatserver.serving import supervisor
from chatserver.serving.processes import START_SECONDS, Child, Inheritance, Kept
from chatserver.serving.server import ACCEPTED_SECONDS
from chatserver.serving.supervisor import FAILED_STATUS, KILL_SECONDS, STEADY_SECONDS, Supervisor
from chatserver.transports.connections import FLUSH_SECONDS
from tests.virtual_time import VirtualTimeLoop

LEAVING_SECONDS = 0.3
"""What a worker may need to leave Redis and the database."""

DRAIN_SECONDS = 10.0


class Played(Child):
    """A worker that does what the test says."""

    def __init__(self, number: int, stage: "Stage") -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.begun, self.ended = loop.create_future(), loop.create_future()
        self.signals: list[signal.Signals] = []
        self.is_replaced = False
        self.started_at = loop.time() - stage.began
        self.pid, self.line = 100 + len(stage.children), cast(socket.socket, self)
        self._stage = stage

    def fileno(self) -> int:
        return self.pid + 100

    def serve(self) -> None:
        self.begun.set_result(True)

    def end(self, status: int = 0) -> None:
        if not self.begun.done():
            self.begun.set_result(False)
        self.ended.set_result(status)

    def change(self) -> None:
        assert all(worker.begun.done() for worker in self._stage.supervisor.workers.values())
        self.is_replaced = True

    def signal(self, number: signal.Signals) -> None:
        if not self.ended.done():
            self.signals.append(number)
            if number is signal.SIGKILL:
                self.end(-number)


class Stage:
    """A supervisor with played workers; all of them in the order in which they were started."""

    def __init__(self, count: int = 2, anew: Callable[[Sequence[Kept]], Inheritance] | None = None) -> None:
        self.began = asyncio.get_running_loop().time()
        self.children: list[Played] = []
        self.ready_count = 0
        self.ended: list[int] = []
        self.supervisor = Supervisor(count, DRAIN_SECONDS, self._start, self._on_ready, self.ended.append, anew)
        self.running = asyncio.create_task(self.supervisor.run())

    def _start(self, number: int) -> Child:
        self.children.append(Played(number, self))
        return self.children[-1]

    def _on_ready(self) -> None:
        self.ready_count += 1

    async def settled(self, seconds: float = 0.0) -> list[Played]:
        """Let everything happen that happens in this time; the children so far."""
        await asyncio.sleep(seconds + 0.001)
        return self.children

    async def serving(self) -> list[Played]:
        for child in await self.settled():
            child.serve()
        return await self.settled()


@pytest.fixture
def play() -> Callable[[Callable[[], Awaitable[None]]], None]:
    def run(act: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await act()

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(main())

    return run


Play = Callable[[Callable[[], Awaitable[None]]], None]


def test_it_is_ready_when_all_workers_serve(play: Play) -> None:
    async def act() -> None:
        stage = Stage(3)
        one, two, three = await stage.settled()
        assert [one.number, two.number, three.number] == [1, 2, 3]
        three.serve()
        one.serve()
        await stage.settled()
        assert stage.ready_count == 0
        two.serve()
        await stage.settled()
        assert stage.ready_count == 1

    play(act)


def test_a_dead_worker_is_replaced_at_once_and_one_that_dies_early_after_growing_pauses(play: Play) -> None:
    async def act() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage(2)
        await stage.serving()

        async def pause_after_death() -> float:
            died_at, count = loop.time(), len(stage.children)
            stage.children[-1].end(1)
            while len(stage.children) == count:  # noqa: ASYNC110 - as exact as the virtual time
                await asyncio.sleep(0.01)
            pause = loop.time() - died_at
            stage.children[-1].serve()
            await stage.settled()
            return round(pause, 1)

        assert [await pause_after_death() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        await asyncio.sleep(STEADY_SECONDS)
        assert [await pause_after_death() for _ in range(2)] == [0.0, 0.5]

    play(act)


def test_it_gives_up_in_words_when_no_worker_can_be_started(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        stage = Stage(2)
        one, two = await stage.settled()
        one.end(3)
        await stage.settled()
        assert not stage.running.done(), "the other may still serve"
        two.end(3)
        assert await stage.running == FAILED_STATUS and stage.ready_count == 0
        assert len(stage.children) == 2

    play(act)
    assert caplog.messages == [
        "worker 1 has ended before it served: status 3",
        "worker 2 has ended before it served: status 3",
        "no worker is left, and none can be started: giving up",
    ]


def test_a_worker_that_cannot_start_is_tried_again_while_another_serves(play: Play) -> None:
    async def act() -> None:
        stage = Stage(2)
        one, two = await stage.settled()
        one.serve()
        two.end(1)
        await stage.settled(0.6)
        assert [child.number for child in stage.children] == [1, 2, 2]
        stage.children[-1].serve()
        await stage.settled()
        assert stage.ready_count == 1 and not stage.running.done()

    play(act)


def test_a_worker_that_never_says_that_it_serves_is_ended(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        stage = Stage(1)
        await stage.settled(START_SECONDS + 1)
        assert await stage.running == FAILED_STATUS

    play(act)
    assert "worker 1 has ended before it served: signal SIGKILL" in caplog.messages


def test_a_restart_replaces_one_after_the_other_and_none_before_the_new_one_serves(play: Play) -> None:
    async def act() -> None:
        stage = Stage(2)
        one, two = await stage.serving()
        stage.supervisor.restart()
        *_, new_one = await stage.settled()
        assert [new_one.number, one.is_replaced, len(stage.children)] == [1, False, 3]
        new_one.serve()
        *_, new_two = await stage.settled()
        assert [new_two.number, one.is_replaced, two.is_replaced, len(stage.children)] == [2, True, False, 4]
        new_two.serve()
        await stage.settled()
        assert two.is_replaced and stage.supervisor.workers == {1: new_one, 2: new_two}
        one.end()
        two.end()
        await stage.settled(60.0)
        assert stage.ended == [one.pid, two.pid]
        assert len(stage.children) == 4 and stage.ready_count == 1, "who was replaced is not started again"

    play(act)


def test_a_restart_ends_where_a_new_worker_cannot_start(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        def never(kept: Sequence[Kept]) -> Inheritance:
            raise AssertionError("a new program would start no worker either")

        stage = Stage(2, never)
        one, two = await stage.serving()
        stage.supervisor.restart()
        (await stage.settled())[-1].end(1)
        await stage.settled(60.0)
        assert stage.supervisor.workers == {1: one, 2: two}
        assert not (one.is_replaced or two.is_replaced) and len(stage.children) == 3
        stage.supervisor.restart()
        assert len(await stage.settled()) == 4, "it may be asked for again"

    play(act)
    assert "the restart has ended at worker 1: the workers that serve go on" in caplog.messages


def test_a_restart_that_is_asked_for_during_another_comes_behind_it(play: Play) -> None:
    async def act() -> None:
        stage = Stage(1)
        await stage.serving()
        stage.supervisor.restart()
        await stage.settled()
        stage.supervisor.restart()
        stage.supervisor.restart()
        assert len(await stage.settled()) == 2
        stage.children[-1].serve()
        assert len(await stage.settled()) == 3
        stage.children[-1].serve()
        assert len(await stage.settled()) == 3

    play(act)


def test_a_worker_that_dies_during_a_restart_is_started_like_any_other(play: Play) -> None:
    async def act() -> None:
        stage = Stage(2)
        _, two = await stage.serving()
        stage.supervisor.restart()
        await stage.settled()
        two.end(-9)
        await stage.settled(1.0)
        assert [child.number for child in stage.children] == [1, 2, 1, 2]
        for child in stage.children[2:]:
            child.serve()
        *_, last = await stage.settled()
        last.serve()
        await stage.settled()
        assert stage.supervisor.workers == {1: stage.children[2], 2: last} and stage.children[3].is_replaced

    play(act)


def test_a_program_in_place_of_this_one_keeps_the_workers(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Inheritance] = []
    monkeypatch.setattr(supervisor, "run_anew", told.append)

    async def act() -> None:
        stage = Stage(1, lambda kept: Inheritance(children=kept))
        (old,) = await stage.serving()
        stage.supervisor.restart()
        *_, new = await stage.settled()
        new.serve()
        await stage.settled()
        (inheritance,) = told
        assert sorted(inheritance.children) == [Kept(old.pid, old.fileno(), 0), Kept(new.pid, new.fileno(), 1)]

    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    play(act)


def test_a_stop_reaches_every_child_and_ends_when_the_last_has_ended(play: Play) -> None:
    async def act() -> None:
        stage = Stage(2)
        old, two = await stage.serving()
        stage.supervisor.restart()
        (await stage.settled())[-1].serve()
        _, _, one, starting = await stage.settled()
        stage.supervisor.stop()
        assert [child.signals for child in stage.children] == [[signal.SIGTERM]] * 4
        for child in (old, one, starting):
            child.end(-15)
        await stage.settled(DRAIN_SECONDS)
        assert not stage.running.done() and len(stage.children) == 4, "nobody is started any more"
        two.end()
        assert await stage.running == 0

    play(act)


def test_a_worker_has_time_for_all_that_its_own_drain_may_take() -> None:
    assert SHUTDOWN_SECONDS + FLUSH_SECONDS + ACCEPTED_SECONDS + LEAVING_SECONDS < KILL_SECONDS


def test_what_does_not_end_in_time_is_killed(play: Play) -> None:
    async def act() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage(2)
        one, _ = await stage.serving()
        began = loop.time()
        stage.supervisor.stop()
        one.end()
        assert await stage.running == 0
        assert DRAIN_SECONDS < loop.time() - began <= DRAIN_SECONDS + KILL_SECONDS + 0.1 < DRAIN_SECONDS + 3.0

    play(act)


def test_a_stop_while_a_worker_waits_for_its_next_start_ends_too(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def act() -> None:
        stage = Stage(2)
        one, two = await stage.settled()
        one.serve()
        two.end(1)
        await stage.settled()
        stage.supervisor.stop()
        one.end()
        assert await stage.running == 0 and len(stage.children) == 2

    with caplog.at_level(logging.ERROR):
        play(act)
    assert [message for message in caplog.messages if "giving up" in message] == []
