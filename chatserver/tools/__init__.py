"""Tools: plain typed functions that the model may call. Name, description and schema come from the function itself."""

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from chatserver.commands import is_id
from chatserver.dialogue import ToolSpecification
from chatserver.errors import SettingsError
from chatserver.settings.references import load


class BadArguments(ValueError):
    """The model's arguments do not fit; the message tells the model why."""


class Tool(Struct, frozen=True):
    """A function with the schema of its arguments; ``is_async`` tells where it may run."""

    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[Struct]
    is_async: bool

    def specification(self) -> ToolSpecification:
        """What a model is told of the tool; made once, since every turn tells of all tools."""
        return _specification(self)

    def bind(self, args: dict[str, Any]) -> dict[str, Any]:
        """The arguments, converted to what the function's annotations ask for.

        Raises:
            BadArguments: they do not fit.
        """
        try:
            bound = msgspec.convert(args, self.arguments, strict=False)
        except msgspec.ValidationError as error:
            raise BadArguments(str(error)) from None
        return {name: getattr(bound, name) for name in self.arguments.__struct_fields__}


@cache
def _specification(tool: Tool) -> ToolSpecification:
    _, definitions = msgspec.json.schema_components([tool.arguments], ref_template="#/$defs/{name}")
    parameters = definitions.pop(tool.arguments.__name__)
    parameters.pop("title", None)
    if definitions:
        parameters["$defs"] = definitions
    return ToolSpecification(tool.name, tool.description, parameters)


def tool(function: Callable[..., Any]) -> Tool:
    """Make a tool of an async or plain function whose parameters are all annotated.

    Raises:
        SettingsError: a parameter has no type, or is not one that JSON can name.
    """
    name = function.__name__
    if not is_id(name):
        raise SettingsError(f"tool `{name}`: a name is 1 to 64 of letters, digits, `_` and `-`")
    try:
        hints = get_type_hints(function, include_extras=True)
        fields = [_field(each, hints) for each in inspect.signature(function).parameters.values()]
        arguments = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        # A decorator may hide that the function is async.
        is_async = any(map(inspect.iscoroutinefunction, (function, inspect.unwrap(function))))
        made = Tool(name, inspect.getdoc(function) or "", function, arguments, is_async)
        made.specification()
    except (TypeError, NameError, ValueError, KeyError) as error:
        raise SettingsError(f"tool `{name}`: {error}") from None
    return made


def _field(parameter: inspect.Parameter, hints: dict[str, Any]) -> Any:
    by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    if not by_name or parameter.name not in hints:
        raise TypeError(f"parameter `{parameter.name}` needs a name and a type")
    field = (parameter.name, hints[parameter.name])
    return field if parameter.default is parameter.empty else (*field, parameter.default)


def load_tools(reference: str | None) -> dict[str, Tool]:
    """The tools by name: the built-in ones, or those of ``module:attribute`` (an iterable of functions or Tools).

    Raises:
        SettingsError: there is no such attribute, or it holds no tools.
    """
    return load("tools", reference or "chatserver.tools.builtin:TOOLS", tools_by_name)


def tools_by_name(found: Iterable[Any]) -> dict[str, Tool]:
    """Functions and Tools as tools by name.

    Raises:
        SettingsError: one of them is no tool, or two have one name.
    """
    tools = [each if isinstance(each, Tool) else tool(each) for each in found]
    by_name = {each.name: each for each in tools}
    if len(by_name) < len(tools):
        raise SettingsError("two tools have one name")
    return by_name
