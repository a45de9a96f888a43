"""The server as a part of another Litestar application: handlers for all that is below a path, one lifespan."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import anyio
from litestar import HttpMethod, Litestar, WebSocket, route, websocket
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from litestar.types import ASGIApp, Receive, Scope, Send
from litestar.utils import normalize_path

from chatserver.app import App, User, create_app
from chatserver.errors import SettingsError
from chatserver.function_agent import AgentFunction
from chatserver.settings import Settings
from chatserver.tools import Tool
from chatserver.transports.asgi import HOST_SCOPE, AsgiScope
from chatserver.transports.components import Components

OF_CONNECTION = frozenset(
    {
        *("type", "asgi", "http_version", "server", "client", "scheme", "method"),
        *("query_string", "raw_path", "headers", "subprotocols"),
    }
)
"""What a scope says of a connection itself. All else in it is the host application's."""


class ChatPlugin(InitPlugin):
    """Adds the server to a Litestar application, below a path: ``Litestar(plugins=[ChatPlugin("/assistant")])``.

    The page is at the path, everything else below it: `/assistant/chat/stream`, `/assistant/schema`. The application's
    guards and middleware see these requests too; its own routes, exception handlers and documents stay as they are.
    The server starts and ends with the application.

    Each plugin is a server of its own: two in one application need two paths, and share their sessions only where they
    have the same database.
    """

    def __init__(
        self,
        path: str,
        settings: Settings | None = None,
        *,
        agent: AgentFunction | None = None,
        tools: Iterable[Tool | Callable[..., Any]] | None = None,
        user: User | None = None,
    ) -> None:
        """``path`` is below the root; all else is as in ``create_app``.

        Raises:
            SettingsError: a setting cannot be obeyed, or a tool cannot be called.
        """
        self.path = normalize_path(path)
        if self.path == "/" or "{" in self.path:
            raise SettingsError(f"ChatPlugin: {path!r} is no fixed path below the root")
        self.app: App = create_app(settings, agent=agent, tools=tools, user=user)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Called by Litestar: add the handlers and the lifespan."""
        # No mount of Litestar's: that of `/assistant` would take `/assistants` too.
        paths = [self.path, f"{self.path}/{{below:path}}"]

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(_below(scope), receive, send)

        @route(paths, http_method=list(HttpMethod), include_in_schema=False)
        async def http() -> ASGIApp:
            return respond

        @websocket(paths)
        async def chat(socket: WebSocket[Any, Any, Any]) -> None:
            await self.app(_below(socket.scope), socket.receive, socket.send)

        app_config.route_handlers += [http, chat]
        app_config.lifespan.append(self._lifespan)
        return app_config

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        async with self.app.lifespan():
            yield


def _below(connection: Scope) -> AsgiScope:
    """The scope of a connection as if the server were alone behind a proxy that shows it under the path."""
    host = cast(AsgiScope, connection)
    scope = {name: host[name] for name in OF_CONNECTION if name in host}
    # Litestar has taken the root path off the path, which by ASGI it is a part of.
    path = host.get("root_path", "") + host["path"]
    root_path = path.removesuffix(str(host["path_params"].get("below", "")))
    return scope | {
        "root_path": root_path,
        "path": path,
        "extensions": host.pop("extensions", {}),
        HOST_SCOPE: host,
    }


Application: TypeAlias = Litestar
"""The server's own application, or one with a ``ChatPlugin``."""


def apps_in(app: Application) -> list[App]:
    """The servers in an application: the application itself, or those of its plugins."""
    return [app] if isinstance(app, App) else [each.app for each in app.plugins.init if isinstance(each, ChatPlugin)]


async def drain(app: Application) -> None:
    """Before the process stops: take no new runs, let running ones end, tell every reader."""
    async with anyio.create_task_group() as tasks:
        for each in apps_in(app):
            tasks.start_soon(_drain, each.state.components)


async def _drain(components: Components) -> None:
    components.runs.is_draining = True
    components.connections.drain()
    await components.runs.drain()
    await components.connections.end_all()
