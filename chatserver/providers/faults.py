"""Failures of an upstream: what the run's `error` event says of them, and what the log says."""

import ssl

from chatserver.errors import UpstreamError

UNAVAILABLE = "the model server is not available: whoever runs this server should see that it runs, and its log"


class Fault(Exception):
    """A failure of the upstream, raised and caught within the providers; ``error`` leaves them.

    ``cause`` is for the log and may quote the upstream's ``words``. ``is_worth_a_try``: the same request may succeed at
    once, as long as nothing of the answer has come. ``is_stale``: a retry needs another connection. ``is_filter``: the
    upstream's filter refused the dialogue. ``lacks_model``: the upstream does not have the model.
    """

    def __init__(
        self,
        error: UpstreamError,
        cause: str,
        *,
        words: str = "",
        is_worth_a_try: bool = False,
        is_stale: bool = False,
        is_filter: bool = False,
        lacks_model: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.cause = cause
        self.words = words
        self.is_worth_a_try = is_worth_a_try
        self.is_stale = is_stale
        self.is_filter = is_filter
        self.lacks_model = lacks_model


def unavailable(cause: str, message: str = UNAVAILABLE, *, is_stale: bool) -> Fault:
    """The connection or the server failed."""
    error = UpstreamError("upstream_unavailable", message, retryable=True)
    return Fault(error, cause, is_worth_a_try=True, is_stale=is_stale)


def unreachable(error: BaseException) -> Fault:
    """The connection could not be made, or was lost before the head of the response."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and len(causes) < 10:
        causes.append(cause)
    root, message = causes[-1], UNAVAILABLE
    if any(isinstance(each, ssl.SSLError) for each in causes):
        message = "no safe connection to the model server: check OPENAI_BASE_URL, its certificate and SSL_CERT_FILE"
    return unavailable(f"cannot be reached: {type(root).__name__}: {root}", message, is_stale=True)


def silent(seconds: float) -> Fault:
    """The upstream was silent for too long."""
    error = UpstreamError("upstream_timeout", "the model server went silent", retryable=True)
    return Fault(error, f"was silent for {seconds:g} s")


def cut(has_begun: bool) -> Fault:
    """The response ended before the answer did."""
    if not has_begun:
        return unavailable("ended before the answer began", is_stale=True)
    error = UpstreamError("upstream_truncated", "the model server ended in mid answer", retryable=True)
    return Fault(error, "ended in mid answer")


def nonsense(cause: str, message: str = "the model server sent something that makes no sense") -> Fault:
    """The response is no answer of this API."""
    return Fault(UpstreamError("llm_error", message), f"sent {cause}")
