"""The `error` event of each way in which a run can fail. Nothing else makes one."""

from msgspec.structs import replace

from chatserver.errors import AgentFailed, Internal, RunLost, Unavailable, UpstreamError
from chatserver.events import Error

INTERRUPTED = Error(code="interrupted", message="the server stopped before the answer was complete", retryable=True)
DELETED = replace(INTERRUPTED, message="the session was deleted while the answer was written")
INTERNAL = Error(code="internal", message=Internal.sentence, retryable=False)
WRONG = Error(
    code="internal", message="the agent broke the rules of a run; this server's log says how", retryable=False
)
UNSTORED = Error(
    code="internal", message="the answer could not be stored yet: the database cannot be used now", retryable=False
)
UNASKED = Error(
    code="internal",
    message="what the answer waits for could not be stored: the database cannot be used now",
    retryable=True,
)
UNREAD = Error(
    code="internal", message="the session could not be read: the database cannot be used now", retryable=True
)


def ending_of(error: Exception) -> Error:
    """How a run ends whose agent has failed with this exception, or whose end could not be stored for it."""
    match error:
        case UpstreamError():
            return Error(
                code=error.code, message=error.message, retryable=error.retryable, retry_after=error.retry_after
            )
        case AgentFailed():
            return replace(INTERNAL, message=str(error))
        case RunLost():
            return replace(INTERRUPTED, message=str(error))
        case Unavailable():
            return UNREAD
        case _:
            return INTERNAL
