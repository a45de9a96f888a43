"""The documents of a peer, and the tokens of a run without a model. Deliberately nothing clever."""

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from secrets import token_urlsafe
from typing import Any

from benchmarks.script import Script, content

Document = dict[str, Any]

SESSIONS: dict[str, list[dict[str, str]]] = {}
"""What a peer remembers of a session: the messages, in memory. This server has them in a database."""


def new_id() -> str:
    return token_urlsafe(16)


def start(run_id: str, session_id: str) -> Document:
    return {"type": "start", "run_id": run_id, "seq": 1, "session_id": session_id}


def token(run_id: str, seq: int, text: str) -> Document:
    return {"type": "token", "run_id": run_id, "seq": seq, "content": text}


def done(run_id: str, seq: int) -> Document:
    return {"type": "done", "run_id": run_id, "seq": seq, "finish_reason": "stop"}


@cache
def _texts(tokens: int) -> list[str]:
    """Made once: what a text costs is no part of what it costs to send it."""
    return [content(index) for index in range(tokens)]


async def made_here(script: Script) -> AsyncIterator[str]:
    """The script's tokens without a model: ``ready`` in each turn of the loop."""
    for index, text in enumerate(_texts(script.tokens), 1):
        yield text
        if index % script.ready == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(script.hold_seconds)


def remember(session_id: str, role: str, text: str) -> list[dict[str, str]]:
    """The session's messages with this one."""
    messages = SESSIONS.setdefault(session_id, [])
    messages.append({"role": role, "content": text})
    return messages
