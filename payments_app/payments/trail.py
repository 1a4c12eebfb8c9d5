"""The trail of an engine's step: its log lines and its span say which payment it is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from payments_app.kernel import tracing
from payments_app.kernel.tracing import Kind, Span
from payments_app.payments.claims import Claim
from payments_app.payments.exchange_pool import ExchangeResult
from payments_app.payments.model import Payment
from payments_app.providers.contract import Observation


@contextmanager
def on_trail_of(claim: Claim, *, caused_by: str | None) -> Iterator[Span]:
    """Do a claimed step. Its place in a trace is the row's, whichever doorbell or clock came first."""
    payment = claim.payment
    with (
        structlog.contextvars.bound_contextvars(**_ids(payment)),
        tracing.span(f"payment {claim.step}", Kind.INTERNAL, parent=payment.traceparent) as span,
    ):
        span.link(caused_by)
        span.note(
            {
                tracing.PAYMENT: str(payment.id),
                tracing.TENANT: str(payment.tenant_id),
                tracing.PROVIDER: payment.provider,
                "maramoja.generation": claim.generation,
            }
        )
        yield span


@contextmanager
def back_on_trail_of(finding: ExchangeResult) -> Iterator[None]:
    """Tell of the step once more, when it has ended."""
    ids = _ids(finding.claim.payment)
    with structlog.contextvars.bound_contextvars(**ids), tracing.under(finding.span):
        yield


def _ids(payment: Payment) -> dict[str, str]:
    return {"payment_id": str(payment.id), "tenant_id": str(payment.tenant_id)}


def note_outcome(seen: Observation) -> None:
    """What the step learned: two constant words."""
    words = {tracing.OUTCOME: str(seen.verdict), "maramoja.reason": seen.reason}
    tracing.current().note(words)
