"""Where we stand in a trace, and spans, if they are switched on.

OpenTelemetry is otel.py's business, which nothing loads unless it is configured. Without it the
caller's context is carried all the same: to log lines, the payment's row and the tenant's webhooks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Final, Protocol

from structlog.typing import EventDict, WrappedLogger

from payments_app.kernel.trace_context import ids_of
from payments_app.kernel.wire import Answer, Silence

# What a span tells: ids and constant words of ours, never what somebody wrote.
PAYMENT: Final = "maramoja.payment_id"
TENANT: Final = "maramoja.tenant_id"
PROVIDER: Final = "maramoja.provider"
OPERATION: Final = "maramoja.operation"
OUTCOME: Final = "maramoja.outcome"
STATUS: Final = "http.response.status_code"
Attributes = Mapping[str, str | int]
_HTTP_ERROR: Final = 400


class Kind(StrEnum):
    """A span's part in a conversation."""

    SERVER = "SERVER"
    CLIENT = "CLIENT"
    CONSUMER = "CONSUMER"
    INTERNAL = "INTERNAL"


class Span:
    """A piece of work. This one records nothing: it carries the context on as it came."""

    # Its own id, where it has one.
    span_id: str | None = None

    def __init__(self, traceparent: str | None) -> None:
        """`traceparent`: what others are told, to hang their own spans below it."""
        self.traceparent = traceparent

    def rename(self, name: str) -> None:
        """Call it so, now that it is known what it is."""

    def note(self, attributes: Attributes) -> None:
        """Add what is known of it by now."""

    def link(self, traceparent: str | None) -> None:
        """Point to another span that this one has to do with, if there is one."""

    def fail(self, why: str) -> None:
        """It went wrong. `why`: a constant word, or the name of a class."""

    def end(self) -> None:
        """It is over."""


class Tracer(Protocol):
    """Opens spans."""

    def open(self, name: str, kind: Kind, parent: str | None) -> Span:
        """A span below `parent`, a traceparent; without one the first of a new trace."""
        ...


class _Off:
    def open(self, _name: str, _kind: Kind, parent: str | None) -> Span:
        return Span(parent)


_tracer: Tracer = _Off()
_current: ContextVar[Span] = ContextVar("span", default=Span(None))  # noqa: B039  it never changes


def start_tracing(exporter: str | None) -> None:
    """Send the spans of this process to `exporter`, or have none. To be called after any fork."""
    global _tracer  # noqa: PLW0603  one tracer a process, chosen as it starts
    if exporter is None:
        _tracer = _Off()
    else:
        _tracer = importlib.import_module("payments_app.kernel.otel").tracer(exporter)


@contextmanager
def span(name: str, kind: Kind, *, parent: str | None) -> Iterator[Span]:
    """Do the block as one piece of work below `parent`: `here()`, or what came with the work."""
    opened = _tracer.open(name, kind, parent)
    before = _current.set(opened)
    try:
        yield opened
    except BaseException as error:
        # Its text could hold anything.
        opened.fail(type(error).__name__)
        raise
    finally:
        _current.reset(before)
        opened.end()


@contextmanager
def under(span: Span) -> Iterator[None]:
    """Do the block where `span` was, which has ended: for what is told of it later."""
    before = _current.set(span)
    try:
        yield
    finally:
        _current.reset(before)


def current() -> Span:
    """What is being done now."""
    return _current.get()


def here() -> str | None:
    """Its traceparent."""
    return _current.get().traceparent


def note_answer(came: Answer | Silence) -> None:
    """What came back of an exchange: its status, or the word for why none did."""
    if isinstance(came, Silence):
        current().fail(came.why)
        return
    current().note({STATUS: came.status})
    if came.status >= _HTTP_ERROR:
        current().fail(str(came.status))


def stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: each line says in whose trace, and in which span of ours, it stands."""
    span = _current.get()
    if span.traceparent is not None:
        event["trace_id"] = ids_of(span.traceparent)[0]
    if span.span_id is not None:
        event["span_id"] = span.span_id
    return event
