"""What an agent may yield, checked in the agent's own thread: whatever passes cannot hurt the server."""

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from chatserver.errors import AgentFailed
from chatserver.events import Reasoning, Token, ToolCall, ToolResult, Usage, to_json
from chatserver.providers import Finish
from chatserver.providers.api import is_believed
from chatserver.providers.clean_text import cleaned
from chatserver.tools.results import cap

Draft: TypeAlias = Token | Reasoning | ToolCall | ToolResult
"""An event that an agent may tell of. The run gives it its id and its number.

A ``ToolCall`` tells of a call that the agent makes by itself, and so nothing waits for an approval or for the client.
"""

Yielded: TypeAlias = str | Draft | Usage
"""What an agent yields: text of the answer, the draft of an event, or the usage of a model that the agent has asked."""

DRAFTS = (Reasoning, Token, ToolCall, ToolResult, Usage)


class TurnEnd(Struct, frozen=True):
    """The configured model has ended a turn that an agent has asked for, and all of the turn was yielded before."""

    finish: Finish


Said: TypeAlias = Draft | Usage | TurnEnd


def checked(step: Any, result_bytes_limit: int) -> Said | None:
    """A yielded step as the run takes it; None: it says nothing. A result of a tool is cut to its limit.

    Raises:
        AgentFailed: it is nothing that an agent may yield.
    """
    if isinstance(step, str):
        return Token(content=cleaned(step)) if step else None
    kind = type(step)
    if kind not in DRAFTS:
        raise AgentFailed(f"the agent yielded a `{kind.__name__}` in place of text or an event")
    try:
        if isinstance(step, ToolResult):
            result, is_cut = cap(step.result, result_bytes_limit)
            step = replace(step, result=result, truncated=step.truncated or is_cut)
        draft: Draft | Usage = msgspec.convert(msgspec.to_builtins(step), kind)
        if isinstance(draft, Token | Reasoning):
            return type(draft)(content=cleaned(draft.content)) if draft.content else None
        if isinstance(draft, Usage) and not is_believed(draft):
            raise ValueError(draft)
        to_json(draft)
    except Exception as error:
        raise AgentFailed(f"the agent yielded a `{kind.__name__}` with wrong fields") from error
    if isinstance(draft, ToolCall) and (draft.needs_approval or draft.executor == "client"):
        raise AgentFailed(
            "the agent yielded a `ToolCall` that waits for somebody: only `context.call` makes such a call"
        )
    return draft
