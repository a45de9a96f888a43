"""The HTTP routes: a request becomes a call of `runs` or `sessions`, and the call's result becomes JSON."""

from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any, cast

from litestar import HttpMethod, Request, Response, delete, get, patch, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, Parameter

from chatserver.auth import Ticket
from chatserver.auth.origins import header
from chatserver.commands import CallAnswer, ChatRequest, Rename, checked_id, checked_search, checked_title, parse_cursor
from chatserver.errors import (
    AlreadyAnswered,
    BadCursor,
    BadRequest,
    ChatError,
    Draining,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    Unavailable,
)
from chatserver.resources import (
    PAGE_LIMIT,
    ModelList,
    ModelResource,
    RunResource,
    SessionDetail,
    SessionPage,
    SessionResource,
)
from chatserver.routes import components_of
from chatserver.routes.body import read_body
from chatserver.routes.openapi import (
    BY_TICKET,
    STARTING,
    STREAM_OR_END,
    WITH_BODY,
    WITH_USER,
    body_of,
    refusals,
)
from chatserver.telemetry import carrier_of
from chatserver.transports.admission import ADMISSION
from chatserver.transports.asgi import AsgiScope
from chatserver.transports.formats import Format, chosen
from chatserver.transports.refusal import MEDIA_TYPE, problem_bytes, refusal_of
from chatserver.transports.stream import RunStream, StreamHead

OPEN_WHILE_DRAINING = "open_while_draining"
PUBLIC = "public"
"""A route that needs no token."""

TICKET = "ticket"
"""A route that a ticket is good for."""

STREAMS = "stream"
"""A route whose response is a stream."""

IS_HEAD = "chatserver.is_head"
"""In the scope of a HEAD request, which is routed as the GET."""

PAGE_DEFAULT = 20
LIMIT = f"1 to {PAGE_LIMIT}, default "
CURSOR = "where the last page ended"


async def admit(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard of every route: refuse while the server drains, identify the user, count the user's requests.

    Async, since Litestar calls other guards in a thread.

    Raises:
        Draining: the server drains, and the route neither helps running answers to end nor says so itself.
        Unauthenticated, Forbidden, Unavailable: the user cannot be identified.
        TooMany: the user has sent too many requests, or too many at the same time.
    """
    components = components_of(connection)
    if components.runs.is_draining and not handler.opt.get(OPEN_WHILE_DRAINING):
        raise Draining
    if not handler.opt.get(PUBLIC):
        identity = await components.gate.identify(connection.scope, by_ticket=bool(handler.opt.get(TICKET)))
        scope, admissions = cast(AsgiScope, connection.scope), components.admissions
        scope["user"], scope["auth"] = identity.user, identity
        is_stream = handler.opt.get(STREAMS) and not scope.get(IS_HEAD)
        admitted = admissions.admit(identity.user) if is_stream else admissions.admit_request(identity.user)
        scope["extensions"][ADMISSION] = await admitted


@post(
    "/chat/stream",
    status_code=200,
    opt={STREAMS: True},
    responses=STREAM_OR_END | refusals(*STARTING, BadCursor, NotAcceptable),
    operation_class=body_of(ChatRequest),
)
async def start_stream(request: Request[str, Any, State]) -> StreamHead:
    """Start a run and stream its events; with `Last-Event-ID`, go on with the run of the same `idempotency_key`."""
    runs, form, after = components_of(request).runs, _form(request), _cursor(request)
    user, body, carrier = request.user, await read_body(request, ChatRequest), carrier_of(request.scope["headers"])
    subscription = await (runs.resume(user, body, after) if after else runs.start(user, body, carrier))
    return RunStream(subscription, form, components_of(request).connections)


@post("/chat/runs", status_code=202, responses=refusals(*STARTING), operation_class=body_of(ChatRequest))
async def start_run(request: Request[str, Any, State]) -> Response[RunResource]:
    """Start a run without reading it; its grace period begins at once."""
    runs = components_of(request).runs
    body, carrier = await read_body(request, ChatRequest), carrier_of(request.scope["headers"])
    with await runs.start(request.user, body, carrier) as subscription:
        run = await runs.resource(request.user, subscription.run_id)
    location = f"{request.scope.get('root_path', '')}/chat/runs/{run.run_id}"
    return Response(run, status_code=202, headers={"Location": location})


@get("/chat/runs/{run_id:str}", responses=refusals(*WITH_USER, NotFound))
async def read_run(request: Request[str, Any, State], run_id: FromPath[str]) -> RunResource:
    """A run as it is now."""
    return await components_of(request).runs.resource(request.user, run_id)


@get(
    "/chat/runs/{run_id:str}/events",
    opt={TICKET: True, STREAMS: True},
    security=BY_TICKET,
    responses=STREAM_OR_END | refusals(*WITH_USER, BadCursor, NotFound, NotAcceptable),
)
async def read_events(
    request: Request[str, Any, State],
    run_id: FromPath[str],
    after: Annotated[str | None, Parameter(description="the last `seq` handled; `Last-Event-ID` wins over it")] = None,
) -> StreamHead:
    """A run's events from a cursor."""
    runs, form, cursor = components_of(request).runs, _form(request), _cursor(request, after)
    if cast(AsgiScope, request.scope).get(IS_HEAD):
        log, _ = await runs.reached(request.user, run_id, cursor)
        return StreamHead(None if log.is_over and log.last_seq == cursor else form)
    return RunStream(await runs.subscribe(request.user, run_id, cursor), form, components_of(request).connections)


@post(
    "/chat/runs/{run_id:str}/cancel",
    status_code=202,
    opt={OPEN_WHILE_DRAINING: True},
    responses=refusals(*WITH_USER, NotFound),
)
async def cancel_run(request: Request[str, Any, State], run_id: FromPath[str]) -> RunResource:
    """End a run; it ends with `done`, finish_reason `cancelled`."""
    return await components_of(request).runs.cancel(request.user, run_id)


@post(
    "/chat/runs/{run_id:str}/tool_calls/{call_id:str}",
    status_code=202,
    responses=refusals(*WITH_BODY, NotFound, AlreadyAnswered, Unavailable),
    operation_class=body_of(CallAnswer),
)
async def answer_call(request: Request[str, Any, State], run_id: FromPath[str], call_id: FromPath[str]) -> RunResource:
    """Answer a tool call that waits for an approval, or for the client that runs the tool."""
    answer = await read_body(request, CallAnswer)
    return await components_of(request).runs.answer(request.user, run_id, call_id, answer)


@get("/chat/sessions", responses=refusals(*WITH_USER, BadRequest, BadCursor))
async def list_sessions(
    request: Request[str, Any, State],
    limit: Annotated[str | None, Parameter(description=f"{LIMIT}{PAGE_DEFAULT}")] = None,
    cursor: Annotated[str | None, Parameter(description=CURSOR)] = None,
    search: Annotated[str | None, Parameter(description="only sessions with this in their title")] = None,
) -> SessionPage:
    """The user's sessions, newest first."""
    words = None if search is None else checked_search(search)
    return await components_of(request).sessions.page(request.user, _size(limit, PAGE_DEFAULT), cursor, words or None)


@get("/chat/sessions/{session_id:str}", responses=refusals(*WITH_USER, BadRequest, BadCursor, NotFound))
async def read_session(
    request: Request[str, Any, State],
    session_id: FromPath[str],
    branches: Annotated[str | None, Parameter(description="`all`: every branch, not just the newest")] = None,
    limit: Annotated[str | None, Parameter(description=f"{LIMIT}{PAGE_LIMIT}")] = None,
    cursor: Annotated[str | None, Parameter(description=CURSOR)] = None,
) -> SessionDetail:
    """A session with its newest messages; older ones are on further pages."""
    if branches not in (None, "all"):
        raise BadRequest("`branches` is `all` or absent", "/branches")
    size = _size(limit, PAGE_LIMIT)
    return await components_of(request).runs.session(request.user, session_id, branches == "all", size, cursor)


def _size(limit: str | None, default: int) -> int:
    """How many entries a page has."""
    if limit is None:
        return default
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= PAGE_LIMIT):
        raise BadRequest(f"`limit` is from 1 to {PAGE_LIMIT}", "/limit")
    return int(limit)


