"""One session with an MCP server, from its handshake until it is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup
from mcp import Client, MCPError, types
from mcp.client import ClientRequestContext, IncomingMessage
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.message import SessionMessage
from mcp.types import ElicitRequestParams, ElicitResult
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from chatserver import __version__
from chatserver.tools.context import ToolContext
from chatserver.tools.mcp.configuration import Access, Command
from chatserver.tools.mcp.elicitation import elicited
from chatserver.tools.mcp.http import endpoint_streams
from chatserver.tools.mcp.listing import TOOLS_LIMIT, sifted
from chatserver.tools.mcp.stdio import child_streams
from chatserver.tools.mcp.streams import CALL, Call, Lose, Paced, Received, Sift
from chatserver.tools.results import ToolFailed, words_of

PAGES_LIMIT = 128
"""Pages of a server's list of tools; what follows is left out."""

LISTEN_AGAIN_SECONDS = 5.0
"""After the stream of a server's notifications has ended, which any proxy may do."""

OUTCOME_UNKNOWN = "the connection to the tool's server was lost: whether the call had an effect is not known"
CLOSED = types.ErrorData(code=types.CONNECTION_CLOSED, message="Connection closed")
"""What the SDK says of a lost connection. A server may give its own errors the same code."""

NO_SENSE = "the answer of the tool's server makes no sense"

ROUNDS_LIMIT = 10
"""How often a server may want a call again, with answers: as often as the SDK allows."""

ROUND_SECONDS = 0.25
"""Before a call that is wanted again without answers."""

_RESULT: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)
_CLIENT = types.Implementation(name="chatserver", version=__version__)


class Undone(Exception):
    """The session was lost before the server began the call."""


