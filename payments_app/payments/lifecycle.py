"""A payment's life after it was accepted, top to bottom: claim, submit or check, record, settle.

With acceptance.py the only writer of payments. Each step is its own transaction; the network
is only ever between two of them. What is about to be done is committed before it is done, so
that a crash anywhere is answered by asking the provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, assert_never

import structlog

from payments_app.kernel import tracing
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.jobs import Job, ring
from payments_app.kernel.wire import LeaseLost
from payments_app.payments import retry
from payments_app.payments.claims import LEASE, Claim, lease_from, renewed
from payments_app.payments.due import due_payments, locked_payments
from payments_app.payments.evidence import (
    Evidence,
    evidence_of,
    open_submission,
    possible_submissions,
    standing_refusal,
    store_exchanges,
)
from payments_app.payments.figures import count_answer, count_end, count_fenced
from payments_app.payments.hands import Finding, Hands
from payments_app.payments.model import Payment
from payments_app.payments.page import Page
from payments_app.payments.rails import Rails
from payments_app.payments.states import Event, Stage, Step
from payments_app.payments.story import add_line, note_contradiction
from payments_app.payments.trail import back_on_trail_of, note_outcome, on_trail_of
from payments_app.providers.contract import Capabilities, FailureCode, Observation, Verdict

log = structlog.get_logger(__name__)

# A payment whose tenant is held is looked at again after this; it goes on within that time.
HELD_LOOK: Final = timedelta(seconds=30)


# --- advance: claim, then submit or check -----------------------------------------------------


def advance_due_payments(rails: Rails, hands: Hands) -> int:
    """Do what is due until nothing is, several payments at a time; how many it did.

    Only what a hand is free for is claimed, and it is begun at once: a lease runs from the claim.
    One that takes long keeps its hand and holds up no other.
    """
    done, has_rung = 0, False
    while True:
        findings = hands.come_home()
        record(findings, rails)
        done += len(findings)
        claims = [] if rails.stopping() else _claim_due(hands.free)
        for claim in claims:
            hands.send_out(partial(carry_out, claim, rails, rung_by=tracing.here()))
        if hands.are_idle:
            return done
        if claims and not hands.free and not has_rung:
            # More may be due than we have hands: other workers help, each until nothing is.
            ring(Job.ADVANCE_PAYMENTS)
            has_rung = True


def _claim_due(limit: int) -> list[Claim]:
    """Take what is due longest. No others wait for it, and what others have is left out."""
    while limit:
        taken_at = boot_seconds()
        claims: list[Claim] = []
        with transaction(EVERY_TENANT) as session:
            due = due_payments(session, limit)
            if not due:
                break
            page = Page(session, due[0].now)
            for theirs in page.by_tenant(due, lambda one: one.payment.tenant_id):
                for payment, now, held_at in theirs:
                    if held_at is None or payment.next_step != Step.SUBMIT:
                        claims.append(_take(page, payment, taken_at))
                    else:
                        # The tenant's brake is on: it waits here.
                        payment.next_action_at = now + HELD_LOOK
        if claims:
            return claims
    return []


def _take(page: Page, payment: Payment, taken_at: float) -> Claim:
    now, step = page.now, Step(payment.next_step)
    payment.generation += 1
    payment.lease_until = payment.next_action_at = now + LEASE
    match step:
        case Step.SUBMIT:
            # From here on it may have been sent: whoever comes after a crash asks first.
            payment.apply(Event.SUBMITTING, now)
            payment.next_step = Step.CHECK
            payment.submissions += 1
            payment.submitted_at = now
            open_submission(page, payment)
        case Step.CHECK if payment.stage == Stage.SUBMITTING:
            # The worker that was to send it has not come back.
            _move(page, payment, Event.UNKNOWN, reason="worker_lost")
        case Step.CHECK:
            pass
        case never:
            assert_never(never)
    return Claim(payment, payment.generation, step, lease_from(taken_at))


def carry_out(claim: Claim, rails: Rails, *, rung_by: str | None = None) -> Finding:
    """Take the claimed step with the provider: what it proved. On any thread, and it never fails.

    `rung_by`: the span of whoever had us look.
    """
    with on_trail_of(claim, rung_by=rung_by) as span:
        seen = _seen(claim, rails)
        note_outcome(seen)
        return Finding(claim, seen, span)


def _seen(claim: Claim, rails: Rails) -> Observation:
    try:
        return _observe(claim, rails)
    except LeaseLost:
        # Nothing was sent. The row is another worker's by now, or waits for one.
        log.warning("payment.lease_lost", generation=claim.generation)
        return Observation(Verdict.NOT_SENT, "lease_lost")
    except GatewayError as error:
        # No adapter or no account any more: someone has to act, and nothing was sent.
        log.error("payment.account_unavailable", code=error.code)
        return Observation(
            Verdict.NOT_SENT, "account_unavailable", retry_after_s=retry.ACCOUNT_MISSING_S
        )
    except Exception:
        # A fault in an adapter must not stop the other payments; of this one we know nothing.
        log.exception("payment.adapter_failed")
        return Observation(Verdict.UNKNOWN, "adapter_failed")


def _observe(claim: Claim, rails: Rails) -> Observation:
    """Go out: account, token, then the one exchange. No transaction is open.

    Raises LeaseLost when there was no time left to send, and a GatewayError when the rail or
    the account is gone.
    """
    payment = claim.payment
    provider = rails.registry.get(payment.provider)
    account = rails.account_of(payment)
    if provider.merchant(account) != payment.merchant:
        # We may remember it from before a change that the acceptance knew of.
        account = rails.account_of(payment, anew=True)
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
    wire = rails.wire(renewed(claim))
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


# --- record: what the exchanges proved --------------------------------------------------------


def record(findings: Sequence[Finding], rails: Rails) -> None:
    """Write back what came home, in one transaction. What can't be written takes nothing with it.

    Raises what the first of those met; their leases end, and somebody asks.
    """
    try:
        if findings:
            _record_together(findings, rails)
    except Exception:
        if len(findings) == 1:
            raise
        log.exception("payments.recorded_one_by_one", count=len(findings))
        _record_one_by_one(findings, rails)


def _record_one_by_one(findings: Sequence[Finding], rails: Rails) -> None:
    failed: list[Exception] = []
    for finding in findings:
        try:
            _record_together([finding], rails)
        except Exception as error:
            with back_on_trail_of(finding):
                log.exception("payment.not_recorded")
            failed.append(error)
    if failed:
        raise failed[0]


def _record_together(findings: Sequence[Finding], rails: Rails) -> None:
    with transaction(EVERY_TENANT) as session:
        payments, now = locked_payments(session, {finding.claim.payment.id for finding in findings})
        page = Page(session, now)
        for theirs in page.by_tenant(findings, lambda one: one.claim.payment.tenant_id):
            stored = store_exchanges(page, theirs, payments, rails.vault)
            for finding, exchange_id in zip(theirs, stored, strict=True):
                with back_on_trail_of(finding):
                    payment = payments[finding.claim.payment.id]
                    _record(page, payment, finding, exchange_id, rails)


def _record(
    page: Page, payment: Payment, finding: Finding, exchange_id: int | None, rails: Rails
) -> None:
    """Move the payment if the claim is still ours; else what came is evidence, and no more."""
    claim, seen = finding.claim, finding.seen
    if payment.generation != claim.generation or payment.is_final:
        count_fenced(page.session)
        log.warning("payment.zombie_write", verdict=seen.verdict)
        note_contradiction(page, payment, seen.verdict)
        return
    hinted = _was_hinted(payment)
    payment.lease_until = None
    match claim.step:
        case Step.SUBMIT:
            _record_submission(page, payment, seen, exchange_id)
        case Step.CHECK:
            _record_check(page, payment, seen, exchange_id, rails)
        case never:
            assert_never(never)
    if hinted and payment.next_action_at is not None and payment.next_step == Step.CHECK:
        payment.next_action_at = page.now


def _record_submission(
    page: Page, payment: Payment, seen: Observation, exchange_id: int | None
) -> None:
    # Once any submission may have arrived the stage has left SUBMITTING for good.
    first_to_leave = payment.stage == Stage.SUBMITTING
    match seen.verdict:
        case Verdict.PENDING | Verdict.DUPLICATE:
            _move(page, payment, Event.PENDING, reason=seen.reason)
            delay = 0.0 if seen.verdict is Verdict.DUPLICATE else retry.first_check_s()
            _act_again(payment, Step.CHECK, page.now, delay)
        case Verdict.SUCCESSFUL | Verdict.FAILED:
            _settle(page, payment, seen, exchange_id)
        case Verdict.REFUSED if first_to_leave:
            _settle(page, payment, seen, exchange_id)
        case Verdict.NOT_SENT if first_to_leave:
            payment.apply(Event.HANDED_BACK, page.now)
            delay = retry.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.SUBMIT, page.now, delay)
        case Verdict.NOT_SENT | Verdict.REFUSED:
            # An earlier submission may have arrived: this one proves nothing about that.
            delay = retry.submit_delay_s(payment.submissions, seen.retry_after_s)
            _act_again(payment, Step.CHECK, page.now, delay)
        case Verdict.UNKNOWN | Verdict.NOT_FOUND:
            _move(page, payment, Event.UNKNOWN, reason=seen.reason)
            _act_again(payment, Step.CHECK, page.now, retry.first_check_s(seen.retry_after_s))
        case never:
            assert_never(never)


def _record_check(
    page: Page, payment: Payment, seen: Observation, exchange_id: int | None, rails: Rails
) -> None:
    age_s = _age_s(payment, page.now)
    delay = max(retry.check_delay_s(age_s), min(seen.retry_after_s or 0, retry.RETRY_AFTER_MAX_S))
    match seen.verdict:
        case Verdict.SUCCESSFUL | Verdict.FAILED:
            _settle(page, payment, seen, exchange_id)
        case Verdict.PENDING:
            _move(page, payment, Event.PENDING, reason=seen.reason)
            _act_again(payment, Step.CHECK, page.now, delay)
        case Verdict.NOT_FOUND:
            capabilities = rails.registry.get(payment.provider).capabilities
            _record_not_found(page, payment, capabilities)
        case Verdict.UNKNOWN | Verdict.NOT_SENT | Verdict.DUPLICATE | Verdict.REFUSED:
            # No news: what was known stays known.
            _act_again(payment, Step.CHECK, page.now, delay)
        case never:
            assert_never(never)


def _record_not_found(page: Page, payment: Payment, capabilities: Capabilities) -> None:
    """The provider has nothing under our reference, yet: a 404 alone never ends a payment."""
    age_s = _age_s(payment, page.now)
    if age_s >= capabilities.visible_after_s and (refusal := standing_refusal(page, payment)):
        _end(page, payment, Event.FAILED, refusal, reason="refused_and_not_found")
        return
    # What an outage kept from leaving, however often, is no reason to wait longer now.
    sent = possible_submissions(page, payment)
    resend_after_s = retry.resend_after_s(capabilities.resend_after_s, sent)
    _move(page, payment, Event.UNKNOWN, reason="not_found")
    if capabilities.idempotent_submit and age_s >= resend_after_s:
        _act_again(payment, Step.SUBMIT, page.now, 0.0)
    else:
        _act_again(payment, Step.CHECK, page.now, retry.check_delay_s(age_s))


# --- settle -------------------------------------------------------------------------------------


def _settle(page: Page, payment: Payment, seen: Observation, exchange_id: int | None) -> None:
    """End the payment on the provider's word, which is stored as `exchange_id`."""
    if seen.verdict is Verdict.SUCCESSFUL and seen.amount not in (None, payment.money):
        # Paid, but not what was asked: no clock and no guess of ours ends this one. Asked again
        # as often as any other: an answer that was garbled once must not cost half an hour.
        log.error("payment.amount_contradicted")
        _move(page, payment, Event.UNKNOWN, reason="amount_contradicted")
        _act_again(payment, Step.CHECK, page.now, retry.check_delay_s(_age_s(payment, page.now)))
        return
    event = Event.SUCCESSFUL if seen.verdict is Verdict.SUCCESSFUL else Event.FAILED
    payment.provider_transaction_id = seen.provider_transaction_id
    _end(page, payment, event, evidence_of(seen, exchange_id), reason=seen.reason)


def _end(page: Page, payment: Payment, event: Event, evidence: Evidence, *, reason: str) -> None:
    payment.evidence_id = evidence.exchange_id
    if event is Event.FAILED:
        payment.failure_code = evidence.failure_code or FailureCode.OTHER
        payment.failure_provider_code = evidence.failure_provider_code
    _move(page, payment, event, reason=reason)
    count_end(page.session, payment)
    log.info("payment.settled", status=payment.status, reason=reason)


def _move(page: Page, payment: Payment, event: Event, *, reason: str) -> None:
    """Apply the event; when it changed anything, it becomes a line of the payment's story."""
    if payment.apply(event, page.now):
        add_line(page, payment, event, data={"reason": reason})


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
