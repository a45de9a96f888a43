"""The application, put together."""

from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from chatserver import __version__
from chatserver.agent import Agent, ToolAgent
from chatserver.auth import Gate, TellUser
from chatserver.auth.origins import is_probe
from chatserver.call_checks import Toolbox
from chatserver.errors import ChatError, NotFound, SettingsError, Unavailable
from chatserver.function_agent import AgentFunction, FunctionAgent, checked_agent, load_agent, name_of
from chatserver.log.logs import MemoryLogs
from chatserver.nodes import Shared, link_to
from chatserver.nodes.alone import open_alone
from chatserver.providers import Provider
from chatserver.providers.api import Api
from chatserver.providers.chat_completions.api import ChatCompletions
from chatserver.providers.client import DEMO_URL
from chatserver.providers.provider import OpenAIProvider
from chatserver.providers.responses.api import Responses
from chatserver.routes import contract, health, http, page, scrape
from chatserver.routes.http import IS_HEAD
from chatserver.routes.openapi import BY_TOKEN, SECURITY
from chatserver.routes.websocket import WEBSOCKET_PATH, websocket
from chatserver.runs.holds import Holds
from chatserver.runs.lives import Lives
from chatserver.runs.runs import Runs
from chatserver.settings import Settings, variable
from chatserver.settings.loading import load_settings, with_function_users
from chatserver.telemetry.metrics import Metrics
from chatserver.tools import Tool
from chatserver.tools.execution import ToolThreads
from chatserver.tools.loading import load_tools, tools_by_name
from chatserver.tools.mcp.opening import OpenMcp, mcp_opener
from chatserver.transports.admission import ADMISSION
from chatserver.transports.asgi import HOST_SCOPE, AsgiMessage, AsgiScope, AsgiSend
from chatserver.transports.components import Components
from chatserver.transports.connections import Connections
from chatserver.transports.refusal import refuse
from chatserver.transports.response import WatchedSend

if TYPE_CHECKING:
    from chatserver.nodes.link import Link


User: TypeAlias = Callable[[ASGIConnection[Any, Any, Any, Any]], str | Awaitable[str | None] | None]
"""Tells whose a request or a WebSocket is: 1 to 255 printable characters that name the user; None: nobody's, 401.
Any other text is no name of a user, nor is `local`: 401, too.

It is called in the server's event loop, once for each request and for each WebSocket, before anything else is done. The
connection is Litestar's, with headers, cookies and query, and with what middleware of a host application has put there.
"""

APIS: Mapping[str, type[Api]] = {each.name: each for each in (ChatCompletions, Responses)}
"""The APIs of a model server, by the names that settings give them."""


