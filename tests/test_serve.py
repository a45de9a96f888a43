"""A program of somebody's that serves by ``serve``: a process of its own, which says who answers and ends as told."""

from pathlib import Path

import anyio
import pytest

from tests.clients import BOTH, documents_of, request, text_of, types_of
from tests.live import ServerProcess
from tests.proving import check_once

pytestmark = pytest.mark.anyio

SECONDS = 90.0
PROGRAM = """
from chatserver import create_app, serve

async def echo(dialogue, context):
    yield f"You say {dialogue[-1].text}."

app = create_app(agent=echo)
if __name__ == "__main__":
    serve(app)
"""


def program(directory: Path, **environment: str) -> ServerProcess:
    (directory / "mine.py").write_text(PROGRAM)
    return ServerProcess(None, directory, start=("mine.py",), environment={"CHATSERVER_PORT": "0"} | environment)


async def test_a_program_serves_its_application_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with anyio.fail_after(SECONDS):
        async with program(tmp_path) as server:
            assert "answering with the agent __main__:echo\n" in f"{server.output}\n" and "demo" not in server.output
            for transport in BOTH:
                documents = await documents_of(await transport.start(server, {"message": "Hi"}))
                check_once(documents)
                assert (types_of(documents)[-1], text_of(documents)) == ("done", "You say Hi.")
            assert (await request(server, "GET", "/readyz")).json["is_demo"] is False
            server.terminate()
            assert await server.wait() == 0
            assert server.stderr == []


async def test_a_program_that_cannot_serve_says_why_in_one_line(tmp_path: Path) -> None:
    with anyio.fail_after(SECONDS):
        async with program(tmp_path) as server:
            other = program(tmp_path, CHATSERVER_PORT=str(server.port))
            with pytest.raises(RuntimeError, match="the program ended with 1"):
                async with other:
                    """It does not get so far."""
            assert other.stdout == []
            (line,) = other.stderr
            assert line.startswith(f"Error: cannot listen on 127.0.0.1:{server.port}: ")
