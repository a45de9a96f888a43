"""What an upstream's refusal means for a run: an HTTP status, or an error inside a stream."""

import re
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from chatserver.errors import UpstreamError
from chatserver.providers.faults import UNAVAILABLE, Fault, Kind
from chatserver.providers.words import words_of
from chatserver.upstream.body import read_into

if TYPE_CHECKING:
    import httpx2

REFUSAL_BYTES_LIMIT = 64 * 1024
REFUSAL_SECONDS = 2.0
"""How much of a refusal's body is read, and for how long: the status decides, the words only explain."""

RETRY_AFTER_SECONDS_LIMIT = 366 * 86400.0
"""A longer wait is a mistake, not advice."""


def _pattern(*parts: str) -> re.Pattern[str]:
    return re.compile("|".join(parts))


CONTEXT = _pattern(
    r"context[_ ](length|size|window|limit)|maximum context|exceed_context|context (the )?overflow",
    r"maximum (model|prompt|input) length|(prompt|input)s?[_ ](is |are )?too[_ ](long|large)|too many (input )?tokens",
    r"input token count|input tokens exceed|prompt token count|model token limit|token limit exceeded",
    r"exceeds? (the )?(model'?s )?(max(imum)? )?(token limit|max length|input length)|range of input length",
    r"reduce the length of the|maximum number of tokens|tokens in request more than|max_new_tokens`? must be",
    r"`?inputs`? (tokens|must have less)|longer than the (model|maximum)|request_too_large|max_(seq|model)_len|n_ctx",
    r"max message tokens|code 1261\b|超长|长度超",
)
FILTER = _pattern(
    r"content[_ ]?(filter|management policy|policy_violation)|responsibleaipolicy|data_?inspection",
    r"(bio|cyber|misalignment)_policy",
    r"block_?reason|prompt_?(was )?blocked|prohibited_content|moderation|\bflagged\b|considered high risk",
    r"inappropriate content|sensitive (content|words|information)|code (1301|1026|1027)\b|敏感",
)
SPENT = _pattern(
    r"insufficient[_ ](user_)?(quota|balance|credit|funds)|exceeded_current_quota|credit_?balance",
    r"code 1113\b|余额不足|arrear",
)
KEY = _pattern(r"api[_ ]?key (is )?(not valid|invalid)|(invalid|incorrect)[_ ]api[_ ]?key|api_key_invalid")
MODEL = _pattern(
    r"model_not_found|model\b.{0,200}\b(not found|not exist|unknown)|(unknown|invalid|no such) model|valid model"
)
RATE = _pattern(r"rate[_ ]?limit|tokens per (min|day)|per minute")

STATUS_WORDS = (
    (429, SPENT),
    (429, _pattern(r"rate[_ ]?limit|too[_ ]?many[_ ]?requests|resource_?exhausted|throttl|quota")),
    (429, _pattern(r"code (130[235]|1002|1039)\b")),
    (401, _pattern(r"unauthenticated|authentication|unauthori[sz]ed|api[_ ]key")),
    (403, _pattern(r"permission|forbidden")),
    (503, _pattern(r"overload|unavailable|capacity|disconnect|\bbusy\b|network[_ ]?error|insufficient_system")),
    (503, _pattern(r"code 1234\b")),
    (504, _pattern(r"time[_d ]{0,2}out|deadline")),
    (404, _pattern(r"not_?found")),
    (400, _pattern(r"invalid|bad_?request|validation")),
    (500, _pattern(r"internal|server[_ ]?error|api_error|model_error|try again")),
)
"""The status that the words of an error stand for, where the error has no status; the first match counts."""

ACCOUNT = "whoever runs this server should look at its account there"
REFUSED_KEY = "the model server refused this server's key: whoever runs this server should check OPENAI_API_KEY"

NO_MODEL = "the model server has no such model: check `model`, or CHATSERVER_MODEL"

STATUS_FIELDS = ("status_code", "http_code", "code", "status")


