"""The trail of an engine's step: its log lines and its span say which payment it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from payments_app.kernel import tracing
from payments_app.kernel.tracing import Kind
from payments_app.payments.model import Payment
from payments_app.payments.states import Step
from payments_app.providers.contract import Observation


@contextmanager
def on_trail_of(payment: Payment, step: Step, generation: int) -> Iterator[None]:
    """Do a claimed step. Its place in a trace is the row's, whichever doorbell or clock came first."""
    rung_by = tracing.here()
    ids = {"payment_id": str(payment.id), "tenant_id": str(payment.tenant_id)}
    with (
        structlog.contextvars.bound_contextvars(**ids),
        tracing.span(f"payment {step}", Kind.INTERNAL, parent=payment.traceparent) as span,
    ):
        span.link(rung_by)
        span.note(
            {
                tracing.PAYMENT: str(payment.id),
                tracing.TENANT: str(payment.tenant_id),
                tracing.PROVIDER: payment.provider,
                "maramoja.generation": generation,
            }
        )
        yield


def note_outcome(seen: Observation) -> None:
    """What the step learned: two constant words."""
    words = {tracing.OUTCOME: str(seen.verdict), "maramoja.reason": seen.reason}
    tracing.current().note(words)