class App(Litestar):
    """Litestar, with the gate before everything else: also before routes that do not exist."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await super().__call__(scope, receive, partial(_without_traceback, send))
        asked = scope
        components: Components = self.state["components"]
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


DEMO_TOOLS = "chatserver.tools.demo:TOOLS"

_WRONG = f"{SettingsError.__module__}.{SettingsError.__qualname__}: "


def create_app(
    settings: Settings | None = None,
    *,
    agent: AgentFunction | None = None,
    tools: Iterable[Tool | Callable[..., Any]] | None = None,
    user: User | None = None,
) -> App:
    """The server as an ASGI application. Its lifespan starts and ends everything that the application needs.

    Args:
        settings: What an operator chooses; by default from the environment and `.env`, see ``load_settings``.
        agent: Answers each message, in place of the built-in agent and of the one that the settings name.
        tools: Functions that the model may call, in place of those that the settings name.
        user: Tells whose each request and WebSocket is, in place of tokens.

    Raises:
        SettingsError: a setting cannot be obeyed, or a tool or the agent cannot be called.
    """
    settings = _with_users(load_settings() if settings is None else settings, user)
    settings = settings if agent is None else settings.answered_by(name_of(agent))
    gate, metrics = Gate(settings, _by_connection(user)), _metrics(settings)
    named = _tools(settings) if tools is None else tools_by_name(tools)
    function = load_agent(settings.agent) if agent is None else checked_agent(agent)
    open_mcp, link = mcp_opener(settings.mcp, settings.mcp_approval), link_to(settings.redis_url)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        running = partial(_running, settings, gate, named, open_mcp, function, metrics)
        async with link() as opened, running(opened) as components:
            app.state.components = components
            yield

    routes = [*http.ROUTES, *health.ROUTES, *contract.ROUTES, *page.ROUTES, scrape.metrics, websocket]
    return App(
        route_handlers=routes,
        guards=[http.admit],  # Not of a router: Litestar would copy all that its handlers say, and register them twice.
        exception_handlers={Exception: http.error_response},
        lifespan=[lifespan],
        state=State({"settings": settings, "metrics": metrics}),
        cors_config=_cors(gate.origins.allowed) if gate.origins.allowed else None,
        openapi_config=_openapi(),
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )


def _tools(settings: Settings) -> dict[str, Tool]:
    """The tools that the settings name, or else the built-in ones, and beside the demo model those that it shows."""
    return load_tools(settings.tools or (DEMO_TOOLS if settings.is_demo else None))


def _with_users(settings: Settings, user: User | None) -> Settings:
    """The settings of a server whose users are told by a function, where there is one."""
    if user is not None and settings.auth == "jwt":
        raise SettingsError(f"{variable('auth')}: users are told by `user` or by tokens, not by both")
    if user is None and settings.auth == "function":
        raise SettingsError(f"{variable('auth')}: `function` needs the argument `user` of `create_app`")
    return settings if user is None else with_function_users(settings)


def _by_connection(user: User | None) -> TellUser | None:
    if user is None:
        return None
    return lambda scope: user(ASGIConnection(scope.get(HOST_SCOPE, scope)))


@asynccontextmanager
async def _running(
    settings: Settings,
    gate: Gate,
    tools: Mapping[str, Tool],
    open_mcp: OpenMcp,
    function: AgentFunction | None,
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
        provider = await stack.enter_async_context(_provider(settings))
        threads = ToolThreads(settings.tool_timeout_seconds, settings.max_tool_result_bytes)
        mcp = await stack.enter_async_context(open_mcp())
        toolbox = Toolbox(
            tools if mcp is None else ChainMap(dict(tools), mcp.tools), threads, settings.max_tool_calls_per_run
        )
        agent = await stack.enter_async_context(_agent(settings, provider, function))
        logs = MemoryLogs(settings.max_logs_bytes, sessions.log, shared.journal)
        connections = await stack.enter_async_context(
            Connections(
                heartbeat_seconds=settings.heartbeat_seconds,
                send_timeout_seconds=settings.send_timeout_seconds,
                observer=metrics,
            )
        )
        holds = Holds(settings, sessions, shared.places)
        lives = Lives(settings, sessions, logs, agent, toolbox, holds, metrics)
        runs = Runs(settings, sessions, logs, lives, shared.places, shared.elsewhere)
        await stack.enter_async_context(runs)
        beside = await stack.enter_async_context(anyio.create_task_group())
        beside.start_soon(gate.keep_fresh)
        await provider.warm_up()  # Else the first run would hold up the loop by its imports, and with it the lease.
        yield Components(settings, gate, runs, sessions, shared.admissions, connections, metrics, mcp)
        beside.cancel_scope.cancel()


@asynccontextmanager
async def _agent(settings: Settings, provider: Provider, function: AgentFunction | None) -> AsyncIterator[Agent]:
    """The built-in agent, or one that somebody brought."""
    if function is None:
        yield ToolAgent(provider, settings.max_turns).answer
        return
    brought = FunctionAgent(function, provider, settings.agent_idle_seconds, settings.max_tool_result_bytes)
    try:
        yield brought.answer
    finally:
        await brought.close()


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


def _provider(settings: Settings) -> OpenAIProvider:
    """The model server of the settings, or the demo model."""
    return OpenAIProvider(
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url if settings.has_model_server else DEMO_URL,
        headers=settings.upstream_headers,
        idle_seconds=settings.upstream_idle_seconds,
        omitted=settings.upstream_omit,
        api=APIS[settings.upstream_api] if settings.has_model_server else ChatCompletions,
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
