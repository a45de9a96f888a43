"""From an event of the stream to the JSON documents in it, and to the failure that a document tells of."""

import json
import re
from typing import Any

import msgspec

from chatserver.providers.faults import nonsense

HEARTBEATS = frozenset({"ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive", "processing", "alive"})
"""Types of chunks, and texts in place of a chunk, that say only that the server lives."""

UNNAMED = (b"", b"message")

_decode = msgspec.json.Decoder().decode
_blanks = re.compile(r"\s*").match


def documents(kind: bytes, data: bytes) -> list[dict[str, Any]]:
    """The chunks in an event of a type; none in a heartbeat of any form.

    Raises:
        Fault: `llm_error`: the event should be a chunk and is none.
    """
    data = data.strip()
    if not data or (kind and kind.decode(errors="replace").lower() in HEARTBEATS):
        return []
    try:
        trees = [_parsed(data)]
    except ValueError:
        if kind == b"error":
            return [{"error": data.decode(errors="replace")}]
        if kind not in UNNAMED or _is_heartbeat(data):
            return []
        trees = _several(data)
    if kind == b"error" and not isinstance(trees[0], dict):
        return [{"error": trees[0] or "unnamed"}]
    if len(trees) == 1 and isinstance(trees[0], dict):
        return trees
    chunks = [each for tree in trees for each in (tree if isinstance(tree, list) else [tree])]
    return [each for each in chunks if isinstance(each, dict)]


def failure_of(kind: bytes, chunk: dict[str, Any]) -> Any:
    """The failure that a chunk reports; None: it reports none."""
    error = chunk.get("error")
    is_said = any(error.values()) if isinstance(error, dict) else error
    if is_said or kind == b"error" or "error" in (chunk.get("object"), chunk.get("type")):
        return chunk
    status = chunk.get("base_resp")
    if isinstance(status, dict) and status.get("status_code"):
        return status
    if chunk.get("choices"):
        return None
    feedback = chunk.get("promptFeedback") or chunk.get("prompt_feedback")
    if isinstance(feedback, dict) and (reason := feedback.get("blockReason") or feedback.get("block_reason")):
        return {"code": "prompt_blocked", "message": reason}
    said = [chunk.get(name) for name in ("error", "message", "detail", "msg")]
    is_no_chunk = kind in UNNAMED and chunk.get("choices") is None
    return chunk if is_no_chunk and any(each is not None for each in said) else None


def without_done(data: bytes) -> tuple[bytes, bool]:
    """An event without the `[DONE]` that it is, or that stands in a line of its own; and whether there was one."""
    if data.startswith(b"{") and data.endswith(b"}"):
        return data, False
    if data[:32].strip(b" \t\"'").upper().startswith(b"[DONE]"):
        return b"", True
    chunk, done, _ = data.partition(b"\n[DONE]")
    return chunk, bool(done)


def _parsed(data: bytes) -> Any:
    """The JSON tree. A lone surrogate escape, or a byte that is no UTF-8, becomes a replacement character.

    `NaN` and infinities, which Python's servers write, become null.

    Raises:
        ValueError: the data is no JSON.
    """
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(data.decode(errors="replace"), parse_constant=_nothing)
    except RecursionError:
        raise ValueError("nested without end") from None


def _nothing(_: str) -> None:
    return None


def _several(data: bytes) -> list[Any]:
    """The documents of an event that is no single document: some servers forget the line end between two events."""
    text, decoder, trees, at = data.decode(errors="replace"), json.JSONDecoder(parse_constant=_nothing), list[Any](), 0
    while at < len(text):
        try:
            tree, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise nonsense("a chunk that makes no sense") from None
        trees.append(tree)
        at = _blanks(text, end).end()  # type: ignore[union-attr]  # it matches everywhere
    return trees


def _is_heartbeat(data: bytes) -> bool:
    text = data[:100].decode(errors="replace").strip("[]:<>.\"' ").lower()
    return data.startswith(b":") or text in HEARTBEATS
