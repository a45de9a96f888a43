"""How a run ends that another node has taken over: as after a crash, and everybody is told what is stored."""

from typing import Any, cast

import pytest

from chatserver.endings import INTERRUPTED
from chatserver.events import Done, FinishReason, Terminal, Usage
from chatserver.meter import Meter
from chatserver.nodes.owned_log import OwnedLog
from chatserver.runs.ends import RunEnd
from chatserver.runs.run import Run
from chatserver.sessions import Sessions
from chatserver.telemetry import RunObserver
from tests.scripted_model import RESOURCE

pytestmark = pytest.mark.anyio


class Heard(RunObserver):
    """What is counted of the end of a run."""

    def __init__(self) -> None:
        self.terminals: list[Terminal] = []

    def ended(self, terminal: Terminal, usage: Usage) -> None:
        self.terminals.append(terminal)


class Store:
    """What is stored as the end of a run."""

    def __init__(self) -> None:
        self.endings: list[Terminal] = []

    async def finish(self, run_id: str, *, ending: Terminal, **_: Any) -> None:
        self.endings.append(ending)


async def never(seconds: float) -> bool:
    raise AssertionError("it is stored at once")


@pytest.mark.parametrize("reason", ["stop", "cancelled"])
async def test_an_end_that_comes_behind_the_loss_of_the_run_is_that_of_a_crash_unless_it_is_a_cancel(
    reason: FinishReason,
) -> None:
    heard, store, told = Heard(), Store(), list[int]()
    run = Run(RESOURCE, OwnedLog(RESOURCE.run_id, lambda _: None), Meter(), None, 0.0, heard)
    run.end(reason)
    cast(OwnedLog, run.log).fence()
    end = RunEnd(run, cast(Sessions, store), 0, lambda: told.append(len(store.endings)))
    assert await end.finish(never)
    assert heard.terminals == store.endings
    assert told == [1], "when it is stored"
    (ending,) = store.endings
    assert isinstance(ending, Done) if reason == "cancelled" else ending == INTERRUPTED
