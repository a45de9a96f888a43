"""The dashboard and the alert rules: each query finds what it asks for, in a scrape and in a real Prometheus."""

import json
import re
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from prometheus_client import CollectorRegistry

from chatserver.telemetry.instruments import Instruments
from tests.clients import WS, WsReader, documents_of, request
from tests.fake_upstream import FakeUpstream, call, refuse, say
from tests.live import ROOT, LiveServer
from tests.scrapes import Scrape, scrape, until
from tests.users import guarded_server, of

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 40.0
DASHBOARD = ROOT / "deploy" / "grafana.json"
ALERTS = ROOT / "deploy" / "alerts.yml"
OF_PROMETHEUS = {"instance", "job"}
"""Labels that Prometheus itself adds."""

OF_WORKERS = {"pid"}


def dashboard_queries() -> dict[str, str]:
    """Each query of the dashboard by its panel, as Grafana sends it."""
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    queries = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel["targets"]}
    return {name: query.replace("$__rate_interval", "1m").replace("$instance", ".*") for name, query in queries.items()}


def alert_queries() -> dict[str, str]:
    """Each rule's query by its name; the file is YAML of a form so plain that this reads it."""
    rules = re.split(r"- alert: ", re.sub(r"^ *#.*\n", "", ALERTS.read_text(), flags=re.MULTILINE))[1:]
    found = {}
    for rule in rules:
        lines = re.search(r"expr: (?:>-\n)?(.*?)\n +(?:for|labels):", rule, re.DOTALL)
        assert lines is not None, rule
        found[rule.splitlines()[0]] = " ".join(lines[1].split())
    return found


SELECTOR = re.compile(r"\b((?:chatserver|process)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')


def complaints(query: str, found: Scrape) -> Iterator[str]:
    """What a query asks for that no scrape has."""
    labels = OF_PROMETHEUS | OF_WORKERS
    for name, matchers in SELECTOR.findall(query):
        samples = [each for each in found.samples if each.name == name]
        if not samples:
            yield f"no {name}"
            continue
        labels |= {label for each in samples for label in each.labels}
        for label, operator, value in MATCHER.findall(matchers or ""):
            if label in OF_PROMETHEUS:
                continue
            for part in value.split("|"):
                if operator != "!=" and not any(re.fullmatch(part, each.labels.get(label, "")) for each in samples):
                    yield f"no {name} has {label} {part}"
                elif operator == "!=" and not any(each.labels.get(label) == part for each in samples):
                    yield f"no {name} has {label} {part}, so that nothing is left out"
    for group in re.findall(r"by \(([^)]*)\)", query):
        yield from (f"nothing has {label}" for label in re.split(r", *", group) if label not in labels)


@asynccontextmanager
async def loaded() -> AsyncIterator[LiveServer]:
    """A server with which all has happened that a query may ask for."""
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as server:
        upstream.always(*say("Hello you.", 3))
        await play(server, upstream)
        yield server


async def play(server: LiveServer, upstream: FakeUpstream) -> None:
    upstream.script(*refuse(500))
    upstream.script(*call("calculator", {"expression": "17*23"}))
    await documents_of(await WS.start(server, {"message": "x"}, headers=of("ann")))
    for status in (401, 429):
        upstream.script(*refuse(status))
        await documents_of(await WS.start(server, {"message": "x"}, headers=of("ann")))
    await request(server, "GET", "/chat/models")
    async with await WsReader.connect(server) as reader:
        await reader.closing()
    await until(server, 3, "chatserver_runs_ended_total")


async def test_each_query_finds_what_it_asks_for() -> None:
    async with loaded() as server:
        found = await scrape(server)
    queries = dashboard_queries() | alert_queries()
    assert len(queries) > 30
    # What only happens to a server in trouble cannot be played here; each code of a refusal is one of errors.py.
    in_trouble = {f"no chatserver_refusals_total has code {code}" for code in ("unavailable", "overloaded")}
    wrong = {name: set(complaints(query, found)) - in_trouble for name, query in queries.items()}
    assert {name: said for name, said in wrong.items() if said} == {}


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("rate(chatserver_attic_total[1m])", "no chatserver_attic_total"),
        ('chatserver_runs{state="attic"}', "no chatserver_runs has state attic"),
        ('chatserver_runs{state!="attic"}', "no chatserver_runs has state attic, so that nothing is left out"),
        ('chatserver_runs{attic=~"running"}', "no chatserver_runs has attic running"),
        ('chatserver_runs_ended_total{reason=~"stop|attic_.*"}', "no chatserver_runs_ended_total has reason attic_.*"),
        ("sum by (state, attic) (chatserver_runs)", "nothing has attic"),
        ("chatserver_run_seconds", "no chatserver_run_seconds"),
    ],
)
async def test_a_query_that_finds_nothing_is_told(query: str, complaint: str) -> None:
    async with loaded() as server:
        assert list(complaints(query, await scrape(server))) == [complaint]


def test_a_dashboard_shows_every_metric() -> None:
    asked = " ".join([*dashboard_queries().values(), *alert_queries().values()])
    names = [family.name for each in vars(Instruments(CollectorRegistry())).values() for family in each.describe()]
    assert [name for name in names if name not in asked] == []


@asynccontextmanager
async def prometheus(server: LiveServer, folder: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A real Prometheus that scrapes the server each second, with the alert rules."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": "chatserver", "static_configs": [{"targets": [f"{server.host}:{server.port}"]}]}
        ],
    }
    await anyio.Path(folder, "config.yml").write_text(json.dumps(config))  # JSON is YAML.
    options = {"config.file": folder / "config.yml", "storage.tsdb.path": folder / "data"}
    command = [program, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    command += [f"--{name}={value}" for name, value in options.items()]
    async with await anyio.open_process(command, stdin=None, stdout=None, stderr=None) as process:
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client:
                yield client
        finally:
            process.terminate()


async def asked(client: httpx2.AsyncClient, query: str) -> Any:
    """The result of a query now; None: Prometheus is not there yet."""
    try:
        answer = (await client.get("/query", params={"query": query})).json()
    except (httpx2.HTTPError, ValueError):
        return None
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


async def found(client: httpx2.AsyncClient, query: str) -> None:
    """Wait until the query has a result."""
    with anyio.fail_after(WAIT_SECONDS):
        while not await asked(client, query):  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.1)


async def test_a_real_prometheus_answers_each_query(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as server:
        upstream.always(*say("Hello you.", 3))
        async with prometheus(server, tmp_path) as client:
            await found(client, "chatserver_runs")
            await play(server, upstream)
            await found(client, 'rate(chatserver_upstream_failures_total{code="auth_failed"}[1m])')
            empty = [name for name, query in dashboard_queries().items() if not await asked(client, query)]
            for query in alert_queries().values():
                assert await asked(client, query) is not None
            assert [each["value"][1] for each in await asked(client, "up")] == ["1"]
            targets = (await client.get("/targets")).json()["data"]["activeTargets"]
            assert [each["lastError"] for each in targets] == [""]
    assert empty == []
