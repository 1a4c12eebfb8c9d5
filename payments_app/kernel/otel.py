"""OpenTelemetry spans. The only module that uses the SDK; nothing imports it, tracing.py loads it.

The SDK reads where spans go, how many are sampled and how they are batched, from the environment
variables that all services of an operator share: docs/traces.md. A failure here stops no payment.
"""

from __future__ import annotations

import logging
from typing import Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.logs import masked
from payments_app.kernel.trace_context import ids_of
from payments_app.kernel.tracing import Attributes, Kind, Span, Tracer

log = structlog.get_logger(__name__)

SERVICE: Final = "maramoja"
# How long a process that ends waits for its last spans to be sent: a deploy doesn't wait for a
# collector that is unavailable.
FLUSH_MAX_MS: Final = 3000
# With an unavailable collector each batch fails: each kind of failure is logged this often.
SAY_EVERY_S: Final = 60.0
_EXPORTERS: Final[dict[str, type[SpanExporter]]] = {
    "otlp": OTLPSpanExporter,
    "console": ConsoleSpanExporter,
}


def tracer(exporter: str) -> Tracer:
    """A tracer, with a thread that exports spans until the process ends."""
    _hush()
    provider = TracerProvider(resource=_resource())
    provider.add_span_processor(_Batches(_EXPORTERS[exporter]()))
    return _Tracer(provider.get_tracer("payments_app"))


class _Batches(BatchSpanProcessor):
    """Ending a span costs an append to a queue in memory. A full queue drops spans."""

    def shutdown(self) -> None:
        """Flush, for FLUSH_MAX_MS at most."""
        self._batch_processor.shutdown(timeout_millis=FLUSH_MAX_MS)


class _Tracer:
    def __init__(self, ours: trace.Tracer) -> None:
        self._ours = ours

    def open(self, name: str, kind: Kind, parent: str | None) -> Span:
        # Never the SDK's own current context: the parent is the one that is given, or none.
        below = Context()
        if parent is not None:
            below = trace.set_span_in_context(NonRecordingSpan(_context(parent)), below)
        return _Recorded(self._ours.start_span(name, below, SpanKind[kind]))


class _Recorded(Span):
    def __init__(self, span: trace.Span) -> None:
        context = span.get_span_context()
        self.span_id = trace.format_span_id(context.span_id)
        trace_id = trace.format_trace_id(context.trace_id)
        super().__init__(f"00-{trace_id}-{self.span_id}-{context.trace_flags:02x}")
        self._span = span

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def note(self, attributes: Attributes) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name, masked(value) if isinstance(value, str) else value)

    def link(self, traceparent: str | None) -> None:
        if traceparent is not None:
            self._span.add_link(_context(traceparent))

    def fail(self, why: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attribute("error.type", masked(why))

    def end(self) -> None:
        self._span.end()


def _context(traceparent: str) -> SpanContext:
    trace_id, span_id, flags = ids_of(traceparent)
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(flags)
    )


def _resource() -> Resource:
    """The operator's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, or our service name."""
    found = Resource.create()
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return found.merge(Resource({SERVICE_NAME: SERVICE}))
    return found


class _Constant(logging.Handler):
    """The SDK's log lines quote headers, URLs and responses, so only their place is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._again_at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        place, now = f"{record.module}.{record.funcName}", boot_seconds()
        if now >= self._again_at.get(place, now):
            self._again_at[place] = now + SAY_EVERY_S
            log.warning("tracing.trouble", place=place)


def _hush() -> None:
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers[:] = [_Constant()]
    sdk.propagate = False
