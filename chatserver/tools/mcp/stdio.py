"""The messages of an MCP server that is a child process: one a line, over its standard input and output.

The SDK has a transport for that. This one bounds the length of a line, keeps the end of what the server says on its
standard error, and leaves no process behind when this process is killed (`keeper.py`).
"""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import FileIO
from signal import SIGKILL
from typing import TypeAlias, cast

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

from chatserver.tools.mcp import keeper
from chatserver.tools.mcp.configuration import Command
from chatserver.tools.mcp.streams import MESSAGE_BYTES_LIMIT, Lose, Received

UNSENT_MESSAGES_LIMIT = 256
"""Messages to a server that does not read them. Past this, calls wait until their time is over."""

CHILD_END_SECONDS = 1.0
"""How long a server may take to end when its input has ended."""

SAID_BYTES = 2048
"""How much of the end of a server's standard error is kept."""

Streams: TypeAlias = tuple[MemoryObjectReceiveStream[Received], MemoryObjectSendStream[SessionMessage]]

_LOOK_SECONDS = 0.01
_GONE = (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError, OSError)


class TooLong(Exception):
    """A line is over its limit."""


class Lines:
    """Bytes in, lines out; the cost is linear in the bytes, whatever their pieces."""

    def __init__(self, bytes_limit: int) -> None:
        self._bytes_limit = bytes_limit
        self._rest = bytearray()

    def cut(self, piece: bytes) -> Iterator[bytes]:
        """The lines that a piece completes, without their ends.

        Raises:
            TooLong: a line is over its limit.
        """
        *ends, rest = piece.split(b"\n")
        for end in ends:
            self._add(end)
            line = bytes(self._rest)
            self._rest.clear()
            yield line
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) > self._bytes_limit:
            raise TooLong
        self._rest += piece


@asynccontextmanager
async def child_streams(command: Command, lose: Lose) -> AsyncIterator[Streams]:
    """A child process, as the messages from and to it. Leaving the block ends the child and what it has started.

    Raises:
        OSError: the child cannot be started.
    """
    keepers, ours = os.pipe()
    with FileIO(ours, "wb") as line:
        with FileIO(keepers) as theirs:
            process = await anyio.open_process(
                [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno()), *command.argv],
                env=get_default_environment() | dict(command.env),
                cwd=command.cwd,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        heard, incoming = anyio.create_memory_object_stream[Received]()
        outgoing, unsent = anyio.create_memory_object_stream[SessionMessage](UNSENT_MESSAGES_LIMIT)
        child = _Child(process, lose)
        with heard, incoming, outgoing, unsent:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child.hear, heard)
                tasks.start_soon(child.tell, unsent)
                tasks.start_soon(child.keep_words)
                try:
                    yield incoming, outgoing
                finally:
                    with anyio.CancelScope(shield=True):
                        await child.end(line)
                    tasks.cancel_scope.cancel()


class _Child:
    def __init__(self, process: Process, lose: Lose) -> None:
        self._process, self._lose = process, lose
        self._stdin = cast(ByteSendStream, process.stdin)
        self._stdout = cast(ByteReceiveStream, process.stdout)
        self._stderr = cast(ByteReceiveStream, process.stderr)
        self._words = b""

    async def hear(self, heard: MemoryObjectSendStream[Received]) -> None:
        """Hand on each message from the server, until its output ends. What is no message is taken for words.

        After a fault all is still read: a server that is stuck in writing does not see the end of its input.
        """
        lines, is_heard = Lines(MESSAGE_BYTES_LIMIT), True
        try:
            async for piece in self._stdout:
                if is_heard:
                    is_heard = await self._hand_on(piece, lines, heard)
        except _GONE:
            pass
        self._lose(await self._ending())
        heard.close()

    async def _hand_on(self, piece: bytes, lines: Lines, heard: MemoryObjectSendStream[Received]) -> bool:
        """Whether more messages are wanted."""
        try:
            for line in lines.cut(piece):
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    self._keep(line + b"\n")
                else:
                    await heard.send(SessionMessage(message))
        except TooLong:
            self._lose(f"a message is over {MESSAGE_BYTES_LIMIT} bytes")
            heard.close()
            return False
        except _GONE:
            return False
        return True

    async def tell(self, unsent: MemoryObjectReceiveStream[SessionMessage]) -> None:
        """Write each message to the server."""
        try:
            async for each in unsent:
                await self._stdin.send(each.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        except _GONE:
            pass  # The output ends too, and tells how.

    async def keep_words(self) -> None:
        """Keep the end of the server's standard error. A server whose words nobody reads would stand still."""
        try:
            async for piece in self._stderr:
                self._keep(piece)
        except _GONE:
            pass

    def _keep(self, words: bytes) -> None:
        self._words = (self._words + words)[-SAID_BYTES:]

    async def _ending(self) -> str:
        await self._has_ended_within(CHILD_END_SECONDS)
        code = self._process.returncode
        how = "its output has ended" if code is None else f"ended with status {code}"
        words = self._words.decode(errors="replace").strip().rpartition("\n")[2]
        return f"{how}: {words}" if words else how

    async def _has_ended_within(self, seconds: float) -> bool:
        # Process.wait() would also wait for the ends of pipes that a grandchild may hold.
        with anyio.move_on_after(seconds):
            while self._process.returncode is None:  # noqa: ASYNC110 - nobody tells
                await anyio.sleep(_LOOK_SECONDS)
        return self._process.returncode is not None

    async def end(self, line: FileIO) -> None:
        """End the input, then the line to the keeper, which ends all processes."""
        await self._stdin.aclose()
        if not await self._has_ended_within(CHILD_END_SECONDS):
            line.close()
            if not await self._has_ended_within(2 * keeper.KILL_AFTER_SECONDS + CHILD_END_SECONDS):
                os.killpg(self._process.pid, SIGKILL)
        with anyio.move_on_after(CHILD_END_SECONDS):
            await self._process.wait()  # Also until all that it has written is read.
