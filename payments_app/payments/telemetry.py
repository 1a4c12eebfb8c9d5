"""Spans, log context and counters of payment steps. Counters count after the commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.orm import Session

from payments_app.kernel import metrics, tracing
from payments_app.kernel.database import after_commit
from payments_app.kernel.tracing import Kind, Span
from payments_app.payments.claims import Claim
from payments_app.payments.exchange_pool import ExchangeResult
from payments_app.payments.model import Payment
from payments_app.payments.states import Step
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


log = structlog.get_logger(__name__)


def count_answer(payment: Payment, step: Step, seen: Observation) -> Observation:
    """Count one exchange with the provider. An answer that could not be read is logged."""
    metrics.provider_answers.labels(payment.provider, step, seen.verdict).inc()
    metrics.provider_exchange_seconds.labels(payment.provider, step).observe(seen.elapsed_s)
    if seen.is_unread:
        log.warning(
            "provider.answer_unread",
            provider=payment.provider,
            operation=step,
            reason=seen.reason,
            http_status=seen.http_status,
        )
    return seen


def count_fenced(session: Session) -> None:
    """Count a result whose payment another worker has claimed since, or that was final."""
    after_commit(session, metrics.fenced_writes.inc)


def count_end(session: Session, payment: Payment) -> None:
    """Count the payment's end, after this transaction's commit."""
    after_commit(session, lambda: _count_end(payment))


def _count_end(payment: Payment) -> None:
    failure = payment.failure_code or "none"
    metrics.payments_final.labels(payment.provider, payment.mode, payment.status, failure).inc()
    if payment.final_at is not None:
        # The two times are of different machines' clocks.
        took_s = max(0.0, (payment.final_at - payment.created_at).total_seconds())
        metrics.time_to_final_seconds.labels(payment.provider, payment.status).observe(took_s)
