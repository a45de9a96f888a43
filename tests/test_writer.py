"""The writer of a log: what is withheld is numbered, stored and folded as if it were shown, and shown to nobody."""

from random import Random

import pytest

from chatserver.events import Event, Reasoning, Token, ToolCall, ToolResult
from chatserver.log.memory import MemoryLog
from chatserver.log.writer import Writer


def drafts(chance: Random) -> list[Event]:
    """Texts, some of them too long for one event, and calls with their results."""
    made: list[Event] = []
    for number in range(chance.randrange(20)):
        call = ToolCall(call_id=f"c{number}", tool="book", args={"n": number}, needs_approval=True)
        result = ToolResult(
            call_id=call.call_id, tool="book", result=number, is_error=False, truncated=False, duration_ms=1
        )
        content = "é" * chance.choice([1, 3, 12_000])
        text: Event = Token(content=content) if chance.random() < 0.5 else Reasoning(content=content)
        made += chance.choice([[text], [call], [call, text, result]])
    return made


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(30))
async def test_what_is_withheld_is_stored_and_said_as_if_it_were_shown(seed: int) -> None:
    chance = Random(seed)
    plain, log = MemoryLog("run"), MemoryLog("run")
    writer = Writer(log)
    plain.append(Token(content="Well"))
    writer.append(Token(content="Well"))
    writer.withhold()
    shown = 1
    for draft in drafts(chance):
        assert writer.append(draft) == plain.append(draft)
        if chance.random() < 0.3:
            until = chance.randrange(writer.last_seq + 1)
            shown = max(shown, until)
            writer.show(until)
        assert log.last_seq == shown
        assert (writer.last_seq, writer.answer()) == (plain.last_seq, plain.answer())
        restored = MemoryLog("run")
        await restored.restore(writer.stored())
        assert restored.stored() == plain.stored()
    if chance.random() < 0.5:
        writer.show()
        writer.append(Token(content="."))
        plain.append(Token(content="."))
        assert log.stored() == plain.stored()
    else:
        writer.drop()
        last = log.last_seq
        assert writer.append(Token(content=".")).seq == last + 1 == log.last_seq
