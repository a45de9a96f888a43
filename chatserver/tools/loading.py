"""The tools of a server, by name: those that an operator names, or the built-in ones."""

from collections.abc import Iterable
from typing import Any

from chatserver.commands import is_id
from chatserver.dialogue import QUESTION, RESERVED
from chatserver.errors import SettingsError
from chatserver.json_schema import mistake_in_schema
from chatserver.settings.references import load
from chatserver.tools import Tool
from chatserver.tools.functions import tool

ATTRIBUTES = ("name", "description", "parameters", "call")
"""Those of a ``Tool``."""


def load_tools(reference: str | None) -> dict[str, Tool]:
    """The tools by name: the built-in ones, or those of ``module:attribute`` (an iterable of functions or Tools).

    Raises:
        SettingsError: there is no such attribute, or it holds no tools.
    """
    return load("tools", reference or "chatserver.tools.builtin:TOOLS", tools_by_name)


def tools_by_name(found: Iterable[Any]) -> dict[str, Tool]:
    """Functions and Tools as Tools, by their names.

    Raises:
        SettingsError: one of them is no tool, two have one name, or one has the name of questions.
    """
    tools = [_tool(each) for each in found]
    by_name = {each.name: each for each in tools}
    if len(by_name) < len(tools):
        raise SettingsError("two tools have one name")
    if QUESTION in by_name:
        raise SettingsError(f"tool `{QUESTION}`: {RESERVED}")
    return by_name


def _tool(found: Any) -> Tool:
    if isinstance(found, type):
        raise SettingsError(f"tool `{found.__name__}` is a class, and not one of its objects")
    if not isinstance(found, Tool):
        if hasattr(found, "__name__"):
            return tool(found)
        lacking = ", ".join([f"`{each}`" for each in ATTRIBUTES if not hasattr(found, each)])
        raise SettingsError(f"tool `{type(found).__name__}`: it is no function, and it has no {lacking}")
    if not is_id(found.name):
        raise SettingsError(f"tool `{found.name}`: a name is 1 to 64 of letters, digits, `_` and `-`")
    parameters: Any = found.parameters
    mistake = mistake_in_schema(parameters) if isinstance(parameters, dict) else "it is no object"
    if mistake is None and parameters.get("type") != "object":
        mistake = "its `type` is not `object`"  # Model servers refuse any request with such a tool.
    if mistake is not None:
        raise SettingsError(f"tool `{found.name}`: the schema of its arguments is none: {mistake}")
    return found
