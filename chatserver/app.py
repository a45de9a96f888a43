"""The application, put together."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any

import anyio
from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from chatserver import __version__
from chatserver.agent import ToolAgent
from chatserver.auth import Gate
from chatserver.auth.origins import is_probe
from chatserver.calls import Toolbox
from chatserver.errors import ChatError, NotFound, SettingsError, Unavailable
from chatserver.log.logs import MemoryLogs
from chatserver.nodes import Shared, link_to
from chatserver.nodes.alone import open_alone
from chatserver.providers.provider import OpenAIProvider
from chatserver.routes import contract, demo, health, http, page, scrape
from chatserver.routes.http import IS_HEAD
from chatserver.routes.openapi import BY_TOKEN, SECURITY
from chatserver.routes.websocket import WEBSOCKET_PATH, websocket
from chatserver.runs.lives import Lives
from chatserver.runs.runs import Runs
from chatserver.settings import Settings, variable
from chatserver.telemetry.metrics import Metrics
from chatserver.tools import Tool, load_tools
from chatserver.tools.execution import ToolThreads
from chatserver.transports.admission import ADMISSION
from chatserver.transports.asgi import AsgiMessage, AsgiScope, AsgiSend
from chatserver.transports.components import Components
from chatserver.transports.connections import Connections
from chatserver.transports.refusal import refuse
from chatserver.transports.response import WatchedSend

if TYPE_CHECKING:
    from chatserver.nodes.link import Link


class App(Litestar):
    """Litestar, with the gate before everything else: also before routes that do not exist."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await super().__call__(scope, receive, partial(_without_traceback, send))
        asked = scope
        components: Components = self.state.components
        if scope["type"] == "http":
            scope.setdefault("extensions", {})
            asked, send = _for_route(scope), WatchedSend(scope, send, components.connections)
        try:
            try:
                components.gate.origins.check(scope)
                if scope["type"] == "websocket" and scope["path"].removeprefix(scope["root_path"]) != WEBSOCKET_PATH:
                    raise NotFound("here is no WebSocket")
            except ChatError as error:
                await refuse(scope, send, error, components.metrics)
            else:
                await super().__call__(asked, receive, send)
        finally:
            # The extensions refer to the server's objects: a cycle that only the garbage collector would free.
            if admission := scope.pop("extensions", {}).get(ADMISSION):
                await admission.release()


def _for_route(scope: AsgiScope) -> AsgiScope:
    """The scope as the route gets it: HEAD becomes GET, and a probe has no `Host`."""
    if scope["method"] == "HEAD":
        scope = {**scope, "method": "GET", IS_HEAD: True}
    if is_probe(scope):
        scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"host"]}
    return scope


async def _without_traceback(send: AsgiSend, message: AsgiMessage) -> None:
    """Tell the server how the start went. A wrong setting is told in one line, without the traceback."""
    lines = message.get("message", "").rstrip().splitlines()
    if wrong := [line.partition(_WRONG)[2] for line in lines if _WRONG in line]:
        message = message | {"message": wrong[-1]}
    await send(message)


_WRONG = f"{SettingsError.__module__}.{SettingsError.__qualname__}: "


def create_app(settings: Settings, demo_key: str | None = None) -> Litestar:
    """The server as an ASGI application. Its lifespan starts and ends everything that the application needs.

    Processes behind one address share the ``demo_key``: each may be asked for the demo model that another one uses.

    Raises:
        SettingsError: a setting cannot be obeyed.
    """
    gate, tools, metrics = Gate(settings), load_tools(settings.tools), _metrics(settings)
    demo_key = demo_key or token_urlsafe()
    link = link_to(settings.redis_url)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with link() as opened, _running(settings, gate, tools, demo_key, metrics, opened) as components:
            app.state.components = components
            yield

    routes = [
        *http.ROUTES,
        *health.ROUTES,
        *contract.ROUTES,
        *page.ROUTES,
        scrape.metrics,
        *([demo.chat_completions] if settings.is_demo else []),
    ]
    return App(
        route_handlers=[Router("/", guards=[http.admit], route_handlers=routes), websocket],
        exception_handlers={Exception: http.error_response},
        lifespan=[lifespan],
        state=State({"demo_key": demo_key, "metrics": metrics}),
        cors_config=_cors(gate.origins.allowed) if gate.origins.allowed else None,
        openapi_config=_openapi(),
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )


