"""A payment's life after it was accepted, top to bottom: claim, submit or check, record, settle.

With acceptance.py the only writer of payments. Each step is its own transaction; the network
is only ever between two of them. What is about to be done is committed before it is done, so
that a crash anywhere is answered by asking the provider.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, assert_never
from uuid import UUID

import structlog
from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, narrow, transaction
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.jobs import Job, ring
from payments_app.kernel.transport import Lease
from payments_app.kernel.wire import LeaseLost
from payments_app.payments import retry
from payments_app.payments.evidence import (
    open_submission,
    possible_submissions,
    standing_refusal,
    store_exchange,
)
from payments_app.payments.figures import count_answer, count_end, count_fenced
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.payments.rails import Rails
from payments_app.payments.states import Event, Stage, Status, Step
from payments_app.payments.story import ENGINE, note_contradiction, record_event
from payments_app.payments.trail import note_outcome, on_trail_of
from payments_app.providers.contract import Capabilities, FailureCode, Observation, Verdict
from payments_app.tenants.model import Tenant

log = structlog.get_logger(__name__)

# How long a claim lasts: a whole exchange (15 s) and its write-back, and not much more,
# because after a crash the payment rests for this long.
LEASE: Final = timedelta(seconds=30)
# A wire stops sending this long before the database ends the lease.
LEASE_MARGIN_S: Final = 2.0
# Less than this left before sending, and the lease is renewed first.
LEASE_RENEW_BELOW_S: Final = 20.0

# A payment whose tenant is held is looked at again after this; it goes on within that time.
HELD_LOOK: Final = timedelta(seconds=30)


# --- advance: claim, then submit or check -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's right to act on one payment, once. `payment` is as it was when claimed."""

    payment: Payment
    generation: int
    step: Step
    lease: Lease


def advance_due_payments(rails: Rails) -> int:
    """Do what is due, one payment after the other, until nothing is; how many it did.

    For each payment taken the doorbell is rung once more, so that other workers help.
    """
    done = 0
    while not rails.stopping():
        claim = _claim_due()
        if claim is None:
            break
        ring(Job.ADVANCE_PAYMENTS)
        with on_trail_of(claim.payment, claim.step, claim.generation):
            advance_payment(claim, rails)
        done += 1
    return done


def advance_payment(claim: Claim, rails: Rails) -> None:
    """Take the claimed step with the provider, and write down what it proved."""
    try:
        observation = _observe(claim, rails)
    except LeaseLost:
        # Nothing was sent. The row is another worker's by now, or waits for one.
        log.warning("payment.lease_lost", generation=claim.generation)
        observation = Observation(Verdict.NOT_SENT, "lease_lost")
    except GatewayError as error:
        # No adapter or no account any more: someone has to act, and nothing was sent.
        log.error("payment.account_unavailable", code=error.code)
        observation = Observation(
            Verdict.NOT_SENT, "account_unavailable", retry_after_s=retry.ACCOUNT_MISSING_S
        )
    except Exception:
        # A fault in an adapter must not stop the other payments; of this one we know nothing.
        log.exception("payment.adapter_failed")
        observation = Observation(Verdict.UNKNOWN, "adapter_failed")
    note_outcome(observation)
    record(claim, observation, rails)


def _claim_due() -> Claim | None:
    while True:
        taken_at = boot_seconds()
        with transaction(EVERY_TENANT) as session:
            found = session.execute(
                select(Payment, func.statement_timestamp(), Tenant.held_at)
                .join(Tenant, Tenant.id == Payment.tenant_id)
                .where(
                    Payment.status == Status.PENDING,
                    Payment.next_action_at <= func.statement_timestamp(),
                    func.coalesce(Payment.lease_until, Payment.next_action_at)
                    <= func.statement_timestamp(),
                )
                .order_by(Payment.next_action_at)
                .limit(1)
                .with_for_update(of=Payment, skip_locked=True)
            ).first()
            if found is None:
                return None
            payment, now, held_at = found
            narrow(session, payment.tenant_id)
            if held_at is None or payment.next_step != Step.SUBMIT:
                return _take(session, payment, now, taken_at)
            # The tenant's brake is on: it waits here.
            payment.next_action_at = now + HELD_LOOK


def _take(session: Session, payment: Payment, now: datetime, taken_at: float) -> Claim:
    step = Step(payment.next_step)
    payment.generation += 1
    payment.lease_until = payment.next_action_at = now + LEASE
    match step:
        case Step.SUBMIT:
            # From here on it may have been sent: whoever comes after a crash asks first.
            payment.apply(Event.SUBMITTING, now)
            payment.next_step = Step.CHECK
            payment.submissions += 1
            payment.submitted_at = now
            open_submission(session, payment)
        case Step.CHECK if payment.stage == Stage.SUBMITTING:
            # The worker that was to send it has not come back.
            _move(session, payment, Event.UNKNOWN, now, reason="worker_lost")
        case Step.CHECK:
            pass
        case never:
            assert_never(never)
    lease = Lease(taken_at + LEASE.total_seconds() - LEASE_MARGIN_S)
    return Claim(payment, payment.generation, step, lease)


