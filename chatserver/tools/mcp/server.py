"""An MCP server as this process knows it: connected, and connected anew whenever its session is lost."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from itertools import count
from math import inf
from typing import Any

import anyio
from anyio import to_thread
from mcp import MCPError, types
from msgspec import Struct
from pydantic import ValidationError

from chatserver.providers.words import loggable
from chatserver.syntax import one_line
from chatserver.tools.context import ToolContext
from chatserver.tools.mcp.configuration import McpConfiguration
from chatserver.tools.mcp.listing import Listed, listed
from chatserver.tools.mcp.results import result_of
from chatserver.tools.mcp.session import Session, Undone
from chatserver.tools.results import ToolFailed, words_of

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 30.0
"""How long a server may take until it has listed its tools. `npx` may have to fetch the server before."""

FAREWELL_SECONDS = 2.0
"""How long the end of a session may take."""

CALL_WAIT_SECONDS = 10.0
"""How long a call waits for a server that is being connected."""

STABLE_SECONDS = 60.0
"""A server that was there for so long is connected anew at once, one that was not, later and later."""

LATEST_SECONDS = 60.0
RELIST_SECONDS = 1.0
"""How long tools are not listed again, however often a server says that they have changed."""

COMPLAINTS = 5
"""How many of the tools that are left out the log names."""

NOT_THERE = "the tool's server cannot be reached now"


class State(StrEnum):
    """Where a server is: ``connecting`` ⟶ ``ready`` or ``down``; ``ready`` ⟶ ``down`` ⟶ ``connecting``."""

    CONNECTING = "connecting"
    READY = "ready"
    DOWN = "down"


class McpTool(Struct, frozen=True):
    """A tool of a server, as a ``Tool``."""

    name: str
    description: str
    parameters: dict[str, Any]
    needs_approval: bool
    own_name: str
    server: "McpServer"

    async def call(self, args: dict[str, Any], context: ToolContext) -> Any:
        """As in ``Tool``; tools are called in an event loop of their own, the session is in that of the server."""
        calling = self.server.call(self.own_name, args, context)
        return result_of(await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(calling, self.server.loop)))


class McpServer:
    """``tools`` are those of the newest list; they stay when the server is lost; its calls then fail in words."""

    loop: asyncio.AbstractEventLoop

    def __init__(
        self, configuration: McpConfiguration, needs_approval: Callable[[Listed], bool], on_change: Callable[[], None]
    ) -> None:
        self.configuration = configuration
        self.state = State.CONNECTING
        self.tools: Sequence[McpTool] = ()
        self.problem = ""
        """Why the server is down, as a log may have it."""
        self.has_been_tried = anyio.Event()
        self.has_ended = anyio.Event()
        self._needs_approval, self._on_change = needs_approval, on_change
        self._complaints: list[str] = []
        self._told = ""
        self._session: Session | None = None
        self._is_ending = False
        self._moved = anyio.Event()
        self._is_wanted = anyio.Event()

    async def run(self) -> None:
        """Keep the server connected until ``end``."""
        self.loop = asyncio.get_running_loop()
        delays = backoff()
        while not self._is_ending:
            self._move(State.CONNECTING)
            began = anyio.current_time()
            problem = await self._serve()
            self._move(State.DOWN, problem)
            if anyio.current_time() - began > STABLE_SECONDS:
                delays = backoff()
            self._is_wanted = anyio.Event()
            if not self._is_ending:
                with anyio.move_on_after(next(delays)):
                    await self._is_wanted.wait()
        self.has_ended.set()

    def end(self) -> None:
        """Let ``run`` end the session, and then itself."""
        self._is_ending = True
        self._is_wanted.set()
        if self._session is not None:
            self._session.lose("this server ends")

    async def call(self, name: str, args: dict[str, Any], context: ToolContext) -> types.CallToolResult:
        """Call a tool, once more where the first session was lost before the call began.

        Raises:
            ToolFailed: in words for the model.
        """
        for _ in range(2):
            session = await self._ready()
            with suppress(Undone):
                return await session.call(name, args, context)
        raise ToolFailed(NOT_THERE)

    async def _ready(self) -> Session:
        """The session; of a server that is down, what the next try gives, which is made at once."""
        with anyio.move_on_after(CALL_WAIT_SECONDS):
            is_tried = False
            while self._session is None or self._session.is_over.is_set():
                if self.state is State.DOWN:
                    if is_tried:
                        break
                    self._is_wanted.set()
                is_tried = is_tried or self.state is not State.READY
                await self._moved.wait()
            else:
                return self._session
        raise ToolFailed(NOT_THERE)

    async def _serve(self) -> str:
        """One session, from its beginning to its end; why it has ended."""
        problem = f"no answer within {HANDSHAKE_SECONDS:g} seconds"
        session = Session(self.configuration.access)
        try:
            with anyio.move_on_after(HANDSHAKE_SECONDS) as patience:
                async with session.opened():
                    await self._list(session)
                    patience.deadline = inf
                    self._session = session
                    self._move(State.READY)
                    await self._attend(session)
                    self._session = None
                    patience.deadline = anyio.current_time() + FAREWELL_SECONDS
        except Exception as error:  # noqa: BLE001 - the SDK lets through whatever a transport raises
            problem = words_of(_leaf(error))
        finally:
            self._session = None
        return loggable(session.reason or problem, self.configuration.secrets, ())

    async def _attend(self, session: Session) -> None:
        """List the tools again when they change, until the session is over."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_listed, session)
            await session.is_over.wait()
            tasks.cancel_scope.cancel()

    async def _keep_listed(self, session: Session) -> None:
        while True:
            await session.has_changed.wait()
            session.has_changed = anyio.Event()
            try:
                with anyio.fail_after(HANDSHAKE_SECONDS):
                    await self._list(session)
            except (MCPError, ValidationError, TimeoutError):
                session.lose("does not list its tools again")
            await anyio.sleep(RELIST_SECONDS)

    async def _list(self, session: Session) -> None:
        tools, left_out = await session.tools()
        found, complaints = await to_thread.run_sync(listed, tools, self.configuration.name)  # It may take seconds.
        complaints = [*left_out, *complaints]
        self.tools = [
            McpTool(each.id, each.description, each.parameters, self._needs_approval(each), each.name, self)
            for each in found
        ]
        if complaints != self._complaints:
            self._complaints = complaints
            for complaint in complaints[:COMPLAINTS]:
                self._log(complaint)
        self._on_change()

    def _move(self, state: State, problem: str = "") -> None:
        if problem and not self._is_ending and (self.state is State.READY or problem != self._told):
            self._told = problem
            self._log(f"is down: {problem}")
        elif state is State.READY:
            self._told = ""
            self._log(f"is ready with {len(self.tools)} tools")
        self.state, self.problem = state, problem
        if state is not State.CONNECTING:
            self.has_been_tried.set()
        moved, self._moved = self._moved, anyio.Event()
        moved.set()

    def _log(self, sentence: str) -> None:
        logger.warning("the MCP server %s %s", self.configuration.label, one_line(sentence))


def backoff() -> Iterator[float]:
    """Seconds to wait before each further try: 1, 2, 4 … 60, with jitter."""
    for attempt in count():
        yield min(LATEST_SECONDS, 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load


def _leaf(error: Exception) -> Exception:
    """The exception that task groups have wrapped."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
