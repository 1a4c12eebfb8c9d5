"""Decides what a provider's answer does to a payment: wait, check again, send again, or end.

Runs in the transaction that stores the answer. Only evidence ends a payment.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, assert_never

import structlog

from payments_app.payments import backoff
from payments_app.payments.evidence import (
    Evidence,
    evidence_of,
    may_have_left_before,
    possible_submissions,
    standing_refusal,
    unread_before,
)
from payments_app.payments.exchange_pool import ExchangeResult
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.payments.payment_events import append_to_batch, note_contradiction
from payments_app.payments.states import Event, Stage, Step
from payments_app.payments.telemetry import count_end, count_fenced
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import Capabilities, FailureCode, Observation, Verdict

log = structlog.get_logger(__name__)

# Log from this many submissions without effect; a power of two.
NOT_SENT_LOGGED: Final = 4


def apply_result(
    batch: WriteBatch,
    payment: Payment,
    result: ExchangeResult,
    exchange_id: int | None,
    gateway: PaymentGateway,
) -> None:
    """Apply the result if the claim is still valid; otherwise the answer is evidence only."""
    claim, seen = result.claim, result.seen
    if payment.generation != claim.generation or payment.is_final:
        count_fenced(batch.session)
        log.warning("payment.zombie_write", verdict=seen.verdict)
        note_contradiction(batch, payment, seen.verdict)
        return
    # The claim cleared `hinted` and set the time to its lease's end. If a callback was received
    # since, it has set `hinted`, and the time to when it wants the next status check.
    hinted, wanted_at = payment.hinted, payment.next_action_at
    payment.lease_until = None
    match claim.step:
        case Step.SUBMIT:
            _record_submission(batch, payment, seen, exchange_id, gateway)
        case Step.CHECK:
            _record_check(batch, payment, seen, exchange_id, gateway)
        case never:
            assert_never(never)
    if hinted and payment.next_action_at is not None and payment.next_step == Step.CHECK:
        # It goes first, but a callback never makes it earlier than the provider's Retry-After.
        asked_s = min(seen.retry_after_s or 0.0, backoff.RETRY_AFTER_MAX_S)
        payment.next_action_at = max(wanted_at or batch.now, batch.now + timedelta(seconds=asked_s))


def _record_submission(
    batch: WriteBatch,
    payment: Payment,
    seen: Observation,
    exchange_id: int | None,
    gateway: PaymentGateway,
) -> None:
    # Once a submission may have arrived, the stage is never SUBMITTING again.
    first_to_leave = payment.stage == Stage.SUBMITTING
    match seen.verdict:
        case Verdict.PENDING | Verdict.DUPLICATE:
            _record_taken(batch, payment, seen)
        case Verdict.SUCCESSFUL:
            settle(batch, payment, seen, exchange_id)
        case Verdict.REFUSED | Verdict.FAILED if _is_alone(batch, payment):
            settle(batch, payment, seen, exchange_id)
        case Verdict.NOT_SENT if first_to_leave and _may_go_again(payment, seen, gateway):
            payment.apply(Event.NOT_SENT, batch.now)
            _log_not_sent(payment, seen)
            delay = backoff.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.SUBMIT, batch.now, delay)
        case Verdict.NOT_SENT | Verdict.REFUSED | Verdict.FAILED:
            # A request may have arrived, and this answer proves nothing about that.
            if first_to_leave:
                move(batch, payment, Event.UNKNOWN, reason="sent_before")
            delay = backoff.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.CHECK, batch.now, delay)
        case Verdict.UNKNOWN | Verdict.NOT_FOUND:
            move(batch, payment, Event.UNKNOWN, reason=seen.reason)
            _act_again(payment, Step.CHECK, batch.now, backoff.first_check_s(seen.retry_after_s))
        case never:
            assert_never(never)


def distrusted(seen: Observation) -> Observation:
    """A result for another merchant than the payment was accepted for.

    A reference that is found there still proves it. One that isn't found proves nothing; else we
    would send the payment a second time, for another merchant.
    """
    if seen.verdict is Verdict.NOT_FOUND:
        return replace(seen, verdict=Verdict.UNKNOWN, reason="merchant_changed")
    return seen


def _log_not_sent(payment: Payment, seen: Observation) -> None:
    """Log at 4, 8, 16 … submissions without effect: one or two are usual."""
    tries = payment.submissions
    if tries >= NOT_SENT_LOGGED and tries & (tries - 1) == 0:
        log.warning(
            "payment.not_sent", provider=payment.provider, reason=seen.reason, submissions=tries
        )


def _is_alone(batch: WriteBatch, payment: Payment) -> bool:
    """Whether this is the only submission of which a request can have been sent."""
    return payment.stage == Stage.SUBMITTING and not may_have_left_before(batch, payment)


def _may_go_again(payment: Payment, seen: Observation, gateway: PaymentGateway) -> bool:
    """Whether a submission without effect may simply be sent again.

    A throttled request was sent: if a repeated reference may charge twice, we only check.
    """
    if not seen.requests_left:
        return True
    return gateway.registry.get(payment.provider).capabilities.idempotent_submit


def _record_taken(batch: WriteBatch, payment: Payment, seen: Observation) -> None:
    """The provider has it, now or from an earlier submission: the next check confirms that."""
    is_duplicate = seen.verdict is Verdict.DUPLICATE
    if not (is_duplicate and payment.stage == Stage.UNKNOWN):
        move(batch, payment, Event.PENDING, reason=seen.reason)
    _act_again(payment, Step.CHECK, batch.now, 0.0 if is_duplicate else backoff.first_check_s())


def _record_check(
    batch: WriteBatch,
    payment: Payment,
    seen: Observation,
    exchange_id: int | None,
    gateway: PaymentGateway,
) -> None:
    age_s = _age_s(payment, batch.now)
    delay = max(
        backoff.check_delay_s(age_s), min(seen.retry_after_s or 0, backoff.RETRY_AFTER_MAX_S)
    )
    match seen.verdict:
        case Verdict.SUCCESSFUL | Verdict.FAILED:
            settle(batch, payment, seen, exchange_id)
        case Verdict.PENDING:
            move(batch, payment, Event.PENDING, reason=seen.reason)
            _act_again(payment, Step.CHECK, batch.now, delay)
        case Verdict.NOT_FOUND:
            capabilities = gateway.registry.get(payment.provider).capabilities
            _record_not_found(batch, payment, capabilities)
        case Verdict.UNKNOWN if seen.is_unread and unread_before(batch, payment):
            move(batch, payment, Event.UNKNOWN, reason=seen.reason)
            _act_again(payment, Step.CHECK, batch.now, delay)
        case Verdict.UNKNOWN | Verdict.NOT_SENT | Verdict.DUPLICATE | Verdict.REFUSED:
            # This proves nothing: the state stays.
            _act_again(payment, Step.CHECK, batch.now, delay)
        case never:
            assert_never(never)


def _record_not_found(batch: WriteBatch, payment: Payment, capabilities: Capabilities) -> None:
    """The provider has nothing under our reference yet. A 404 alone never ends a payment."""
    age_s = _age_s(payment, batch.now)
    if age_s >= capabilities.visible_after_s and (refusal := standing_refusal(batch, payment)):
        _end(batch, payment, Event.FAILED, refusal, reason="refused_and_not_found")
        return
    # Submissions that an outage kept from being sent don't make this wait longer.
    sent = possible_submissions(batch, payment)
    resend_after_s = backoff.resend_after_s(capabilities.resend_after_s, sent)
    move(batch, payment, Event.UNKNOWN, reason="not_found")
    if capabilities.idempotent_submit and age_s >= resend_after_s:
        _act_again(payment, Step.SUBMIT, batch.now, 0.0)
    else:
        _act_again(payment, Step.CHECK, batch.now, backoff.check_delay_s(age_s))


def settle(batch: WriteBatch, payment: Payment, seen: Observation, exchange_id: int | None) -> None:
    """End the payment on the provider's answer, which is stored as `exchange_id`."""
    if seen.verdict is Verdict.SUCCESSFUL and seen.amount not in (None, payment.money):
        # Paid, but another amount: no timeout and no guess ends this one. It is checked as often as
        # any other: a single garbled answer must not cost half an hour.
        log.error("payment.amount_contradicted")
        move(batch, payment, Event.UNKNOWN, reason="amount_contradicted")
        _act_again(
            payment, Step.CHECK, batch.now, backoff.check_delay_s(_age_s(payment, batch.now))
        )
        return
    event = Event.SUCCESSFUL if seen.verdict is Verdict.SUCCESSFUL else Event.FAILED
    payment.provider_transaction_id = seen.provider_transaction_id
    _end(batch, payment, event, evidence_of(seen, exchange_id), reason=seen.reason)