def _observe(claim: Claim, rails: Rails) -> Observation:
    """Go out: account, token, then the one exchange. No transaction is open.

    Raises LeaseLost when there was no time left to send, and a GatewayError when the rail or
    the account is gone.
    """
    payment = claim.payment
    provider = rails.registry.get(payment.provider)
    account = rails.account_of(payment)
    is_other_merchant = provider.merchant(account) != payment.merchant
    if is_other_merchant:
        log.error("payment.merchant_changed", provider=payment.provider)
    if claim.step is Step.SUBMIT and is_other_merchant:
        return Observation(
            Verdict.NOT_SENT, "merchant_changed", retry_after_s=retry.ACCOUNT_MISSING_S
        )
    if claim.step is Step.CHECK:
        wait_s = rails.pace.wait_s(account, provider.terms(account).checks_per_s)
        if wait_s:
            return Observation(Verdict.NOT_SENT, "paced", retry_after_s=wait_s)
    not_ready = provider.prepare(account, rails.wire(claim.lease))
    if not_ready is not None:
        return not_ready
    wire = rails.wire(_renewed(claim))
    if claim.step is Step.SUBMIT:
        seen = provider.submit(rails.order_for(payment), account, wire)
        return count_answer(payment, claim.step, seen)
    seen = provider.check(rails.order_for(payment), account, wire)
    count_answer(payment, claim.step, seen)
    return _distrusted(seen) if is_other_merchant else seen


def _distrusted(seen: Observation) -> Observation:
    """What is said to another merchant than the payment was accepted for.

    That a reference is there still proves it; that it isn't there proves nothing, or we would
    send it a second time, for another merchant.
    """
    if seen.verdict is Verdict.NOT_FOUND:
        return replace(seen, verdict=Verdict.UNKNOWN, reason="merchant_changed")
    return seen


def _renewed(claim: Claim) -> Lease:
    """The lease, longer if little of it is left. Raises LeaseLost if another has the payment."""
    if claim.lease.remaining_s() > LEASE_RENEW_BELOW_S:
        return claim.lease
    taken_at = boot_seconds()
    lease_until = func.clock_timestamp() + LEASE
    with transaction(claim.payment.tenant_id) as session:
        renewed = session.execute(
            update(Payment)
            .where(Payment.id == claim.payment.id, Payment.generation == claim.generation)
            .where(Payment.status == Status.PENDING)
            .values(
                lease_until=lease_until,
                # An earlier time was set by a callback: that hint stays.
                next_action_at=case(
                    (Payment.next_action_at < Payment.lease_until, Payment.next_action_at),
                    else_=lease_until,
                ),
            )
            .returning(Payment.id)
        ).first()
    if renewed is None:
        raise LeaseLost
    return Lease(taken_at + LEASE.total_seconds() - LEASE_MARGIN_S)


# --- record: what one exchange proved -----------------------------------------------------


def record(claim: Claim, observation: Observation, rails: Rails) -> None:
    """Write back what was observed if the claim is still ours; else keep it as evidence only."""
    with transaction(claim.payment.tenant_id) as session:
        payment, now = _locked(session, claim.payment.id)
        exchange_id = store_exchange(
            session,
            payment,
            generation=claim.generation,
            step=claim.step,
            seen=observation,
            vault=rails.vault,
        )
        if payment.generation != claim.generation or payment.is_final:
            count_fenced(session)
            log.warning("payment.zombie_write", verdict=observation.verdict)
            note_contradiction(session, payment, observation.verdict)
            return
        hinted = _was_hinted(payment)
        payment.lease_until = None
        match claim.step:
            case Step.SUBMIT:
                _record_submission(session, payment, observation, exchange_id, now)
            case Step.CHECK:
                _record_check(session, payment, observation, exchange_id, now, rails)
            case never:
                assert_never(never)
        if hinted and payment.next_action_at is not None and payment.next_step == Step.CHECK:
            payment.next_action_at = now


def _record_submission(
    session: Session, payment: Payment, seen: Observation, exchange_id: int | None, now: datetime
) -> None:
    # Once any submission may have arrived the stage has left SUBMITTING for good.
    first_to_leave = payment.stage == Stage.SUBMITTING
    match seen.verdict:
        case Verdict.PENDING | Verdict.DUPLICATE:
            _move(session, payment, Event.PENDING, now, reason=seen.reason)
            delay = 0.0 if seen.verdict is Verdict.DUPLICATE else retry.first_check_s()
            _act_again(payment, Step.CHECK, now, delay)
        case Verdict.SUCCESSFUL | Verdict.FAILED:
            _settle(session, payment, seen, exchange_id, now)
        case Verdict.REFUSED if first_to_leave:
            _settle(session, payment, seen, exchange_id, now)
        case Verdict.NOT_SENT if first_to_leave:
            payment.apply(Event.HANDED_BACK, now)
            delay = retry.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.SUBMIT, now, delay)
        case Verdict.NOT_SENT | Verdict.REFUSED:
            # An earlier submission may have arrived: this one proves nothing about that.
            delay = retry.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.CHECK, now, delay)
        case Verdict.UNKNOWN | Verdict.NOT_FOUND:
            _move(session, payment, Event.UNKNOWN, now, reason=seen.reason)
            _act_again(payment, Step.CHECK, now, retry.first_check_s(seen.retry_after_s))
        case never:
            assert_never(never)


