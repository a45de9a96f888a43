"""Whether there are MCP servers at all, and what connects them."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from chatserver.errors import SettingsError
from chatserver.settings import variable
from chatserver.tools.mcp.configuration import mcp_configurations

if TYPE_CHECKING:
    from chatserver.tools.mcp.servers import McpServers

OpenMcp: TypeAlias = "Callable[[], AbstractAsyncContextManager[McpServers | None]]"
"""Connects the MCP servers for as long as it is entered; None: there are none."""


def mcp_opener(entries: Sequence[str], approval: str) -> OpenMcp:
    """What connects the MCP servers that these entries of the setting name.

    Raises:
        SettingsError: a server is named wrongly, or the package that talks to servers is not installed.
    """
    if not entries:
        return nullcontext
    configurations = mcp_configurations(entries, os.environ)
    try:
        from chatserver.tools.mcp.servers import open_mcp_servers
    except ModuleNotFoundError as error:
        package = f"{error.name}: pip install 'chatserver[mcp]'"
        raise SettingsError(f"{variable('mcp')}: needs the package {package}") from None
    return partial(open_mcp_servers, configurations, approval)
