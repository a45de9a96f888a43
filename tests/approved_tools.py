"""Tools of a server under test, most of which a person must agree to. What they have done is written to a file."""

import asyncio
import os
from pathlib import Path
from typing import Any

from chatserver.tools.functions import tool

LEDGER = "TEST_LEDGER"
"""The variable that names the file."""


def _note(word: str) -> None:
    with Path(os.environ[LEDGER]).open("a") as ledger:
        ledger.write(f"{word}\n")


async def book(table: int) -> str:
    """Book a table."""
    _note(f"book {table}")
    return f"table {table} is booked"


async def pay(amount: int, to: str) -> dict[str, Any]:
    """Pay, in the smallest unit of the currency."""
    _note(f"pay {amount} {to}")
    return {"paid": amount, "rate": 1.0}


async def bake(seconds: float) -> str:
    """Bake for so long."""
    _note("bake")
    await asyncio.sleep(seconds)
    return "baked"


async def knead(seconds: float) -> str:
    """Knead for so long. Nobody is asked about that."""
    _note("knead")
    await asyncio.sleep(seconds)
    return "kneaded"


async def look(at: str) -> str:
    """Look at something."""
    return f"{at} is fine"


async def _fussy(args: dict[str, Any]) -> bool:
    await asyncio.sleep(0)
    if args["at"] == "nothing":
        raise LookupError(args["at"])
    return bool(args["at"] == "secrets")


TOOLS = [
    tool(book, needs_approval=True),
    tool(pay, needs_approval=True),
    tool(bake, needs_approval=True),
    tool(look, needs_approval=_fussy),
    tool(knead),
]
REFERENCE = f"{__name__}:TOOLS"
