"""Traces by OpenTelemetry: a span a run, a turn and a tool call, named after the GenAI semantic conventions.

No text of a user, of a model or of a tool is in a span. Only a server that exports traces imports this module.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import TypeAlias

import anyio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from chatserver import __version__
from chatserver.errors import UpstreamError
from chatserver.events import Done, Terminal, Usage
from chatserver.telemetry import Pace
from chatserver.telemetry.metrics import Metrics, RunMetrics, ToolMetrics, TurnMetrics

AGENT = "chatserver"
PROVIDER = "openai"
"""The API that the model server speaks, whoever runs the model server."""

TRACES_PATH = "/v1/traces"
LAST_SPANS_SECONDS = 1.0
"""How long a server that ends waits for a collector to take the last spans."""

Parent: TypeAlias = Span | Mapping[str, str]
"""A span of this server, or the headers that name a caller's span, if they do."""

_W3C = TraceContextTextMapPropagator()


class Traces(Metrics):
    """Metrics, and spans beside them. The SDK's own variables say where the spans go and which ones are sampled."""

    def __init__(self, models: tuple[str, ...], processor: SpanProcessor) -> None:
        super().__init__(models)
        own = Resource({"service.name": AGENT, "service.version": __version__})
        # Not ended by the SDK at exit: there it would wait for a collector that is gone.
        self._spans = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._spans.add_span_processor(processor)
        self._tracer = self._spans.get_tracer(AGENT, __version__)

    async def close(self) -> None:
        """Send the last spans. A collector that does not take them is left."""
        loop, sent = asyncio.get_running_loop(), anyio.Event()

        def send() -> None:
            self._spans.shutdown()
            with suppress(RuntimeError):  # The loop has ended meanwhile.
                loop.call_soon_threadsafe(sent.set)

        Thread(target=send, daemon=True, name="last spans").start()  # A daemon, or the process would wait for it.
        with anyio.move_on_after(LAST_SPANS_SECONDS):
            await sent.wait()

    def run(self, run_id: str, model: str, carrier: Mapping[str, str]) -> "RunSpan":
        return RunSpan(self, run_id, model, carrier)

    def begin(
        self, operation: str, subject: str, kind: SpanKind, parent: Parent, attributes: Mapping[str, AttributeValue]
    ) -> Span:
        """A span that has begun."""
        context = set_span_in_context(parent) if isinstance(parent, Span) else _W3C.extract(parent)
        attributes = {"gen_ai.operation.name": operation, **attributes}
        return self._tracer.start_span(f"{operation} {subject}", context, kind, attributes)


def exported(endpoint: str) -> SpanProcessor:
    """Spans go to a collector in batches, from a thread."""
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES_PATH))


class RunSpan(RunMetrics):
    """The span of a run. That of a run which never came to the disk does not end, and so is not exported."""

    def __init__(self, traces: Traces, run_id: str, model: str, carrier: Mapping[str, str]) -> None:
        super().__init__(traces)
        self._traces = traces
        about = {"gen_ai.agent.name": AGENT, "gen_ai.request.model": model, "chatserver.run_id": run_id}
        self._span = traces.begin("invoke_agent", AGENT, SpanKind.SERVER, carrier, about)

    def ended(self, terminal: Terminal, usage: Usage) -> None:
        super().ended(terminal, usage)
        self._end(terminal, usage)

    def lost(self, terminal: Terminal, usage: Usage) -> None:
        super().lost(terminal, usage)
        self._end(terminal, usage)

    def _end(self, terminal: Terminal, usage: Usage) -> None:
        if isinstance(terminal, Done):
            self._span.set_attribute("gen_ai.response.finish_reasons", [terminal.finish_reason])
        else:
            _fail(self._span, terminal.code)
        _count(self._span, usage)
        self._span.end()

    def parked(self) -> None:
        self._span.add_event("parked")
        self._span.end()

    def turn(self, model: str, server: str | None) -> "TurnSpan":
        about = {"gen_ai.provider.name": PROVIDER, "gen_ai.request.model": model, "server.address": server or ""}
        span = self._traces.begin("chat", model, SpanKind.CLIENT, self._span, about)
        return TurnSpan(self._traces, model, span)

    def tool(self, name: str, call_id: str) -> "ToolSpan":
        about = {"gen_ai.tool.name": name, "gen_ai.tool.call.id": call_id, "gen_ai.tool.type": "function"}
        span = self._traces.begin("execute_tool", name, SpanKind.INTERNAL, self._span, about)
        return ToolSpan(self._traces, name, span)


class TurnSpan(TurnMetrics):
    """The span of a turn, and the headers that make it the parent of what the model server does."""

    def __init__(self, traces: Traces, model: str, span: Span) -> None:
        super().__init__(traces.instruments, traces.label(model))
        self._span = span
        headers: dict[str, str] = {}
        _W3C.inject(headers, set_span_in_context(span))
        self.headers = headers

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, UpstreamError):  # Any other one is how a cancel, or a limit of the run, ends a turn.
            _fail(self._span, error.code)
        self._span.end()

    def failed(self, code: str, *, is_retried: bool) -> None:
        super().failed(code, is_retried=is_retried)
        if is_retried:
            self._span.add_event("retry", {"error.type": code})

    def streamed(self, pace: Pace) -> None:
        super().streamed(pace)
        if pace.first_at is not None:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", pace.first_at - self._asked_at)

    def finished(self, reason: str, usage: Usage | None) -> None:
        super().finished(reason, usage)
        self._span.set_attribute("gen_ai.response.finish_reasons", [reason])
        if usage is not None:
            _count(self._span, usage)


class ToolSpan(ToolMetrics):
    """The span of a tool call."""

    def __init__(self, traces: Traces, name: str, span: Span) -> None:
        super().__init__(traces.instruments, name)
        self._span = span

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        super().__exit__(kind, error, trace)
        self._span.end()

    def returned(self, *, is_error: bool) -> None:
        super().returned(is_error=is_error)
        if is_error:
            _fail(self._span, "tool_error")


def _fail(span: Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def _count(span: Span, usage: Usage) -> None:
    span.set_attribute("gen_ai.usage.input_tokens", usage.input_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", usage.output_tokens)
