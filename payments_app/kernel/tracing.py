"""The current trace context, and spans, if tracing is switched on.

Only otel.py uses OpenTelemetry; it is loaded only if tracing is configured. Without it the caller's
context is still passed on: to log lines, the payment's row and the tenant's webhooks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Final, Protocol

from structlog.typing import EventDict, WrappedLogger

from payments_app.kernel.http.messages import HttpResponse, NoResponse
from payments_app.kernel.trace_context import ids_of

# A span's attributes: ids and our own constant words, never user input.
PAYMENT: Final = "maramoja.payment_id"
TENANT: Final = "maramoja.tenant_id"
PROVIDER: Final = "maramoja.provider"
OPERATION: Final = "maramoja.operation"
OUTCOME: Final = "maramoja.outcome"
STATUS: Final = "http.response.status_code"
Attributes = Mapping[str, str | int]
_HTTP_ERROR: Final = 400


class Kind(StrEnum):
    """A span's kind, as in OpenTelemetry."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"
    CONSUMER = "CONSUMER"
    INTERNAL = "INTERNAL"


class Span:
    """A piece of work. This class records nothing: it passes the caller's context on unchanged."""

    # Its own id, if it is recorded.
    span_id: str | None = None

    def __init__(self, traceparent: str | None) -> None:
        """`traceparent`: the parent for other services' and our own child spans."""
        self.traceparent = traceparent

    def rename(self, name: str) -> None:
        """Change the name, once it is known."""

    def note(self, attributes: Attributes) -> None:
        """Add these attributes."""

    def link(self, traceparent: str | None) -> None:
        """Link to another span that is related to this one, if there is one."""

    def fail(self, why: str) -> None:
        """Mark it as failed. `why`: a constant word, or the name of a class."""

    def end(self) -> None:
        """End the span."""


class Tracer(Protocol):
    """Starts spans."""

    def open(self, name: str, kind: Kind, parent: str | None) -> Span:
        """A child span of `parent`, a traceparent; without one, the root of a new trace."""
        ...


class _Off:
    def open(self, _name: str, _kind: Kind, parent: str | None) -> Span:
        return Span(parent)


_tracer: Tracer = _Off()
_current: ContextVar[Span] = ContextVar("span", default=Span(None))  # noqa: B039  it never changes


def start_tracing(exporter: str | None) -> None:
    """Send the spans of this process to `exporter`; None: record none. Call it after any fork."""
    global _tracer  # noqa: PLW0603  one tracer a process, chosen as it starts
    if exporter is None:
        _tracer = _Off()
    else:
        _tracer = importlib.import_module("payments_app.kernel.otel").tracer(exporter)


@contextmanager
def span(name: str, kind: Kind, *, parent: str | None) -> Iterator[Span]:
    """Run the block in a child span of `parent`: `here()`, or the traceparent of the work."""
    opened = _tracer.open(name, kind, parent)
    before = _current.set(opened)
    try:
        yield opened
    except BaseException as error:
        # Only the class: the message could hold a secret or a phone number.
        opened.fail(type(error).__name__)
        raise
    finally:
        _current.reset(before)
        opened.end()


@contextmanager
def under(span: Span) -> Iterator[None]:
    """Run the block in the context of `span`, which has ended: for later log lines about it."""
    before = _current.set(span)
    try:
        yield
    finally:
        _current.reset(before)


def current() -> Span:
    """The current span."""
    return _current.get()


def here() -> str | None:
    """The current span's traceparent."""
    return _current.get().traceparent


def note_answer(came: HttpResponse | NoResponse) -> None:
    """Add an exchange's result to the current span: its status, or the reason for no response."""
    if isinstance(came, NoResponse):
        current().fail(came.why)
        return
    current().note({STATUS: came.status})
    if came.status >= _HTTP_ERROR:
        current().fail(str(came.status))


def stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor that adds the trace id, and our span's id, to each log line."""
    span = _current.get()
    if span.traceparent is not None:
        event["trace_id"] = ids_of(span.traceparent)[0]
    if span.span_id is not None:
        event["span_id"] = span.span_id
    return event
