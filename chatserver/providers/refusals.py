"""What an HTTP status of the upstream means for a run: its error, or that another try is worth it."""

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from chatserver.errors import UpstreamError

if TYPE_CHECKING:
    import httpx2
    import openai

REFUSAL_BYTES_LIMIT = 64 * 1024
REFUSAL_SECONDS = 2.0
"""How much of a refusal's body is read, and how long: its status counts, its words only help to tell why."""

RETRY_AFTER_SECONDS_LIMIT = 366 * 86400.0
"""A longer wait is a mistake, not advice."""

CONTEXT_WORDS = (
    "context_length",
    "context length",
    "context size",
    "context window",
    "maximum context",
    "exceed_context",
    "maximum model length",
    "prompt is too long",
    "input is too long",
    "too many tokens",
)


class Lost(Exception):
    """The connection or the server failed before the first token: worth another try."""


async def read_refusal(response: "httpx2.Response") -> None:
    """Hook of the HTTP client: read as much of a refusal as helps, where the SDK would read all of it or fail."""
    import httpx2
    import openai

    if not response.is_error:
        return
    body = bytearray()
    with suppress(httpx2.HTTPError), anyio.move_on_after(REFUSAL_SECONDS):
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > REFUSAL_BYTES_LIMIT:
                break
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        tree = None
    raise openai.APIStatusError("refused", response=response, body=tree)


def refusal(error: "openai.APIStatusError") -> Exception:
    """What an HTTP status of the upstream means for the run."""
    body: Any = error.body
    inner = body if isinstance(body, dict) else {}
    if isinstance(inner.get("error"), dict):
        inner = inner["error"]
    words = f"{inner.get('code')} {inner.get('type')} {inner.get('message')}".lower()
    match error.status_code:
        case 429:
            spent = "insufficient_quota" in words
            after = _retry_after(error.response.headers.get("retry-after"))
            message = "the model server's quota is used up" if spent else "the model server is busy"
            return UpstreamError("rate_limited", message, retryable=not spent, retry_after=after)
        case 401 | 403:
            return UpstreamError("auth_failed", "the model server refused this server's key")
        case 400 | 413 | 422 if any(word in words for word in CONTEXT_WORDS):
            return UpstreamError("context_length", "the dialogue is longer than the model can read")
        case status if status >= 500:
            return Lost()
        case status:
            return UpstreamError("llm_error", f"the model server refused the request with status {status}")


def _retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header, a number or a date; None when it makes no sense."""
    if not value:
        return None
    try:
        seconds = float(value) if value.replace(".", "", 1).isdecimal() else _seconds_until(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds) if seconds < RETRY_AFTER_SECONDS_LIMIT else None


def _seconds_until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
