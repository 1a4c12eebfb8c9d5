"""The span of a payment step: its log lines and the span name the payment."""

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
def payment_span(claim: Claim, *, caused_by: str | None) -> Iterator[Span]:
    """The span of a claimed step. Its trace is the payment's, whatever started the step."""
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
def resume_span(finding: ExchangeResult) -> Iterator[None]:
    """Log in the step's span once more, after it has ended."""
    ids = _ids(finding.claim.payment)
    with structlog.contextvars.bound_contextvars(**ids), tracing.under(finding.span):
        yield


def _ids(payment: Payment) -> dict[str, str]:
    return {"payment_id": str(payment.id), "tenant_id": str(payment.tenant_id)}


def note_outcome(seen: Observation) -> None:
    """Add the step's outcome to the span: two constant words."""
    words = {tracing.OUTCOME: str(seen.verdict), "maramoja.reason": seen.reason}
    tracing.current().note(words)
