"""Failures of an upstream: what the run's `error` event says of them, and what the log says."""

import ssl
from enum import Enum, auto

from chatserver.errors import UpstreamError
from chatserver.providers import WANTED_CALLS_LIMIT

UNAVAILABLE = "the model server is not available: whoever runs this server should see that it runs, and its log"


class Kind(Enum):
    """What is to be done about a fault."""

    FINAL = auto()
    """Nothing: the same request would fail again, or too much of the answer has been told."""

    PASSING = auto()
    """The same request may succeed at once, as long as nothing of the answer has come."""

    STALE = auto()
    """As ``PASSING``, over another connection."""

    FILTERED = auto()
    """The upstream's filter refused the dialogue: that is an end, and no failure."""

    NO_MODEL = auto()
    """The upstream does not have the model: the models that it has can be named."""


class Fault(Exception):
    """A failure of the upstream, raised and caught within the providers; ``error`` leaves them.

    ``cause`` is for the log and may quote the upstream's ``words``.
    """

    def __init__(self, error: UpstreamError, cause: str, kind: Kind = Kind.FINAL, words: str = "") -> None:
        super().__init__(error.message)
        self.error = error
        self.cause = cause
        self.kind = kind
        self.words = words


def unavailable(cause: str, message: str = UNAVAILABLE) -> Fault:
    """The connection failed."""
    return Fault(UpstreamError("upstream_unavailable", message, retryable=True), cause, Kind.STALE)


def unreachable(error: BaseException) -> Fault:
    """The connection could not be made, or was lost before the head of the response."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and len(causes) < 10:
        causes.append(cause)
    root, message = causes[-1], UNAVAILABLE
    if any(isinstance(each, ssl.SSLError) for each in causes):
        message = "no safe connection to the model server: check OPENAI_BASE_URL, its certificate and SSL_CERT_FILE"
    return unavailable(f"cannot be reached: {type(root).__name__}: {root}", message)


def silent(seconds: float) -> Fault:
    """The upstream was silent for too long."""
    error = UpstreamError("upstream_timeout", "the model server went silent", retryable=True)
    return Fault(error, f"was silent for {seconds:g} s")


def cut(has_begun: bool) -> Fault:
    """The response ended before the answer did."""
    if not has_begun:
        return unavailable("ended before the answer began")
    error = UpstreamError("upstream_truncated", "the model server ended in mid answer", retryable=True)
    return Fault(error, "ended in mid answer")


def endless() -> Fault:
    """A turn says more than any answer can have."""
    return nonsense("a turn without end", "the model's answer has no end")


def endless_arguments() -> Fault:
    """The arguments of a turn's calls are longer than any calls need."""
    return nonsense("tool arguments without end", "the model's tool arguments have no end")


def too_many_calls() -> Fault:
    """A turn has more tool calls than are even refused one by one."""
    return nonsense("tool calls without end", f"the model wants over {WANTED_CALLS_LIMIT} tool calls at once")


def nonsense(cause: str, message: str = "the model server sent something that makes no sense") -> Fault:
    """The response is no answer of this API."""
    return Fault(UpstreamError("llm_error", message), f"sent {cause}")
