"""Wrong tools in a real server: the call of each gets an error, and neither its run nor anything else suffers."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import pytest

from tests import wrong_tools
from tests.clients import SSE, WS, Reading, documents_of, types_of
from tests.fake_upstream import Done, FakeUpstream, Gate, finish, role, say, token, tool_call, usage
from tests.live import live_server
from tests.wrong_tools import FLOOD, REFERENCE

pytestmark = pytest.mark.anyio

SECONDS = 50.0
TIMEOUT = "no answer within 3 seconds"


@pytest.fixture
def enough() -> Iterator[None]:
    wrong_tools.ENOUGH.clear()
    yield
    wrong_tools.ENOUGH.set()


def wanting(names: Sequence[str]) -> list[Any]:
    calls = [tool_call(name, {}, id=name, index=index) for index, name in enumerate(names)]
    return [role(), *(each for call in calls for each in call), finish("tool_calls"), usage(7, 5), Done()]


async def test_a_wrong_tool_gets_an_error_and_nothing_else_suffers(enough: None) -> None:
    """A long answer streams beside the wrong calls, each of its tokens behind a gate."""
    gates = [anyio.Event() for _ in range(20)]
    words = [each for gate in gates for each in (Gate(gate), token("word "))]
    names = ["exits", "stops", "never", "blocks", "floods", "much", "no_number", "cycle", "strange", "works"]
    async with (
        FakeUpstream() as upstream,
        live_server(upstream.url, tools=REFERENCE, tool_timeout_seconds=3.0) as server,
    ):
        upstream.script(role(), *words, finish(), Done())
        with anyio.fail_after(SECONDS):
            beside = await SSE.start(server, {"message": "Talk"})
            upstream.script(*wanting(names))
            upstream.script(*wanting(["blocks_all"]))
            upstream.script(*wanting(["works"]))
            upstream.script(*say("Done."))
            wrong = await WS.start(server, {"message": "Go wrong"})
            for gate in gates:
                gate.set()
                await _word(beside)
            seen = [json.loads(each) for each in await documents_of(wrong)]
            assert types_of(await documents_of(beside))[-1] == "done"
    assert seen[-1]["type"] == "done" and seen[-1]["finish_reason"] == "stop"
    results = {each["call_id"]: each for each in seen if each["type"] == "tool_result"}
    told = {name: (each["is_error"], each["truncated"], each["result"]) for name, each in results.items()}
    size = len(told.pop("much")[2])
    assert size > 10_000 and results["much"]["truncated"]
    assert told.pop("cycle")[0] is told.pop("strange")[0] is True
    (again,) = told.keys() - {each.__name__ for each in wrong_tools.TOOLS}
    assert told.pop(again) == (False, False, "worked")
    assert told == {
        "exits": (True, False, "SystemExit: 3"),
        "stops": (True, False, "stopped"),
        "never": (True, False, TIMEOUT),
        "blocks": (True, False, TIMEOUT),
        "blocks_all": (True, False, TIMEOUT),
        "floods": (True, False, "flooded"),
        "no_number": (False, False, [None, None, 1.0]),
        "works": (False, False, "worked"),
    }
    progress = [each for each in seen if each["type"] == "tool_progress" and each["call_id"] == "floods"]
    assert progress[-1]["progress"] == FLOOD - 1 and len(progress) < 50


async def _word(reading: Reading) -> None:
    while json.loads(await reading.next() or b"{}")["type"] != "token":
        pass
