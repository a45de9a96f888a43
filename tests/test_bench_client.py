"""`chatserver bench URL` against a real server, and what it says when it cannot."""

import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner

from chatserver.bench import observations
from chatserver.bench.client import Failed, Plan, measure
from chatserver.bench.connections import ConnectFailed, Target
from chatserver.bench.observations import Observation
from chatserver.cli import main
from tests.live import live_server


async def test_both_transports_of_a_server_are_measured() -> None:
    seen: list[Observation] = []
    async with live_server(None) as server:
        plan = Plan(Target.parse(server.url), {"message": "Count to 12"}, rounds=1, runs=1)
        with anyio.fail_after(40):
            await measure(plan, seen.append, lambda _: None)
    assert {(each.scenario, each.transport) for each in seen} == {
        (scenario, transport) for scenario in ("same_events", "first", "resume") for transport in ("SSE", "WebSocket")
    }
    assert all(each.values.get("lost_events", 0) == each.values.get("doubled_events", 0) == 0 for each in seen)
    assert all(each.values["bytes_per_event"] > 50 for each in seen if each.scenario == "same_events")


async def test_a_server_that_refuses_is_told() -> None:
    async with live_server(None) as server:
        plan = Plan(Target.parse(server.url), {"message": "Fail with 401"}, rounds=1, runs=1)
        with anyio.fail_after(40), pytest.raises(Failed, match="auth_failed"):
            await measure(plan, lambda _: None, lambda _: None)
        plan = Plan(Target.parse(f"{server.url}/elsewhere"), {"message": "Hello"}, rounds=1, runs=1)
        with anyio.fail_after(40), pytest.raises((Failed, ConnectFailed)):
            await measure(plan, lambda _: None, lambda _: None)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1", "cannot be reached"),
        ("ftp://example.org", "is not the URL of a server"),
        ("http://", "is not the URL of a server"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, url: str, words: str) -> None:
    result = CliRunner().invoke(main, ["bench", url, "--out", str(tmp_path / "bench.html")])
    assert result.exit_code == 1 and words in result.output and len(result.output.strip().splitlines()) == 1


def test_without_the_extra_it_says_what_to_install() -> None:
    hide = (
        "import sys; sys.modules['hdrh'] = None; from chatserver.cli import main; main(['bench', 'http://127.0.0.1:1'])"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and done.stderr.strip().endswith("pip install 'chatserver[bench]'")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_target_keeps_its_path_port_and_headers() -> None:
    target = Target.parse("https://example.org/chat/", ("Authorization: Bearer x",))
    assert (target.host, target.port, target.is_secure, target.path) == ("example.org", 443, True, "/chat")
    request = target.request("GET", "/livez").decode()
    assert request.startswith("GET /chat/livez HTTP/1.1\r\n") and "\r\nAuthorization: Bearer x\r\n" in request


def test_a_recording_begins_with_where_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    CliRunner().invoke(main, ["bench", "http://127.0.0.1:1", "--out", str(tmp_path / "x.html")])
    recording = observations.read(path)
    assert recording.environment.facts["url"] == "http://127.0.0.1:1" and recording.environment.facts["Python"]