async def read_refusal(response: "httpx2.Response") -> None:
    """Hook of the HTTP client: read a bounded part of a refusal.

    Raises:
        Fault: what the refusal means for the run.
    """
    import httpx2

    if not response.is_error:
        return
    body = bytearray()
    with suppress(httpx2.HTTPError), anyio.move_on_after(REFUSAL_SECONDS):
        await read_into(body, response, REFUSAL_BYTES_LIMIT)
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        tree = body.decode(errors="replace")
    status, words = response.status_code, words_of(tree)
    raise _fault(status, words, _retry_after(response.headers), f"answered {status}: {words}")


def in_stream(error: Any) -> Fault:
    """What an error inside a stream means: its own code, status or type in place of an HTTP status."""
    words = words_of(error)
    status = _status(error)
    if status is None:
        status = next((each for each, pattern in STATUS_WORDS if pattern.search(words.lower())), None)
    return _fault(status, words, None, f"reported an error in the stream: {words}")


def given_up(reason: str) -> Fault:
    """A `finish_reason` that tells of a failure."""
    fault = in_stream(reason)
    fault.cause = f"gave the answer up: {fault.words}"
    fault.error.retryable = True
    return fault


def _fault(status: int | None, words: str, after: float | None, cause: str) -> Fault:
    said = words.lower()
    error = _error(status, said)
    error.retry_after = after if error.retryable else None
    return Fault(error, cause, _kind(status, said, error), words)


def _kind(status: int | None, said: str, error: UpstreamError) -> Kind:
    if status in (None, 400, 403, 422, 451) and FILTER.search(said):
        return Kind.FILTERED
    if error.message == NO_MODEL:
        return Kind.NO_MODEL
    if error.code == "upstream_unavailable":
        return Kind.STALE if status in (408, 409) else Kind.PASSING
    return Kind.FINAL


def _error(status: int | None, said: str) -> UpstreamError:
    """The run's error where no filter refused the dialogue."""
    if (status == 413 and not RATE.search(said)) or (status in (None, 400, 413, 422) and CONTEXT.search(said)):
        return UpstreamError("context_length", "the dialogue is longer than the model can read: begin a new one")
    match status:
        case 429 | 413:
            if SPENT.search(said):
                return UpstreamError("rate_limited", f"the model server's quota is used up: {ACCOUNT}")
            return UpstreamError("rate_limited", "the model server is busy: too many requests", retryable=True)
        case int() if status in (401, 403) or (status == 400 and KEY.search(said)):
            return UpstreamError("auth_failed", REFUSED_KEY)
        case int() if status in (408, 409) or status >= 500:
            return UpstreamError("upstream_unavailable", UNAVAILABLE, retryable=True)
        case _:
            return UpstreamError("llm_error", _sentence(status, said))


def _sentence(status: int | None, said: str) -> str:
    """What an operator can do about a refusal of the request itself."""
    if MODEL.search(said):
        return NO_MODEL
    match status:
        case None:
            return "the model server reported an error; this server's log has its words"
        case 402:
            return f"the model server wants to be paid: {ACCOUNT}"
        case 404 | 405:
            return (
                "the model server has nothing at this address: "
                "check OPENAI_BASE_URL, which often ends in /v1, and CHATSERVER_UPSTREAM_API"
            )
        case _:
            return f"the model server refused the request with status {status}; this server's log has its words"


def _status(error: Any) -> int | None:
    """The first number of an HTTP error in the fields that servers put one in, the innermost `error` first."""
    if not isinstance(error, dict):
        return None
    if (inner := _status(error.get("error"))) is not None:
        return inner
    for name in STATUS_FIELDS:
        value = error.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None


def _retry_after(headers: "httpx2.Headers") -> float | None:
    """Seconds from `Retry-After-Ms` or `Retry-After`, a number or a date; None when it makes no sense."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            if value.replace(".", "", 1).isdecimal():
                seconds = float(value) * unit
            else:
                seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
        if seconds < RETRY_AFTER_SECONDS_LIMIT:
            return max(0.0, seconds)
    return None
