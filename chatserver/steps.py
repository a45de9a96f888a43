"""Steps: what an agent tells its run, and how it does that."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from chatserver.dialogue import TurnOrigin
from chatserver.events import Reasoning, Token, ToolCall, ToolInput, ToolProgress, ToolResult

Step: TypeAlias = Token | Reasoning | TurnOrigin | ToolInput | ToolCall | ToolProgress | ToolResult
"""What an agent emits. A ``TurnOrigin`` reaches no reader. The agent emits it before the calls of its turn, so that a
checkpoint with the calls has the origin too. A turn without calls and leavings needs none.
"""

Emit: TypeAlias = Callable[[Step], None]
"""Hands a step to the run. Raises when the run takes no more steps; the agent need not catch that."""

Settled: TypeAlias = Callable[[], Awaitable[None]]
"""Waits until the run is on disk. An agent awaits this before it changes the world: the disk may refuse the run."""
