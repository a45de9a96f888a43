"""Typed functions as tools: name, description and schema come from the function itself."""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints, overload

import msgspec
from msgspec import Struct

from chatserver.commands import is_id
from chatserver.errors import SettingsError
from chatserver.tools import Approval, BadArguments
from chatserver.tools.context import ToolContext


class FunctionTool(Struct, frozen=True):
    """A tool made of a plain function, which runs in a thread of its own."""

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., Any]
    arguments: type[Struct]
    context_names: tuple[str, ...]
    """The parameters that are no arguments, but get the call's ``ToolContext``."""

    approval: Approval

    @property
    def needs_approval(self) -> Approval:
        """As in ``Tool``; a rule gets the arguments as the function gets them: converted, with the defaults."""
        rule = self.approval
        return (lambda args: rule(self.bind(args))) if callable(rule) else rule

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

    def call(self, args: dict[str, Any], context: ToolContext) -> Any:
        """As in ``Tool``.

        Raises:
            BadArguments: the arguments do not fit.
        """
        return self.function(**self.bind(args), **dict.fromkeys(self.context_names, context))


class AsyncFunctionTool(FunctionTool, frozen=True):
    """A tool made of an async function, which runs in the event loop that all tools share."""

    async def call(self, args: dict[str, Any], context: ToolContext) -> Any:
        """As in ``FunctionTool``."""
        result = super().call(args, context)
        return await result if inspect.isawaitable(result) else result


@overload
def tool(function: Callable[..., Any], /, *, needs_approval: Approval = False) -> FunctionTool: ...


@overload
def tool(*, needs_approval: Approval = False) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    function: Callable[..., Any] | None = None, /, *, needs_approval: Approval = False
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool of an async or plain function whose parameters are all annotated; also as a decorator.

    The tool has the function's name. The docstring is the tool's description, and the annotations are the schema of its
    arguments; ``Annotated[str, msgspec.Meta(description=…)]`` describes one of them. A parameter that is annotated
    ``ToolContext`` is no argument: it is told of the call.

    ``needs_approval``: whether a person must agree to each call, or a rule that says so of the arguments, as a dict;
    the rule may be async.

    Raises:
        SettingsError: a parameter has no type, or is not one that JSON can name.
    """
    if function is None:
        return lambda each: _made(each, needs_approval)
    return _made(function, needs_approval)


def _made(function: Callable[..., Any], approval: Approval) -> FunctionTool:
    name = getattr(function, "__name__", "")
    if not is_id(name):
        raise SettingsError(f"tool `{name}`: a name is 1 to 64 of letters, digits, `_` and `-`")
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        fields = [_field(each, hints) for each in parameters]
        context_names = tuple(field[0] for field in fields if field[1] is ToolContext)
        fields = [field for field in fields if field[1] is not ToolContext]
        arguments = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        # A decorator may hide that the function is async.
        is_async = any(map(inspect.iscoroutinefunction, (function, inspect.unwrap(function))))
        kind = AsyncFunctionTool if is_async else FunctionTool
        description, schema = inspect.getdoc(function) or "", _schema(arguments)
        return kind(name, description, schema, function, arguments, context_names, approval)
    except (TypeError, NameError, ValueError, KeyError) as error:
        raise SettingsError(f"tool `{name}`: {error}") from None


def _field(parameter: inspect.Parameter, hints: dict[str, Any]) -> tuple[Any, ...]:
    """Name, type and default of a parameter."""
    by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    if not by_name or parameter.name not in hints:
        raise TypeError(f"parameter `{parameter.name}` needs a name and a type")
    field = (parameter.name, hints[parameter.name])
    return field if parameter.default is parameter.empty else (*field, parameter.default)


def _schema(arguments: type[Struct]) -> dict[str, Any]:
    _, definitions = msgspec.json.schema_components([arguments], ref_template="#/$defs/{name}")
    parameters: dict[str, Any] = definitions.pop(arguments.__name__)
    parameters.pop("title", None)
    if definitions:
        parameters["$defs"] = definitions
    return parameters
