"""The documents of a peer. Deliberately nothing clever."""

from secrets import token_urlsafe
from typing import Any

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


def remember(session_id: str, role: str, text: str) -> list[dict[str, str]]:
    """The session's messages with this one."""
    messages = SESSIONS.setdefault(session_id, [])
    messages.append({"role": role, "content": text})
    return messages
