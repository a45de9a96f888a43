"""The MCP servers of this process, and the tools of all as one mapping that changes while the process runs."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from chatserver.tools import Tool
from chatserver.tools.mcp.configuration import McpConfiguration
from chatserver.tools.mcp.listing import Listed
from chatserver.tools.mcp.server import FAREWELL_SECONDS, McpServer, State

FIRST_LISTS_SECONDS = 3.0
"""How long the start of this process waits. A server that takes longer brings its tools when it is ready."""

OF_SDK = ("mcp", "client")
"""The SDK's loggers, which say with tracebacks what a server has sent. What matters to an operator is said here."""


class McpServers:
    """``tools`` are those of all servers, by name; of two with one name, that of the first server."""

    def __init__(self, configurations: Sequence[McpConfiguration], approval: str) -> None:
        def needs_approval(tool: Listed) -> bool:
            return approval == "always" or (approval == "destructive" and tool.is_destructive)

        self.tools: dict[str, Tool] = {}
        self._servers = [McpServer(each, needs_approval, self._merge) for each in configurations]

    @property
    def states(self) -> dict[str, State]:
        """How each server is, by what a log calls it."""
        return {each.configuration.label: each.state for each in self._servers}

    def _merge(self) -> None:
        self.tools.clear()
        self.tools.update({tool.name: tool for server in reversed(self._servers) for tool in server.tools})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the servers connected until the block is left. A server that is down prevents nothing."""
        async with anyio.create_task_group() as tasks:
            for server in self._servers:
                tasks.start_soon(server.run)
            with anyio.move_on_after(FIRST_LISTS_SECONDS):
                for server in self._servers:
                    await server.has_been_tried.wait()
            yield
            for server in self._servers:
                server.end()
            with anyio.move_on_after(FAREWELL_SECONDS):
                for server in self._servers:
                    await server.has_ended.wait()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def open_mcp_servers(configurations: Sequence[McpConfiguration], approval: str) -> AsyncIterator[McpServers]:
    """The servers, connected until the block is left; ``approval`` is `never`, `destructive` or `always`."""
    for name in OF_SDK:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    servers = McpServers(configurations, approval)
    async with servers.running():
        yield servers
