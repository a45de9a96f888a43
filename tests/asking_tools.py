"""Tools of a server under test that ask the user."""

import asyncio
import threading
from typing import Any

from chatserver.tools.context import ToolContext
from chatserver.tools.functions import tool

ENOUGH = threading.Event()
"""Set when a tool has waited for long enough."""

FORM = {"type": "object", "properties": {"size": {"type": "integer", "maximum": 50}}, "required": ["size"]}


async def order(context: ToolContext) -> Any:
    """Order shoes, of a size that the user tells."""
    reply = await context.ask("Which size?", FORM)
    return {"action": reply.action, "content": reply.content}


async def agree(context: ToolContext) -> str:
    """Ask for a mere yes."""
    return (await context.ask("Really?")).action


async def fill(context: ToolContext, form: dict[str, Any]) -> str:
    """Ask for what a form has."""
    return str(await context.ask("Fill in:", form))


async def hurry(context: ToolContext) -> str:
    """Ask, and cancel the question when that is enough."""
    asked = asyncio.ensure_future(context.ask("Quick!"))
    await _enough()
    asked.cancel()
    await asyncio.wait({asked})
    return "cancelled" if asked.cancelled() else "answered"


async def forget(context: ToolContext) -> str:
    """Ask, and end while the question is open."""
    asked = asyncio.ensure_future(context.ask("Hello?"))
    await _enough()
    return "answered" if asked.done() else "gone"


async def regret(context: ToolContext) -> str:
    """End while the question is open, and cancel the question after that."""
    asked = asyncio.ensure_future(context.ask("Hello?"))
    await _enough()
    asyncio.get_running_loop().call_later(0.02, asked.cancel)
    return "gone"


async def linger(context: ToolContext) -> str:
    """Ask, and never end, whatever the reply."""
    asked = asyncio.ensure_future(context.ask("Hello?"))
    await asyncio.sleep(3600)
    return str(await asked)


async def _enough() -> None:
    while not ENOUGH.is_set():  # noqa: ASYNC110 - the event belongs to the thread of the tests
        await asyncio.sleep(0.001)


async def pester(context: ToolContext, length: int, times: int) -> str:
    """Ask so long a question so often at once."""
    asked = [context.ask("?" * length, {"type": "object"}) for _ in range(times)]
    return "; ".join([str(each) for each in await asyncio.gather(*asked, return_exceptions=True)])


TOOLS = [tool(each) for each in (order, agree, fill, hurry, forget, regret, linger, pester)]
REFERENCE = f"{__name__}:TOOLS"
"""For ``CHATSERVER_TOOLS``."""
