"""The built-in tools: enough to see a tool call, safe enough to be always on."""

import ast
import operator
import re
from collections.abc import Callable
from datetime import datetime
from math import log10
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta

EXPRESSION_CHARS_LIMIT = 200
DIGITS_LIMIT = 100
NUMBER_LIMIT = 10**DIGITS_LIMIT
UNDERSTOOD = "only numbers, + - * / // % ** and parentheses are understood"

_ARITHMETIC = re.compile(r"[0-9a-fA-FxXoO_.()+*/%\s-]*", re.ASCII)
"""Numbers of all bases match. No keyword and no name of Python's can be written with these letters alone."""

_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


async def clock(timezone: Annotated[str, Meta(description="an IANA name such as Europe/Berlin")] = "UTC") -> str:
    """The current date and time in a time zone."""
    try:
        return datetime.now(ZoneInfo(timezone)).isoformat(timespec="seconds")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {timezone!r}") from None


async def calculator(
    expression: Annotated[str, Meta(description="numbers with + - * / // % ** and parentheses")],
) -> float | int:
    """The value of an arithmetic expression."""
    if len(expression) > EXPRESSION_CHARS_LIMIT:
        raise ValueError(f"an expression has at most {EXPRESSION_CHARS_LIMIT} characters")
    if not _ARITHMETIC.fullmatch(expression):  # Python's parser would warn of some other texts on stderr.
        raise ValueError(UNDERSTOOD)
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{expression!r} is no arithmetic expression") from None


def _value(node: ast.AST) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and isinstance(a, int) and abs(a) > 1 and b * log10(abs(a)) > DIGITS_LIMIT:
                raise ValueError("the result is too large")  # Checked before: Python computes an integer of any size.
            return _bounded(_OPERATORS[type(op)](a, b))
        case _:
            raise ValueError(UNDERSTOOD)


def _bounded(number: float) -> float:
    if isinstance(number, complex) or not -NUMBER_LIMIT < number < NUMBER_LIMIT:
        raise ValueError("the result is too large or no real number")
    return number


TOOLS = [clock, calculator]
