"""A model server of quite another API, in the words of OpenAI's Responses: only its provider knows what they mean.

The agent, the run and the sessions are those of the product; nothing of them is told which API is asked.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest

from chatserver import app
from chatserver.dialogue import AssistantTurn, Item, Leavings, SystemText, ToolOutput, UserMessage
from chatserver.events import Reasoning, Token, Usage
from chatserver.providers import Finish, ModelRequest, OnDelta, ToolCallRequest
from tests.clients import BOTH, Transport, documents_of, types_of
from tests.live import live_server
from tests.slow_tools import REFERENCE

pytestmark = pytest.mark.anyio

SECONDS = 20.0
CALLED: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA", "summary": []},
    {"type": "function_call", "id": "fc_1", "call_id": "call.1", "name": "add", "arguments": '{"a":1,"b":2}'},
]
SPOKEN: list[dict[str, Any]] = [
    {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "Three"}]}
]


class Responses:
    """Asks nobody: it keeps the input that it would send, and answers a user with a call, an output with a text."""

    def __init__(self) -> None:
        self.inputs: list[list[dict[str, Any]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def warm_up(self) -> None:
        pass

    async def stream(self, request: ModelRequest, on_delta: OnDelta) -> Finish:
        maker = f"responses {request.model}"
        self.inputs.append([each for item in request.messages for each in _input(item, maker)])
        assert [each.name for each in request.tools] == ["add", "hang"]
        await anyio.lowlevel.checkpoint()
        if isinstance(request.messages[-1], UserMessage):
            on_delta(Reasoning(content="hm"))
            on_delta(ToolCallRequest("call.1", "add", '{"a":1,"b":2}'))
            return Finish("tool_calls", Usage(5, 5), Leavings(maker, CALLED))
        on_delta(Token(content="Three"))
        return Finish("stop", Usage(5, 5), Leavings(maker, SPOKEN))


def _input(item: Item, maker: str) -> Iterator[dict[str, Any]]:
    match item:
        case SystemText(text) | UserMessage(text):
            yield {"role": "user" if isinstance(item, UserMessage) else "developer", "content": text}
        case ToolOutput():
            yield {"type": "function_call_output", "call_id": item.call_id, "output": item.text}
        case AssistantTurn() if item.leavings is not None and item.leavings.maker == maker:
            yield from item.leavings.items
        case AssistantTurn():
            if item.text:
                yield {"role": "assistant", "content": item.text}
            for call in item.calls:
                arguments = json.dumps(call.args, separators=(",", ":"))
                yield {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": arguments}


@pytest.mark.parametrize("transport", BOTH, ids=str)
async def test_another_api_fits_behind_the_same_agent_run_and_sessions(
    transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Responses()
    monkeypatch.setattr(app, "_provider", lambda *_: provider)
    output = {"type": "function_call_output", "call_id": "call.1", "output": "3"}
    one = [{"role": "user", "content": "One"}, *CALLED, output, *SPOKEN]
    two = [{"role": "developer", "content": "Be brief."}, *one, {"role": "user", "content": "Two"}]
    stranger = [{key: value for key, value in CALLED[1].items() if key != "id"}, output]
    spoken = {"role": "assistant", "content": "Three"}
    three = [one[0], *stranger, spoken, {"role": "user", "content": "Two"}, *stranger, spoken]
    settings: dict[str, Any] = {"directory": tmp_path, "tools": REFERENCE, "model": "m"}
    lives: list[list[dict[str, str]]] = [
        [{"message": "One"}],
        [{"message": "Two", "system": "Be brief."}, {"message": "Three", "model": "another"}],
    ]
    with anyio.fail_after(SECONDS):
        for bodies in lives:
            async with live_server("http://127.0.0.1:9/v1", **settings) as server:
                for body in bodies:
                    documents = await documents_of(await transport.start(server, {"session_id": "s"} | body))
                    types = ["start", "reasoning", "tool_call", "tool_result", "token", "done"]
                    assert types_of(documents) == types
                    assert not [each for each in documents if b"gAAA" in each or b"fc_1" in each]
    assert provider.inputs[0::2] == [one[:1], two, [*three, {"role": "user", "content": "Three"}]]
    assert provider.inputs[1] == [*one[:1], *CALLED, output]
