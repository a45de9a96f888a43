"""What tests of the store share: how a run begins and ends there, without a server."""

from typing import Any

from chatserver.answer import Answer
from chatserver.commands import ChatRequest, new_id
from chatserver.events import Done, Event, FinishReason, Terminal, Token, Usage, decode, record
from chatserver.log import StoredLog
from chatserver.parts import Part, ReasoningPart, TextPart, ToolCallPart, text_of
from chatserver.sessions import Begun, Sessions


def said(*texts: str, run_id: str = "run") -> StoredLog:
    return StoredLog.of(
        [record(Token(run_id=run_id, seq=seq, content=content)) for seq, content in enumerate(texts, 1)]
    )


def events_of(log: StoredLog | None) -> list[Event]:
    """The events of a stored log, as they are there."""
    assert log is not None
    return [decode(document) for document in log.documents.split(b"\n")]


def answer_of(text: str = "", reasoning: str = "", *calls: ToolCallPart) -> Answer:
    """Reasoning, calls and text, in this order."""
    parts: list[Part] = [
        *([ReasoningPart(reasoning)] if reasoning else []),
        *calls,
        *([TextPart(text)] if text else []),
    ]
    return Answer(tuple(parts))


async def ask(sessions: Sessions, message: str | None = "Hello", *, user: str = "ann", **fields: Any) -> Begun:
    return await sessions.begin(user, ChatRequest(message=message, **fields), new_id())


def done(reason: FinishReason = "stop") -> Done:
    return Done(session_id="s", message_id="m", finish_reason=reason, total_tokens=3, usage=Usage(1, 2), duration_ms=1)


async def ended(sessions: Sessions, begun: Begun, content: str = "Hi", ending: Terminal | None = None) -> Begun:
    await sessions.finish(
        begun.run.run_id,
        ending=ending or done(),
        answer=answer_of(content),
        log=said(content),
        usage=Usage(1, 2),
    )
    return begun


async def answered(sessions: Sessions, message: str | None = "Hello", content: str = "Hi", **fields: Any) -> Begun:
    return await ended(sessions, await ask(sessions, message, **fields), content)


async def texts(sessions: Sessions, session_id: str, *, user: str = "ann", all_branches: bool = False) -> list[str]:
    detail = await sessions.session(user, session_id, all_branches)
    return [message.content for message in detail.messages]


async def contents(sessions: Sessions, begun: Begun, bytes_limit: int = 10**9) -> list[str]:
    """The texts that go upstream."""
    return [text_of(message.parts) for message in await sessions.context(begun.user_message_id, bytes_limit)]
