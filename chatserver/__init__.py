"""One event log, two transports: the server between an AI agent and its users.

What is named here is for programs that bring their own agent, tools or users; all else may change with any version.
Each name is imported when it is used first, so that the version costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatserver.app import User, create_app
    from chatserver.dialogue import (
        AssistantTurn,
        Dialogue,
        SystemText,
        ToolOutput,
        ToolSpecification,
        TurnCall,
        UserMessage,
    )
    from chatserver.errors import AgentFailed, SettingsError, ToolError, UpstreamError
    from chatserver.events import Reasoning, Token, ToolCall, ToolResult, Usage
    from chatserver.function_agent import AgentContext, AgentFunction, Yielded
    from chatserver.plugin import ChatPlugin
    from chatserver.serving.serve import serve
    from chatserver.settings import Settings
    from chatserver.settings.loading import load_settings
    from chatserver.tools import Tool
    from chatserver.tools.context import Question, Reply, ToolContext
    from chatserver.tools.functions import tool

__version__ = "0.1.0"

__all__ = [
    "AgentContext",
    "AgentFailed",
    "AgentFunction",
    "AssistantTurn",
    "ChatPlugin",
    "Dialogue",
    "Question",
    "Reasoning",
    "Reply",
    "Settings",
    "SettingsError",
    "SystemText",
    "Token",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolError",
    "ToolOutput",
    "ToolResult",
    "ToolSpecification",
    "TurnCall",
    "UpstreamError",
    "Usage",
    "User",
    "UserMessage",
    "Yielded",
    "create_app",
    "load_settings",
    "serve",
    "tool",
]

_HOMES = {
    "chatserver.app": (
        "User",
        "create_app",
    ),
    "chatserver.dialogue": (
        "AssistantTurn",
        "Dialogue",
        "SystemText",
        "ToolOutput",
        "ToolSpecification",
        "TurnCall",
        "UserMessage",
    ),
    "chatserver.errors": (
        "AgentFailed",
        "SettingsError",
        "ToolError",
        "UpstreamError",
    ),
    "chatserver.events": (
        "Reasoning",
        "Token",
        "ToolCall",
        "ToolResult",
        "Usage",
    ),
    "chatserver.function_agent": (
        "AgentContext",
        "AgentFunction",
        "Yielded",
    ),
    "chatserver.plugin": ("ChatPlugin",),
    "chatserver.serving.serve": ("serve",),
    "chatserver.settings": ("Settings",),
    "chatserver.settings.loading": ("load_settings",),
    "chatserver.tools": ("Tool",),
    "chatserver.tools.context": (
        "Question",
        "Reply",
        "ToolContext",
    ),
    "chatserver.tools.functions": ("tool",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