@patch("/chat/sessions/{session_id:str}", responses=refusals(*WITH_BODY, NotFound), operation_class=body_of(Rename))
async def rename_session(request: Request[str, Any, State], session_id: FromPath[str]) -> SessionResource:
    """Give a session another title."""
    title = checked_title(await read_body(request, Rename))
    return await components_of(request).sessions.rename(request.user, checked_id(session_id), title)


@delete("/chat/sessions/{session_id:str}", responses=refusals(*WITH_USER, NotFound))
async def delete_session(request: Request[str, Any, State], session_id: FromPath[str]) -> None:
    """Delete a session with all it holds; an active run is cancelled first."""
    await components_of(request).runs.delete_session(request.user, session_id)


@get("/chat/models", responses=refusals(*WITH_USER))
async def list_models(request: Request[str, Any, State]) -> ModelList:
    """The models that a request may name."""
    settings = components_of(request).settings
    return ModelList([ModelResource(model, model == settings.model) for model in settings.models_offered])


@post("/chat/tickets", status_code=200, responses=refusals(*WITH_USER))
async def issue_ticket(request: Request[str, Any, State]) -> Ticket:
    """A ticket: good once, for a minute, where no header can be sent."""
    return await components_of(request).gate.tickets.issue(request.auth)


def _form(request: Request[str, Any, State]) -> Format:
    return chosen(header(request.scope["headers"], b"accept"))


def _cursor(request: Request[str, Any, State], after: str | None = None) -> int:
    """The cursor of a client, from its header or else from its query; 0: the client has read nothing."""
    # Not `request.headers`: Litestar would keep the decoded headers as long as the stream.
    given = header(request.scope["headers"], b"last-event-id") or after
    return parse_cursor(given) if given else 0


def error_response(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Any failure as a problem document."""
    if isinstance(error, HTTPException):
        error = _litestar_refusal(request, error)
    refusal = refusal_of(error, "a request")
    components_of(request).metrics.refused(refusal.code)
    return Response(
        problem_bytes(refusal), status_code=refusal.status, media_type=MEDIA_TYPE, headers=refusal.headers()
    )


def _litestar_refusal(request: Request[Any, Any, Any], error: HTTPException) -> ChatError:
    """A refusal of Litestar's own, before a route has the request."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(_methods(request))
    refusal = ChatError(error.detail if error.status_code < 500 else None)
    refusal.status = error.status_code
    refusal.code = HTTPStatus(error.status_code).name.lower()
    return refusal


def _methods(request: Request[Any, Any, Any]) -> Iterator[str]:
    """The methods that the requested path takes."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", "")).rstrip("/") or "/"
    for method in HttpMethod:
        with suppress(HTTPException):
            request.app.asgi_router.handle_routing(path=path, method=method.value)
            yield method.value
            if method is HttpMethod.GET:
                yield HttpMethod.HEAD.value


ROUTES = [
    start_stream,
    start_run,
    read_run,
    read_events,
    cancel_run,
    answer_call,
    list_sessions,
    read_session,
    rename_session,
    delete_session,
    list_models,
    issue_ticket,
]
