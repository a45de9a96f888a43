"""Traces: which spans there are, what they say and what they never say, where they go, and that they may be off."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any
from unittest.mock import patch

import anyio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from chatserver import app
from chatserver.errors import SettingsError
from chatserver.settings import Settings
from chatserver.telemetry.traces import Traces
from tests.clients import TRANSPORTS, WS, Transport, WsReader, cancel, documents_of, request
from tests.fake_upstream import Done, FakeUpstream, Gate, call, finish, refuse, say, token, usage
from tests.live import LiveServer, ServerProcess, live_server

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 20.0
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
CANARY = "canary-4711"


@asynccontextmanager
async def traced(upstream: FakeUpstream, **settings: Any) -> AsyncIterator[tuple[LiveServer, InMemorySpanExporter]]:
    """A server whose spans stay in memory."""
    exporter = InMemorySpanExporter()

    def metrics(settings: Settings) -> Traces:
        return Traces(settings.models_offered, SimpleSpanProcessor(exporter))

    with patch.object(app, "_metrics", metrics):
        async with live_server(upstream.url, **settings) as server:
            yield server, exporter


async def spans(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    """The ended spans, in the order in which they began, as soon as there are so many."""
    with anyio.fail_after(WAIT_SECONDS):
        while len(exporter.get_finished_spans()) < count:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.01)
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_a_run_with_a_tool_is_a_tree_of_spans(transport: Transport) -> None:
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.script(*call("calculator", {"expression": "17*23"}, id="call_7"))
        upstream.script(token("It is"), token(" 391."), finish(), usage(30, 5), Done())
        reading = await transport.start(server, {"message": "17*23?"})
        await documents_of(reading)
        run, first, tool, second = await spans(exporter, 4)
    assert [span.name for span in (run, first, tool, second)] == [
        "invoke_agent chatserver",
        "chat gpt-4o-mini",
        "execute_tool calculator",
        "chat gpt-4o-mini",
    ]
    assert [span.kind for span in (run, first, tool)] == [SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL]
    assert run.parent is None and run.context is not None
    assert all(span.parent and span.parent.span_id == run.context.span_id for span in (first, tool, second))
    said = about(run)
    assert said["chatserver.run_id"] == reading.run_id and said["gen_ai.operation.name"] == "invoke_agent"
    assert said["gen_ai.response.finish_reasons"] == ("stop",) and said["gen_ai.usage.output_tokens"] > 4
    assert about(first)["gen_ai.response.finish_reasons"] == ("tool_calls",)
    said = about(second)
    assert said.pop("gen_ai.response.time_to_first_chunk") > 0
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "server.address": "127.0.0.1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 5,
    }
    assert about(tool) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "calculator",
        "gen_ai.tool.call.id": "call_7",
        "gen_ai.tool.type": "function",
    }
    assert all(span.status.status_code is StatusCode.UNSET for span in (run, first, tool, second))


async def test_failures_and_retries_are_in_the_spans() -> None:
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.script(*refuse(500))
        upstream.script(*call("calculator", {"expression": "1/0"}))
        upstream.script(*refuse(429))
        await documents_of(await WS.start(server, {"message": "x"}))
        run, first, tool, second = await spans(exporter, 4)
    assert [(event.name, dict(event.attributes or {})) for event in first.events] == [
        ("retry", {"error.type": "upstream_unavailable"})
    ]
    assert first.status.status_code is StatusCode.UNSET
    for span, code in ((run, "rate_limited"), (tool, "tool_error"), (second, "rate_limited")):
        assert (about(span)["error.type"], span.status.status_code) == (code, StatusCode.ERROR)
        assert span.status.description is None and not [each for each in span.events if each.name == "exception"]


async def test_a_cancelled_run_is_no_failure() -> None:
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.script(token("Hello"), Gate(anyio.Event()))
        async with await WS.start(server, {"message": "x"}) as reading:
            await reading.take(2)
            await cancel(server, reading.run_id)
            await documents_of(reading)
        run, turn = await spans(exporter, 2)
    assert about(run)["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert {span.status.status_code for span in (run, turn)} == {StatusCode.UNSET}


@pytest.mark.parametrize("transport", TRANSPORTS, ids=repr)
async def test_the_trace_of_a_request_goes_on_to_the_model_server(transport: Transport) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "shop=1"}
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.script(*say("Hello."))
        await documents_of(await transport.start(server, {"message": "x"}, headers=headers))
        run, turn = await spans(exporter, 2)
    assert run.parent is not None and f"{run.parent.span_id:016x}" == PARENT_ID
    assert run.context is not None and f"{run.context.trace_id:032x}" == TRACE_ID
    assert turn.context is not None
    sent = upstream.requests[-1].headers
    assert sent["traceparent"] == f"00-{TRACE_ID}-{turn.context.span_id:016x}-01"
    assert sent["tracestate"] == "shop=1" and sent["content-type"] == "application/json"


@pytest.mark.parametrize("wrong", ["", "x", f"{TRACEPARENT[:-2]}zz", f"00-{'0' * 32}-{PARENT_ID}-01", "00" * 5000])
async def test_a_traceparent_that_is_none_begins_a_trace(wrong: str) -> None:
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.script(*say("Hello."))
        response = await request(server, "POST", "/chat/stream", {"message": "x"}, {"traceparent": wrong})
        assert response.status == 200
        run, _ = await spans(exporter, 2)
    assert run.parent is None


async def test_each_run_of_a_websocket_is_under_the_trace_of_its_handshake() -> None:
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.always(*say("Hello."))
        async with await WsReader.connect(server, headers={"traceparent": TRACEPARENT}) as reader:
            for _ in range(2):
                await reader.run({"message": "x"})
                await reader.until("done")
        found = await spans(exporter, 4)
    assert [span.parent is not None and f"{span.parent.span_id:016x}" == PARENT_ID for span in found].count(True) == 2


async def test_no_text_is_in_a_span() -> None:
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.script(*call("calculator", {"expression": CANARY}))
        upstream.script(*call(CANARY, {CANARY: CANARY}))
        upstream.script(token(CANARY), *refuse(400, {"message": CANARY})[1:])
        body = {"message": CANARY, "system": CANARY, "session_id": CANARY, "idempotency_key": CANARY}
        await documents_of(await WS.start(server, body))
        await spans(exporter, 5)
    found = exporter.get_finished_spans()
    assert len(found) == 5  # A run, three turns, one call of a tool that there is.
    assert CANARY not in "".join(span.to_json() for span in found)


async def test_a_run_has_as_many_spans_however_many_tokens_it_has() -> None:
    async with FakeUpstream() as upstream, traced(upstream) as (server, exporter):
        upstream.script(*say("x" * 500, pieces=500))
        await documents_of(await WS.start(server, {"message": "x"}))
        found = await spans(exporter, 2)
    assert len(found) == 2 and [len(span.events) for span in found] == [0, 0]


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver: decodes what comes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: list[tuple[str, str | None]] = []
        self.is_silent = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Any]:
        return [
            span
            for each in self.requests
            for resource in each.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.server.paths.append((self.path, self.headers["x-key"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(of: Any) -> Mapping[str, str]:
    return {each.key: each.value.string_value for each in of.attributes}


async def test_spans_reach_a_collector_with_the_resource_of_the_environment(
    collector: Collector, tmp_path: Path
) -> None:
    environment = {
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=k",
    }
    async with FakeUpstream() as upstream:
        upstream.script(*say("Hello."))
        async with ServerProcess(
            upstream.url, tmp_path, environment=environment, otel_exporter_otlp_endpoint=f"{collector.url}/"
        ) as server:
            await documents_of(await WS.start(server, {"message": "x"}))
            server.terminate()
            assert await server.wait() == 0
    assert {span.name for span in collector.spans()} == {"invoke_agent chatserver", "chat gpt-4o-mini"}
    assert set(collector.paths) == {("/v1/traces", "k")}
    resource = attributes(collector.requests[0].resource_spans[0].resource)
    assert resource["service.name"] == "chatserver" and resource["deployment.environment.name"] == "test"
    assert re.match(r"\d", resource["service.version"])


async def test_a_collector_that_is_gone_disturbs_no_run_and_delays_no_end(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        upstream.script(*say("Hello."))
        with Collector() as gone:
            silent = gone.url  # It listens, and answers nothing.
            async with ServerProcess(upstream.url, tmp_path, otel_exporter_otlp_endpoint=silent) as server:
                documents = await documents_of(await WS.start(server, {"message": "x"}))
                assert json.loads(documents[-1])["type"] == "done"
                server.terminate()
                began = monotonic()
                assert await server.wait() == 0
                assert monotonic() - began < 8


@pytest.mark.parametrize("is_traced", [False, True])
async def test_only_a_server_that_exports_traces_imports_opentelemetry(is_traced: bool) -> None:
    endpoint = "http://127.0.0.1:9" if is_traced else None
    program = (
        "import sys; from chatserver.app import create_app; from chatserver.settings import Settings;"
        f"create_app(Settings(otel_exporter_otlp_endpoint={endpoint!r}));"
        # Litestar, whether it is used or not, looks for the packages beside these.
        "print('opentelemetry.sdk' in sys.modules or 'opentelemetry.trace' in sys.modules)"
    )
    done = await anyio.run_process([sys.executable, "-c", program], stderr=subprocess.STDOUT)
    assert done.stdout.decode().split()[-1] == str(is_traced)


def test_without_the_package_the_server_says_what_is_missing() -> None:
    gone, said = {"chatserver.telemetry.traces": None}, "OTEL_EXPORTER_OTLP_ENDPOINT: needs the package"
    with patch.dict(sys.modules, gone), pytest.raises(SettingsError, match=said):
        app.create_app(Settings(otel_exporter_otlp_endpoint="http://127.0.0.1:9"))