@asynccontextmanager
async def _running(
    settings: Settings,
    gate: Gate,
    tools: Mapping[str, Tool],
    demo_key: str,
    metrics: Metrics,
    link: "Link | None",
) -> AsyncIterator[Components]:
    """The components that the routes call, from their start to their end."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(metrics.close)
        shared = await stack.enter_async_context(_shared(settings, metrics, link))
        gate.tickets, sessions = shared.tickets, shared.sessions
        with suppress(Unavailable):  # Later, then.
            await sessions.interrupt_abandoned()
        provider = await stack.enter_async_context(_provider(settings, demo_key))
        threads = ToolThreads(settings.tool_timeout_seconds, settings.max_tool_result_bytes)
        toolbox = Toolbox(tools, threads, settings.max_tool_calls_per_run)
        agent = ToolAgent(provider, settings.max_turns)
        logs = MemoryLogs(settings.max_logs_bytes, sessions.log, shared.journal)
        connections = await stack.enter_async_context(
            Connections(
                heartbeat_seconds=settings.heartbeat_seconds,
                send_timeout_seconds=settings.send_timeout_seconds,
                observer=metrics,
            )
        )
        lives = Lives(settings, sessions, logs, agent.answer, toolbox, metrics)
        runs = Runs(settings, sessions, logs, lives, shared.places, shared.elsewhere)
        await stack.enter_async_context(runs)
        beside = await stack.enter_async_context(anyio.create_task_group())
        beside.start_soon(gate.keep_fresh)
        await provider.warm_up()  # Else the first run would hold up the loop by its imports, and with it the lease.
        yield Components(settings, gate, runs, sessions, shared.admissions, connections, metrics)
        beside.cancel_scope.cancel()


def _metrics(settings: Settings) -> Metrics:
    """What counts all that happens, and where an operator wants traces, tells it to a collector too."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        return Metrics(settings.models_offered)
    try:
        from chatserver.telemetry.traces import Traces, exported
    except ModuleNotFoundError as error:
        raise SettingsError(f"{variable('otel_exporter_otlp_endpoint')}: needs the package {error.name}") from None
    return Traces(settings.models_offered, exported(endpoint))


def _shared(settings: Settings, metrics: Metrics, link: "Link | None") -> AbstractAsyncContextManager[Shared]:
    """What this process shares with others: with all that have the same Redis, or just the database."""
    if link is None:
        return open_alone(settings, metrics)
    from chatserver.nodes.node import open_node

    return open_node(link, settings, metrics)


def _provider(settings: Settings, demo_key: str) -> OpenAIProvider:
    """The model server of the settings, or the demo model of this very server."""
    return OpenAIProvider(
        api_key=demo_key if settings.is_demo else settings.openai_api_key,
        base_url=f"{settings.own_url}{demo.DEMO_PATH}" if settings.is_demo else settings.openai_base_url,
        # The key of the demo model wins over a key that the SDK finds in the environment.
        headers={"Authorization": f"Bearer {demo_key}"} if settings.is_demo else settings.upstream_headers,
        idle_seconds=settings.upstream_idle_seconds,
        omitted=settings.upstream_omit,
    )


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="chatserver",
        version=__version__,
        components=SECURITY,
        security=BY_TOKEN,
        path="/schema/openapi",  # A path below our own: Litestar responds in HTML to every unknown path under it.
        render_plugins=[JsonRenderPlugin()],
    )


def _cors(origins: Collection[str]) -> CORSConfig:
    return CORSConfig(
        allow_origins=sorted(origins),
        allow_credentials=True,
        expose_headers=["Location", "Retry-After"],
    )


async def drain(app: Litestar) -> None:
    """Before the server stops: take no new runs, let running ones end, tell every reader."""
    components: Components = app.state.components
    components.runs.is_draining = True
    components.connections.drain()
    await components.runs.drain()
    await components.connections.end_all()
