"""What an answer of the provider makes of a payment: wait, ask again, send again, or end.

Runs in the transaction that stores the answer. Only evidence ends a payment.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, assert_never

import structlog

from payments_app.payments import retry
from payments_app.payments.counters import count_end, count_fenced
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
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import Capabilities, FailureCode, Observation, Verdict

log = structlog.get_logger(__name__)

# Submissions of one payment without effect; a power of two.
NOT_SENT_LOGGED: Final = 4


def apply_result(
    batch: WriteBatch,
    payment: Payment,
    result: ExchangeResult,
    exchange_id: int | None,
    gateway: PaymentGateway,
) -> None:
    """Move the payment if the claim is still ours; else the answer is evidence, and no more."""
    claim, seen = result.claim, result.seen
    if payment.generation != claim.generation or payment.is_final:
        count_fenced(batch.session)
        log.warning("payment.zombie_write", verdict=seen.verdict)
        note_contradiction(batch, payment, seen.verdict)
        return
    # A callback came while the payment was in hand: the claim had taken the mark away, and had put
    # the time to the end of its lease. The callback has put it to when it wants the next question.
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
        # It goes first, but no callback makes it earlier than the provider has asked for.
        asked_s = min(seen.retry_after_s or 0.0, retry.RETRY_AFTER_MAX_S)
        payment.next_action_at = max(wanted_at or batch.now, batch.now + timedelta(seconds=asked_s))


def _record_submission(
    batch: WriteBatch,
    payment: Payment,
    seen: Observation,
    exchange_id: int | None,
    gateway: PaymentGateway,
) -> None:
    # Once any submission may have arrived the stage has left SUBMITTING for good.
    first_to_leave = payment.stage == Stage.SUBMITTING
    match seen.verdict:
        case Verdict.PENDING | Verdict.DUPLICATE:
            _record_taken(batch, payment, seen)
        case Verdict.SUCCESSFUL:
            settle(batch, payment, seen, exchange_id)
        case Verdict.REFUSED | Verdict.FAILED if _is_alone(batch, payment):
            settle(batch, payment, seen, exchange_id)
        case Verdict.NOT_SENT if first_to_leave and _may_go_again(payment, seen, gateway):
            payment.apply(Event.HANDED_BACK, batch.now)
            _log_not_sent(payment, seen)
            delay = retry.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.SUBMIT, batch.now, delay)
        case Verdict.NOT_SENT | Verdict.REFUSED | Verdict.FAILED:
            # Something may have arrived, and this answer proves nothing about that.
            if first_to_leave:
                move(batch, payment, Event.UNKNOWN, reason="sent_before")
            delay = retry.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.CHECK, batch.now, delay)
        case Verdict.UNKNOWN | Verdict.NOT_FOUND:
            move(batch, payment, Event.UNKNOWN, reason=seen.reason)
            _act_again(payment, Step.CHECK, batch.now, retry.first_check_s(seen.retry_after_s))
        case never:
            assert_never(never)


def distrusted(seen: Observation) -> Observation:
    """What is said to another merchant than the payment was accepted for.

    That a reference is there still proves it; that it isn't there proves nothing, or we would
    send it a second time, for another merchant.
    """
    if seen.verdict is Verdict.NOT_FOUND:
        return replace(seen, verdict=Verdict.UNKNOWN, reason="merchant_changed")
    return seen


def _log_not_sent(payment: Payment, seen: Observation) -> None:
    """That once or twice nothing left is usual; then a line each time it was twice as often."""
    tries = payment.submissions
    if tries >= NOT_SENT_LOGGED and tries & (tries - 1) == 0:
        log.warning(
            "payment.not_sent", provider=payment.provider, reason=seen.reason, submissions=tries
        )


def _is_alone(batch: WriteBatch, payment: Payment) -> bool:
    """Whether this submission is the only one of which a request can have left."""
    return payment.stage == Stage.SUBMITTING and not may_have_left_before(batch, payment)


def _may_go_again(payment: Payment, seen: Observation, gateway: PaymentGateway) -> bool:
    """Whether what had no effect may simply be sent again.

    A throttled request did leave: where a reference that is sent twice may charge twice, we only ask.
    """
    if not seen.requests_left:
        return True
    return gateway.registry.get(payment.provider).capabilities.idempotent_submit


def _record_taken(batch: WriteBatch, payment: Payment, seen: Observation) -> None:
    """The provider has it: now, or since an earlier submission, which the next question confirms."""
    is_duplicate = seen.verdict is Verdict.DUPLICATE
    if not (is_duplicate and payment.stage == Stage.UNKNOWN):
        move(batch, payment, Event.PENDING, reason=seen.reason)
    _act_again(payment, Step.CHECK, batch.now, 0.0 if is_duplicate else retry.first_check_s())


def _record_check(
    batch: WriteBatch,
    payment: Payment,
    seen: Observation,
    exchange_id: int | None,
    gateway: PaymentGateway,
) -> None:
    age_s = _age_s(payment, batch.now)
    delay = max(retry.check_delay_s(age_s), min(seen.retry_after_s or 0, retry.RETRY_AFTER_MAX_S))
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
            # No news: what was known stays known.
            _act_again(payment, Step.CHECK, batch.now, delay)
        case never:
            assert_never(never)


def _record_not_found(batch: WriteBatch, payment: Payment, capabilities: Capabilities) -> None:
    """The provider has nothing under our reference, yet: a 404 alone never ends a payment."""
    age_s = _age_s(payment, batch.now)
    if age_s >= capabilities.visible_after_s and (refusal := standing_refusal(batch, payment)):
        _end(batch, payment, Event.FAILED, refusal, reason="refused_and_not_found")
        return
    # What an outage kept from leaving, however often, is no reason to wait longer now.
    sent = possible_submissions(batch, payment)
    resend_after_s = retry.resend_after_s(capabilities.resend_after_s, sent)
    move(batch, payment, Event.UNKNOWN, reason="not_found")
    if capabilities.idempotent_submit and age_s >= resend_after_s:
        _act_again(payment, Step.SUBMIT, batch.now, 0.0)
    else:
        _act_again(payment, Step.CHECK, batch.now, retry.check_delay_s(age_s))


def settle(batch: WriteBatch, payment: Payment, seen: Observation, exchange_id: int | None) -> None:
    """End the payment on the provider's word, which is stored as `exchange_id`."""
    if seen.verdict is Verdict.SUCCESSFUL and seen.amount not in (None, payment.money):
        # Paid, but not what was asked: no clock and no guess of ours ends this one. Asked again
        # as often as any other: an answer that was garbled once must not cost half an hour.
        log.error("payment.amount_contradicted")
        move(batch, payment, Event.UNKNOWN, reason="amount_contradicted")
        _act_again(payment, Step.CHECK, batch.now, retry.check_delay_s(_age_s(payment, batch.now)))
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
    """Apply the event; when it changed anything, it becomes a line of the payment's story."""
    if payment.apply(event, batch.now):
        append_to_batch(batch, payment, event, data={"reason": reason})


def _act_again(payment: Payment, step: Step, now: datetime, delay_s: float) -> None:
    payment.next_step = step
    payment.next_action_at = now + timedelta(seconds=delay_s)


def _age_s(payment: Payment, now: datetime) -> float:
    """Seconds since the last submission was claimed: what the provider hides of an earlier one is older."""
    return (now - payment.submitted_at).total_seconds() if payment.submitted_at else 0.0
