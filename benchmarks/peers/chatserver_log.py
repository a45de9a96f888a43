"""This server without a model: events go into its log and out through its transports, as they are.

The peers' twin of it is a generator whose events are framed and sent. Here the log is between: each event is encoded,
numbered and appended, and a subscription reads it. What is replaced is ``Runs``, that is model, agent and database.
"""

import asyncio
import os
import sys
import tempfile
from typing import Any

from msgspec.structs import replace

from benchmarks.peers import words
from benchmarks.script import Script
from chatserver.cli import tune_interpreter
from chatserver.commands import ChatRequest, new_id
from chatserver.events import Done, Start, Token, Usage
from chatserver.log.memory import MemoryLog
from chatserver.runs.run import Subscription
from chatserver.serving.server import Server, bind
from chatserver.settings import load


class MadeRuns:
    """In place of ``Runs``: every run is made of the tokens that its message asks for."""

    is_draining = False

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, user: str, request: ChatRequest) -> Subscription:
        log = MemoryLog(new_id())
        task = asyncio.create_task(self._live(log, Script.parse(request.message or "")))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Subscription(log, 0, None, is_at_end=False)

    async def _live(self, log: MemoryLog, script: Script) -> None:
        log.append(
            Start(session_id="s", message_id="m", user_message_id="u", model="lab", protocol=1, heartbeat_ms=15000)
        )
        async for text in words.made_here(script):
            log.append(Token(content=text))
        log.append(
            Done(session_id="s", message_id="m", finish_reason="stop", total_tokens=0, usage=Usage(), duration_ms=0)
        )

    async def drain(self) -> None:
        """Nothing to wait for."""


def main() -> None:
    settings = load(os.environ, flags={"port": int(sys.argv[1])})
    server = Server(settings)

    async def replace_runs(app: Any) -> None:
        app.state.components = replace(app.state.components, runs=MadeRuns())

    server.app.on_startup.append(replace_runs)
    tune_interpreter()
    server.run(sockets=[bind(settings)])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="chatserver-lab-") as folder:
        os.environ.setdefault("CHATSERVER_DATABASE_URL", f"sqlite:///{folder}/lab.db")
        main()
