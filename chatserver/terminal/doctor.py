"""The command `chatserver doctor`: does what lies between a client and a chatserver let streams through?"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from time import monotonic
from typing import Any

import anyio
import click
import httpx2
import msgspec
from msgspec import Struct

from chatserver.events import Done, Error
from chatserver.syntax import one_line
from chatserver.terminal.client import DIAL_SECONDS, Client, Refused, Transport, Unreachable

HELD_BACK = 0.5
"""Events that came within this share of the time in which they were made were held back on their way."""

JUDGED_SECONDS = 0.3
"""An answer that was made in less time tells nothing about what was held back."""

RETURNS = 8
"""So many new connections read the run of another one: enough to reach several nodes."""

TITLES: dict[Transport, str] = {"sse": "SSE", "ws": "WebSocket"}
BUFFERED = "A proxy holds events back: switch its buffering and its compression of responses off (deploy/README.md)."
NO_STREAM: dict[Transport, str] = {"sse": "", "ws": " Does the proxy pass the header Upgrade on?"}


class Finding(Struct, frozen=True):
    """What was looked at, and what was found; ``advice``: what to do, where something is wrong."""

    subject: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.found}{f'. {self.advice}' if self.advice else ''}"


def clients_of(url: str, headers: tuple[str, ...]) -> dict[Transport, Client]:
    """A client for each transport.

    Raises:
        ValueError: a wrong URL, or a wrong header.
    """
    return {each: Client(url, each, headers) for each in TITLES}


def show(clients: Mapping[Transport, Client], request: dict[str, Any]) -> bool:
    """Print what is found, one finding a line; whether nothing is wrong."""

    async def all_is_well() -> bool:
        is_well = True
        async with aclosing(examine(clients, request)) as findings:
            async for finding in findings:
                is_well &= not finding.advice
                click.echo(f"{click.style('wrong', fg='red') if finding.advice else 'good '}  {one_line(str(finding))}")
        return is_well

    return anyio.run(all_is_well)


async def examine(clients: Mapping[Transport, Client], request: dict[str, Any]) -> AsyncGenerator[Finding]:
    """Look at a server by a run of this request over each transport."""
    async with clients["sse"] as client:
        try:
            yield _readiness(await client.http.get("/readyz", timeout=DIAL_SECONDS))
        except httpx2.RequestError as error:
            yield Finding("server", str(error) or type(error).__name__, "Does it run, and is this its address?")
            return
    for transport, client in clients.items():
        try:
            async with client:
                run_id, finding = await _streaming(client, TITLES[transport], request)
        except (Refused, Unreachable) as error:
            yield Finding(TITLES[transport], str(error), f"No stream gets through.{NO_STREAM[transport]}")
        else:
            yield finding
            yield await _returning(client, f"{TITLES[transport]}, come back", run_id)


def _readiness(response: httpx2.Response) -> Finding:
    try:
        told = msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError:
        return Finding("server", f"HTTP {response.status_code}, no chatserver", "Is this the path of the server?")
    if response.is_error:
        advice = "Is this the path of the server?" if response.status_code == httpx2.codes.NOT_FOUND else "See its log."
        return Finding("server", str(told.get("detail")), advice)
    down = [name for name, state in {"redis": told.get("redis"), **told.get("mcp", {})}.items() if state == "down"]
    model = f"ready, model {told.get('model')}{', the demo model' if told.get('is_demo') else ''}"
    return Finding("server", model, f"Down: {', '.join(down)}." if down else "")


async def _streaming(client: Client, title: str, request: dict[str, Any]) -> tuple[str, Finding]:
    """A run, and whether its events came when they were made."""
    asked = monotonic()
    async with aclosing(client.ask(request)) as events:
        seen = [(monotonic() - asked, event) async for event in events]
    at, event = [moment for moment, _ in seen], seen[-1][1]
    if isinstance(event, Error):
        return event.run_id, Finding(title, f"{event.code}: {event.message}", "The stream works, the model does not.")
    made, came = event.duration_ms / 1000 if isinstance(event, Done) else 0.0, at[-1] - at[0]
    found = f"{len(at)} events within {came:.1f} s, made within {made:.1f} s; the first after {at[0] * 1000:.0f} ms"
    return event.run_id, Finding(title, found, BUFFERED if made > JUDGED_SECONDS and came < HELD_BACK * made else "")


async def _returning(client: Client, title: str, run_id: str) -> Finding:
    """Whether a run is found on whatever node a new connection comes to."""
    ends, problem = set[int](), ""
    for _ in range(RETURNS):
        try:
            async with client, aclosing(client.attach(run_id, 0)) as events:
                ends.add(max([event.seq async for event in events]))
        except (Refused, Unreachable) as error:
            problem = str(error)
    if problem or len(ends) > 1:
        advice = "All nodes need the same CHATSERVER_DATABASE_URL and CHATSERVER_REDIS_URL."
        return Finding(title, problem or "connections got different events", advice)
    return Finding(title, f"{RETURNS} new connections read the same run")
