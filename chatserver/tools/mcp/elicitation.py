"""Elicitation: the questions that MCP servers ask in their calls, put to the user of the run."""

from mcp.types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult
from pydantic import ValidationError

from chatserver.tools.context import ToolContext
from chatserver.tools.results import ToolFailed


async def elicited(context: ToolContext, params: ElicitRequestParams) -> ElicitResult:
    """Ask the user; an address, which the server wants opened, is shown in the question.

    Raises:
        Exception: as in ``ToolContext.ask``.
    """
    if isinstance(params, ElicitRequestFormParams):
        reply = await context.ask(params.message, params.requested_schema)
        content = reply.content if reply.action == "accept" else None
        try:
            return ElicitResult(action=reply.action, content=content)
        except ValidationError:
            raise ToolFailed("the user's answer is no form of plain fields") from None
    reply = await context.ask(f"{params.message}\n\n{params.url}")
    return ElicitResult(action=reply.action)
