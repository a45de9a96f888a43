"""What can go wrong, by whose fault.

ChatError                 an answer to a client: an HTTP problem document, or a `rejected` frame
├── BadJson           400 not JSON at all
├── BadRequest        400 JSON, but not what was asked for
├── BadCursor         400 `after` names no place in the log
├── BadHttp           400 not HTTP at all
├── Unauthenticated   401 no, wrong or expired token, or a ticket that was used
├── Forbidden         403 a foreign origin or host
├── NotFound          404 unknown, malformed, expired or somebody else's
├── MethodNotAllowed  405 a path that answers other methods
├── NotAcceptable     406 no format of a stream meets `Accept`
├── TooSlow           408 a request that takes too long to come
├── RunActive         409 the session is busy with another run
├── AlreadyAnswered   409 a tool call that waits no more
├── TooLarge          413 message or body over its limit
├── UnsupportedMedia  415 a body that is not `application/json`
├── KeyReused         422 an idempotency key with another body
├── UpgradeRequired   426 plain HTTP where a WebSocket lives
├── TooMany           429 over a limit of the user or the server
├── QuotaExceeded     429 all that a user may have stored
├── HeadTooLarge      431 a URL or headers over their limit
├── Internal          500 a bug of this server
├── Draining          503 going down
├── Overloaded        503 more connections than the server takes
└── Unavailable       503 something that is needed to answer cannot be reached
UpstreamError             the model's fault: becomes the run's `error` event, never an HTTP status
AgentFailed               the fault of an agent that somebody brought: becomes the run's `error` event
ToolError                 a tool's fault: raised to the agent that has called the tool
RunLost                   nobody's fault: another process has ended the run; becomes its `error` event too
SettingsError             the operator's fault: ends the program with one line
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from msgspec import Struct

from chatserver.events import ErrorCode


class FieldProblem(Struct, frozen=True):
    """A wrong field: where it is (RFC 6901), and what is wrong."""

    pointer: str
    detail: str


class ChatError(Exception):
    """A refusal that a client can read: ``status`` (HTTP), ``code`` (stable word), ``detail`` (a sentence)."""

    status: int = 500
    code: str = "internal"
    sentence: str | None = None
    """What is said when there is nothing special to say."""

    retry_after: int | None = None
    """Seconds after which trying again makes sense; None: never."""

    def __init__(self, detail: str | None = None, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after or self.retry_after
        self.detail = detail or self.sentence or HTTPStatus(self.status).description

    def facts(self) -> dict[str, Any]:
        """What this kind of refusal tells beside its code."""
        return {} if self.retry_after is None else {"retry_after": self.retry_after}

    def headers(self) -> dict[str, str]:
        """HTTP headers that go with the refusal."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class BadJson(ChatError):
    status, code = 400, "bad_json"


class BadHttp(ChatError):
    status, code = 400, "bad_http"
    sentence = "this is not HTTP"


class BadRequest(ChatError):
    """Valid JSON with a wrong field; ``pointer`` (RFC 6901) says which."""

    status, code = 400, "bad_request"

    def __init__(self, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.pointer = pointer

    def facts(self) -> dict[str, Any]:
        return {"errors": [FieldProblem(self.pointer, self.detail)]}


class NoCommand(BadRequest):
    """A frame that is JSON, but no command."""


class BadCursor(ChatError):
    status, code = 400, "bad_cursor"


class Unauthenticated(ChatError):
    """One answer for absent, malformed, forged and expired, so that nobody learns how near a guess was."""

    status, code = 401, "unauthenticated"
    sentence = "a valid token is needed"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ChatError):
    status, code = 403, "forbidden"


class NotFound(ChatError):
    """One answer for unknown, malformed, expired and foreign, so that none can be told from another."""

    status, code = 404, "not_found"
    sentence = "there is nothing with this id"


class MethodNotAllowed(ChatError):
    """``allowed`` are the methods that the path answers."""

    status, code = 405, "method_not_allowed"

    def __init__(self, allowed: Iterable[str]) -> None:
        super().__init__()
        self.allowed = ", ".join(allowed)

    def headers(self) -> dict[str, str]:
        return {"Allow": self.allowed}


class NotAcceptable(ChatError):
    status, code = 406, "not_acceptable"


class TooSlow(ChatError):
    status, code = 408, "too_slow"
    sentence = "the request took too long to come"


class RunActive(ChatError):
    """The session answers another message; ``run_id`` is that run."""

    status, code = 409, "run_active"

    def __init__(self, run_id: str) -> None:
        super().__init__("the session has an active run")
        self.run_id = run_id

    def facts(self) -> dict[str, Any]:
        return {"run_id": self.run_id}


class AlreadyAnswered(ChatError):
    """The first answer counts, whoever gave it."""

    status, code = 409, "already_answered"
    sentence = "this call has been answered, or waits for no answer"


class TooLarge(ChatError):
    status, code = 413, "too_large"


class UnsupportedMedia(ChatError):
    status, code = 415, "unsupported_media_type"


class KeyReused(ChatError):
    status, code = 422, "idempotency_key_reused"


class UpgradeRequired(ChatError):
    status, code = 426, "upgrade_required"
    sentence = "here is a WebSocket"

    def headers(self) -> dict[str, str]:
        return {"Upgrade": "websocket"}


class TooMany(ChatError):
    status, code, retry_after = 429, "too_many", 1


class QuotaExceeded(ChatError):
    """Waiting does not help: something has to be deleted first."""

    status, code = 429, "quota"


class HeadTooLarge(ChatError):
    status, code = 431, "head_too_large"
    sentence = "the URL and the headers are too long, or too many"


class Internal(ChatError):
    """A failure that was not foreseen: a client learns that there was one, the log says which."""

    status, code = 500, "internal"
    sentence: str = "the server failed; its log says why"


class Draining(ChatError):
    status, code, retry_after = 503, "draining", 1
    sentence = "the server is going down; come back at once"


class Overloaded(ChatError):
    status, code, retry_after = 503, "overloaded", 5
    sentence = "the server has all the connections that it takes"


class Unavailable(ChatError):
    status, code, retry_after = 503, "unavailable", 5


class UpstreamError(Exception):
    """The upstream failed the run.

    Holds what the `error` event says, and nothing that the upstream said: its texts may quote keys and prompts.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, retryable: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


class AgentFailed(Exception):
    """An agent that somebody brought has failed its run; the message is for the user."""


class ToolError(Exception):
    """A call that an agent has made gave no result; ``result`` is what the run tells of it, as JSON has it."""

    def __init__(self, tool: str, result: Any) -> None:
        super().__init__(f"{tool}: {result}")
        self.result = result


class RunLost(Exception):
    """A run's end could not be kept, since another process has ended or deleted the run; the message says which."""

    def __init__(self, message: str, *, is_deleted: bool = False) -> None:
        super().__init__(message)
        self.is_deleted = is_deleted


class SettingsError(Exception):
    """A setting that cannot be obeyed; the message names it."""