def _record_check(
    session: Session,
    payment: Payment,
    seen: Observation,
    exchange_id: int | None,
    now: datetime,
    rails: Rails,
) -> None:
    age_s = _age_s(payment, now)
    delay = max(retry.check_delay_s(age_s), min(seen.retry_after_s or 0, retry.RETRY_AFTER_MAX_S))
    match seen.verdict:
        case Verdict.SUCCESSFUL | Verdict.FAILED:
            _settle(session, payment, seen, exchange_id, now)
        case Verdict.PENDING:
            _move(session, payment, Event.PENDING, now, reason=seen.reason)
            _act_again(payment, Step.CHECK, now, delay)
        case Verdict.NOT_FOUND:
            capabilities = rails.registry.get(payment.provider).capabilities
            _record_not_found(session, payment, now, capabilities)
        case Verdict.UNKNOWN | Verdict.NOT_SENT | Verdict.DUPLICATE | Verdict.REFUSED:
            # No news: what was known stays known.
            _act_again(payment, Step.CHECK, now, delay)
        case never:
            assert_never(never)


def _record_not_found(
    session: Session, payment: Payment, now: datetime, capabilities: Capabilities
) -> None:
    """The provider has nothing under our reference, yet: a 404 alone never ends a payment."""
    age_s = _age_s(payment, now)
    if age_s >= capabilities.visible_after_s and (refusal := standing_refusal(session, payment)):
        _end(session, payment, Event.FAILED, refusal.id, now, reason="refused_and_not_found")
        return
    # What an outage kept from leaving, however often, is no reason to wait longer now.
    sent = possible_submissions(session, payment)
    resend_after_s = retry.resend_after_s(capabilities.resend_after_s, sent)
    _move(session, payment, Event.UNKNOWN, now, reason="not_found")
    if capabilities.idempotent_submit and age_s >= resend_after_s:
        _act_again(payment, Step.SUBMIT, now, 0.0)
    else:
        _act_again(payment, Step.CHECK, now, retry.check_delay_s(age_s))


# --- settle -------------------------------------------------------------------------------------


def _settle(
    session: Session, payment: Payment, seen: Observation, exchange_id: int | None, now: datetime
) -> None:
    """End the payment on the provider's word, which is stored as `exchange_id`."""
    if seen.verdict is Verdict.SUCCESSFUL and seen.amount not in (None, payment.money):
        # Paid, but not what was asked: no clock and no guess of ours ends this one. Asked again
        # as often as any other: an answer that was garbled once must not cost half an hour.
        log.error("payment.amount_contradicted")
        _move(session, payment, Event.UNKNOWN, now, reason="amount_contradicted")
        _act_again(payment, Step.CHECK, now, retry.check_delay_s(_age_s(payment, now)))
        return
    event = Event.SUCCESSFUL if seen.verdict is Verdict.SUCCESSFUL else Event.FAILED
    payment.provider_transaction_id = seen.provider_transaction_id
    _end(session, payment, event, exchange_id, now, reason=seen.reason)


def _end(
    session: Session,
    payment: Payment,
    event: Event,
    exchange_id: int | None,
    now: datetime,
    *,
    reason: str,
) -> None:
    evidence = session.get_one(ProviderExchange, exchange_id)
    payment.evidence_id = evidence.id
    if event is Event.FAILED:
        payment.failure_code = evidence.failure_code or FailureCode.OTHER
        payment.failure_provider_code = evidence.failure_provider_code
    _move(session, payment, event, now, reason=reason)
    count_end(session, payment)
    log.info("payment.settled", status=payment.status, reason=reason)


def _move(session: Session, payment: Payment, event: Event, now: datetime, *, reason: str) -> None:
    """Apply the event; when it changed anything, it becomes a line of the payment's story."""
    if payment.apply(event, now):
        record_event(session, payment, event, actor=ENGINE, data={"reason": reason})


def _act_again(payment: Payment, step: Step, now: datetime, delay_s: float) -> None:
    payment.next_step = step
    payment.next_action_at = now + timedelta(seconds=delay_s)


def _age_s(payment: Payment, now: datetime) -> float:
    """Seconds since the last submission was allowed to leave."""
    return (now - payment.submitted_at).total_seconds() if payment.submitted_at else 0.0


def _was_hinted(payment: Payment) -> bool:
    """Whether a callback came while the payment was in hand: it sets an earlier time."""
    if payment.next_action_at is None or payment.lease_until is None:
        return False
    return payment.next_action_at < payment.lease_until


def _locked(session: Session, payment_id: UUID) -> tuple[Payment, datetime]:
    payment, now = session.execute(
        select(Payment, func.statement_timestamp())
        .where(Payment.id == payment_id)
        .with_for_update(of=Payment)
    ).one()
    return payment, now