class Session:
    """``is_over`` is set as soon as the session is lost, and ``reason`` tells why."""

    _tasks: TaskGroup

    def __init__(self, access: Access) -> None:
        self.is_over = anyio.Event()
        self.reason = ""
        self.has_changed = anyio.Event()
        """Set when the server says that its tools have changed; whoever has heard it puts a new event in its place."""
        self._client = Client(
            _streams(access, self.lose, self._sift),
            client_info=_CLIENT,
            message_handler=self._on_message,
            elicitation_callback=self._elicit,
            cache=None,
        )
        self._left_out: list[str] | None = None
        """Of the list that was asked for last, what was no tool, in sentences for the log."""
        self._calls: set[Call] = set()
        self._users_given_up: set[str] = set()
        """Whose calls were given up while the server was at work on them."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Shake hands, and take calls until the block is left; calls that wait then have failed."""
        async with self._client, anyio.create_task_group() as self._tasks:
            tools = self._client.server_capabilities.tools
            if self._client.protocol_version in MODERN_PROTOCOL_VERSIONS and tools and tools.list_changed:
                self._tasks.start_soon(self._listen)
            yield
            self._tasks.cancel_scope.cancel()

    def lose(self, reason: str) -> None:
        """The session is over; the first reason counts."""
        if not self.is_over.is_set():
            self.reason = reason
            self.is_over.set()

    async def tools(self) -> tuple[list[types.Tool], list[str]]:
        """What the server lists, and for what is no tool a sentence for the log each.

        Raises:
            MCPError: the server refuses, or the session is lost.
            ValidationError: the answer is no list of tools.
        """
        found = list[types.Tool]()
        left_out = self._left_out = list[str]()
        cursor = None
        if self._client.server_capabilities.tools is not None:
            for _ in range(PAGES_LIMIT):
                page = await self._client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if cursor is None or len(found) > TOOLS_LIMIT:
                    break
        return found, left_out

    def _sift(self, received: Received) -> None:
        if self._left_out is None or not isinstance(received, SessionMessage):
            return
        match received.message:
            case types.JSONRPCResponse(result={"tools": list()} as page):
                self._left_out += sifted(page, self._client.protocol_version)

    async def call(self, name: str, args: dict[str, Any], context: ToolContext) -> types.CallToolResult:
        """Call a tool. The call is a task of the session: a caller that is cancelled does not wait for its farewell.

        Raises:
            ToolFailed: in words for the model.
            Undone: the session was lost before the server began the call.
        """
        if self.is_over.is_set():
            raise Undone
        outcome: asyncio.Future[types.CallToolResult] = asyncio.get_running_loop().create_future()
        call, scope = Call(context), anyio.CancelScope()

        async def perform() -> None:
            CALL.set(call)
            self._calls.add(call)
            failure = OUTCOME_UNKNOWN
            try:
                with scope:
                    result = await self._request(name, args, call)
                    if not outcome.done():
                        outcome.set_result(result)
            except MCPError as error:
                failure = OUTCOME_UNKNOWN if error.error == CLOSED else error.message
            except ValidationError:
                failure = NO_SENSE
            except Exception as error:  # noqa: BLE001 - the call has failed; the session goes on
                failure = words_of(error)
            finally:
                self._calls.discard(call)
                if not outcome.done():
                    outcome.set_exception(Undone() if call.is_undone else ToolFailed(failure))

        self._tasks.start_soon(perform)
        try:
            return await outcome
        finally:
            if call in self._calls:
                self._users_given_up.add(context.user)
            scope.cancel()

    async def _request(self, name: str, args: dict[str, Any], call: Call) -> types.CallToolResult:
        async def progress(progress: float, total: float | None, message: str | None) -> None:
            await call.context.progress(message, progress, total)

        # Not Client.call_tool: it checks the result against the server's schema, by regular expressions of the server.
        params = types.CallToolRequestParams(name=name, arguments=args)
        for questions in range(ROUNDS_LIMIT + 1):
            result = await self._client.session.send_request(
                types.CallToolRequest(params=params), _RESULT, progress_callback=progress
            )
            if not isinstance(result, types.InputRequiredResult):
                return result
            if questions == ROUNDS_LIMIT:
                break
            responses = {key: await self._input(each, call) for key, each in (result.input_requests or {}).items()}
            params = params.model_copy(
                update={"input_responses": responses or None, "request_state": result.request_state}
            )
            if not responses:
                await anyio.sleep(ROUND_SECONDS)
        raise ToolFailed(f"the tool wants the call over {ROUNDS_LIMIT} times again")

    async def _input(self, request: types.InputRequest, call: Call) -> ElicitResult:
        if not isinstance(request, types.ElicitRequest):
            raise ToolFailed("the tool asks for what cannot be given here")
        return await elicited(call.context, request.params)

    async def _elicit(
        self,
        context: ClientRequestContext,
        params: ElicitRequestParams,
    ) -> ElicitResult | types.ErrorData:
        """A question in the middle of a call.

        Over pipes it does not say of which: so the call must be the only one, and one that was given up, for which the
        server may still be at work, must have been of the same user.
        """
        calls = [CALL.get()] if CALL.get(None) else [*self._calls]
        if len(calls) != 1 or (not CALL.get(None) and self._users_given_up - {calls[0].context.user}):
            return types.ErrorData(code=types.INVALID_REQUEST, message="it is not clear which call asks this")
        try:
            return await elicited(calls[0].context, params)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the question or the answer
            return types.ErrorData(code=types.INVALID_PARAMS, message=words_of(error))

    async def _on_message(self, message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.has_changed.set()

    async def _listen(self) -> None:
        """Hear of changes, in the versions of MCP in which a client must ask for that."""
        while True:
            try:
                async with self._client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self.has_changed.set()
            except SubscriptionLost:
                pass
            except MCPError:
                return  # The server does not do as it says.
            await anyio.sleep(LISTEN_AGAIN_SECONDS)
            self.has_changed.set()


@asynccontextmanager
async def _streams(access: Access, lose: Lose, sift: Sift) -> AsyncIterator[tuple[Any, Any]]:
    way = child_streams(access, lose) if isinstance(access, Command) else endpoint_streams(access, lose)
    async with way as (incoming, outgoing):
        yield Paced(incoming, sift), outgoing