def _end(
    batch: WriteBatch, payment: Payment, event: Event, evidence: Evidence, *, reason: str
) -> None:
    payment.evidence_id = evidence.exchange_id
    if event is Event.FAILED:
        payment.failure_code = evidence.failure_code or FailureCode.OTHER
        payment.failure_provider_code = evidence.failure_provider_code
    move(batch, payment, event, reason=reason)
    count_end(batch.session, payment)
    failed = {}
    if event is Event.FAILED:
        failed = {
            "failure_code": payment.failure_code,
            "provider_code": payment.failure_provider_code,
        }
    log.info("payment.settled", status=payment.status, reason=reason, **failed)


def move(batch: WriteBatch, payment: Payment, event: Event, *, reason: str) -> None:
    """Apply the event; if it changed anything, append it to the payment's history."""
    if payment.apply(event, batch.now):
        append_to_batch(batch, payment, event, data={"reason": reason})


def _act_again(payment: Payment, step: Step, now: datetime, delay_s: float) -> None:
    payment.next_step = step
    payment.next_action_at = now + timedelta(seconds=delay_s)


def _age_s(payment: Payment, now: datetime) -> float:
    """Seconds since the last submission was claimed. All earlier ones are older."""
    return (now - payment.submitted_at).total_seconds() if payment.submitted_at else 0.0
