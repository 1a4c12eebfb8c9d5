"""A payment's life after it was accepted, top to bottom: claim, submit or check, record, settle.

With acceptance.py and outcomes.py what moves a payment's status. Each step is its own transaction; the network
is only ever between two of them. What is about to be done is committed before it is done, so
that a crash anywhere is answered by asking the provider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final, assert_never
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from payments_app.kernel import metrics, tracing
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, snapshot, transaction
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.jobs import Job, enqueue, notify
from payments_app.kernel.postgres import is_transient
from payments_app.kernel.wire import LeaseLost
from payments_app.payments import retry
from payments_app.payments.account_slots import AccountSlots, step_of
from payments_app.payments.claims import LEASE, Claim, lease_from, renewed
from payments_app.payments.counters import count_answer
from payments_app.payments.due import (
    Due,
    Queue,
    due_payments,
    is_due,
    locked_payments,
    put_off,
    waiting_queues,
)
from payments_app.payments.evidence import open_submission, store_exchanges, without_stored
from payments_app.payments.exchange_pool import ExchangePool, ExchangeResult
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.payments.outcomes import apply_result, distrusted, move
from payments_app.payments.states import Event, Stage, Step
from payments_app.payments.trail import back_on_trail_of, note_outcome, on_trail_of
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import Observation, Provider, ProviderAccount, Verdict
from payments_app.providers.submission import (
    QuestionWire,
    SubmissionWire,
    prepare_through,
    submit_through,
)

log = structlog.get_logger(__name__)

# A payment whose tenant is held is looked at again after this; it goes on within that time.
HELD_LOOK: Final = timedelta(seconds=30)
# So is one that can't be claimed, for a fault in its rows that a person has to mend.
NOT_CLAIMED_LOOK: Final = timedelta(seconds=60)
# Looks for one claim: other workers may take what was found. The next call finds what is left then.
LOOKS_MAX: Final = 8


# --- claim, then submit or check ---------------------------------------------------------------


def process_due(
    gateway: PaymentGateway,
    pool: ExchangePool,
    slots: AccountSlots | None = None,
    unrecorded: list[ExchangeResult] | None = None,
) -> int:
    """Do what is due until nothing is, several payments at a time; how many it did.

    Claim at most one payment per free slot of the pool, so that no lease ages in a queue. A slow
    exchange blocks only its slot, and a slow account only its own: `slots` has those. `unrecorded`
    keeps for the next call what could not be written yet.
    """
    slots = slots or AccountSlots()
    unrecorded = [] if unrecorded is None else unrecorded
    done, has_notified = 0, False
    while True:
        results = pool.collect()
        done += len(results)
        record(results, gateway, unrecorded)
        claims = [] if gateway.stopping() else _claim_due(pool.free_slots, gateway, slots)
        for claim in claims:
            slots.take(claim.account, claim.step)
            pool.submit(partial(_in_slot, claim, gateway, slots, caused_by=tracing.here()))
        if pool.is_idle:
            return done
        if claims and not pool.free_slots and not has_notified:
            # More may be due than there are slots here: other workers help, each until nothing is.
            notify(Job.PROCESS_DUE)
            has_notified = True


def _claim_due(limit: int, gateway: PaymentGateway, slots: AccountSlots) -> list[Claim]:
    """Take what is due, in turns. No others wait for it, and what others have is left out."""
    for _ in range(LOOKS_MAX):
        shares = _shares(limit, gateway, slots) if limit else {}
        if not shares:
            break
        found, claims = _claim(shares)
        if claims:
            return claims
        # Others were quicker, and more may be due. But each look takes of the rate of questions.
        if not found and all(step_of(queue) is Step.CHECK for queue in shares):
            break
    return []


def _claim(shares: Mapping[Queue, int]) -> tuple[int, list[Claim]]:
    """How many due payments were found, and the claims of those that may be acted on."""
    taken_at = boot_seconds()
    held_at: dict[UUID, datetime | None] = {}
    try:
        with transaction(EVERY_TENANT, by_index=True) as session:
            due = due_payments(session, shares)
            held_at = {one.payment.id: one.held_at for one in due}
            return len(due), _take_all(session, due, taken_at)
    except Exception as error:
        if is_transient(error) or not held_at:
            raise
        log.exception("payments.claimed_one_by_one", count=len(held_at))
    return len(held_at), _claim_one_by_one(held_at)


def _claim_one_by_one(held_at: Mapping[UUID, datetime | None]) -> list[Claim]:
    """One that can't be claimed, as somebody has removed its events, must not stop the rest."""
    claims: list[Claim] = []
    for payment_id, held in held_at.items():
        taken_at = boot_seconds()
        try:
            with transaction(EVERY_TENANT) as session:
                payments, now = locked_payments(session, [payment_id], skip_locked=True)
                due = [Due(one, now, held) for one in payments.values() if is_due(one, now)]
                claims += _take_all(session, due, taken_at)
        except Exception as error:
            if is_transient(error):
                raise
            log.exception("payment.not_claimed", payment_id=str(payment_id))
            with transaction(EVERY_TENANT) as session:
                put_off(session, payment_id, NOT_CLAIMED_LOOK)
    return claims


def _take_all(session: Session, due: Sequence[Due], taken_at: float) -> list[Claim]:
    if not due:
        return []
    batch = WriteBatch(session, due[0].now)
    claims = []
    for payment, now, held_at in due:
        if held_at is None or payment.next_step != Step.SUBMIT:
            claims.append(_take(batch, payment, taken_at))
        else:
            # The tenant is held: nothing new leaves for it.
            payment.next_action_at = now + HELD_LOOK
    batch.write()
    return claims


def _shares(limit: int, gateway: PaymentGateway, slots: AccountSlots) -> dict[Queue, int]:
    """How many of each queue are claimed now. A question that may not leave yet is not claimed."""
    with snapshot(EVERY_TENANT, by_index=True) as connection:
        waiting = waiting_queues(connection, limit)
    shares = slots.share_out(limit, waiting, gateway.pace.is_open)
    if not shares:
        return {}
    wanted = Counter({queue.account: 0 for queue in shares})
    for queue, share in shares.items():
        wanted[queue.account] += share if step_of(queue) is Step.CHECK else 0
    granted = dict(gateway.pace.grant(wanted))
    for queue in sorted(shares, key=lambda one: one.lane):
        if step_of(queue) is Step.CHECK:
            shares[queue] = min(shares[queue], granted[queue.account])
            granted[queue.account] -= shares[queue]
        elif not gateway.pace.is_open(queue.account, Step.SUBMIT):
            shares[queue] = 0
    return {queue: share for queue, share in shares.items() if share}


def _in_slot(
    claim: Claim, gateway: PaymentGateway, slots: AccountSlots, *, caused_by: str | None
) -> ExchangeResult:
    """On any thread: the claimed step. The account's slot is free once it is done."""
    with slots.held(claim.account, claim.step):
        began = boot_seconds()
        result = carry_out(claim, gateway, caused_by=caused_by)
        slots.learn(claim.account, result.seen, took_s=boot_seconds() - began)
        return result


def _take(batch: WriteBatch, payment: Payment, taken_at: float) -> Claim:
    now, step = batch.now, Step(payment.next_step)
    payment.generation += 1
    payment.lease_until = payment.next_action_at = now + LEASE
    payment.hinted = False
    match step:
        case Step.SUBMIT:
            # From here on it may have been sent: whoever comes after a crash asks first.
            payment.apply(Event.SUBMITTING, now)
            payment.next_step = Step.CHECK
            payment.submissions += 1
            payment.submitted_at = now
            open_submission(batch, payment)
        case Step.CHECK if payment.stage == Stage.SUBMITTING:
            # The worker that was to send it has not come back.
            move(batch, payment, Event.UNKNOWN, reason="worker_lost")
        case Step.CHECK:
            pass
        case never:
            assert_never(never)
    return Claim(payment, payment.generation, step, lease_from(taken_at))


def carry_out(
    claim: Claim, gateway: PaymentGateway, *, caused_by: str | None = None
) -> ExchangeResult:
    """Take the claimed step with the provider: what it proved. On any thread, and it never fails.

    `caused_by`: the span of the notification.
    """
    with on_trail_of(claim, caused_by=caused_by) as span:
        seen = _seen(claim, gateway)
        note_outcome(seen)
        return ExchangeResult(claim, seen, span)


def _seen(claim: Claim, gateway: PaymentGateway) -> Observation:
    counted = SubmissionWire(gateway.wire(claim.lease))
    try:
        return _observe(claim, gateway, counted)
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
        # A fault in an adapter, or of our database, must not stop the other payments.
        log.exception("payment.adapter_failed")
        if claim.step is Step.SUBMIT and counted.nothing_began:
            return Observation(Verdict.NOT_SENT, "not_ready", requests_left=0)
        return Observation(Verdict.UNKNOWN, "adapter_failed")


def _observe(claim: Claim, gateway: PaymentGateway, counted: SubmissionWire) -> Observation:
    """Go out: account, token, then the one exchange. No transaction is open.

    Raises LeaseLost when there was no time left to send, and a GatewayError when the rail or
    the account is gone.
    """
    payment = claim.payment
    provider = gateway.registry.get(payment.provider)
    account = gateway.account_of(payment)
    if provider.merchant(account) != payment.merchant:
        # We may remember it from before a change that the acceptance knew of.
        account = gateway.account_of(payment, anew=True)
    is_other_merchant = provider.merchant(account) != payment.merchant
    if is_other_merchant:
        log.error("payment.merchant_changed", provider=payment.provider)
    if claim.step is Step.SUBMIT and is_other_merchant:
        return Observation(
            Verdict.NOT_SENT, "merchant_changed", retry_after_s=retry.ACCOUNT_MISSING_S
        )
    gateway.pace.advise(account.key, provider.terms(account).checks_per_s)
    seen, calls = _exchanged(claim, gateway, counted, provider, account)
    # Where there was no token nothing was asked. How long to wait for one, tokens.py says.
    if calls is not None:
        gateway.pace.learn(account.key, claim.step, seen, calls)
    return distrusted(seen) if is_other_merchant else seen


def _exchanged(
    claim: Claim,
    gateway: PaymentGateway,
    counted: SubmissionWire,
    provider: Provider,
    account: ProviderAccount,
) -> tuple[Observation, int | None]:
    """Token, then the one exchange; and how many calls a question took, None without a token."""
    payment = claim.payment
    not_ready = prepare_through(counted, provider, account)
    if not_ready is not None:
        return not_ready, None
    counted.wire = gateway.wire(renewed(claim))
    order = gateway.order_for(payment)
    if claim.step is Step.SUBMIT:
        seen = submit_through(counted, provider, order, account)
        return count_answer(payment, claim.step, seen), 1
    question = QuestionWire(counted.wire)
    seen = provider.check(order, account, question)
    return count_answer(payment, claim.step, seen), question.calls


# --- record: what the exchanges proved --------------------------------------------------------


def record(
    results: Sequence[ExchangeResult],
    gateway: PaymentGateway,
    unrecorded: list[ExchangeResult] | None = None,
) -> None:
    """Write the results in one transaction. What can't be written takes nothing with it.

    `unrecorded` has those of an earlier call, which are written too, and gets those for a later one,
    whose payments are locked, or the database was away. Raises what the first of the others has met.
    """
    unrecorded = [] if unrecorded is None else unrecorded
    # Once its lease is over, another worker asks.
    earlier = [one for one in unrecorded if one.claim.lease.remaining_s() > 0]
    unrecorded[:] = [*earlier, *results]
    if not unrecorded:
        return
    try:
        unrecorded[:] = _record_batch(earlier, results, gateway)
    except Exception as error:
        if is_transient(error):
            raise
        if len(unrecorded) == 1:
            unrecorded.clear()
            raise
        metrics.payments_recorded_one_by_one.inc()
        log.exception("payments.recorded_one_by_one", count=len(unrecorded))
        _record_one_by_one(gateway, unrecorded)


def _record_batch(
    earlier: Sequence[ExchangeResult], results: Sequence[ExchangeResult], gateway: PaymentGateway
) -> list[ExchangeResult]:
    """Once more after an error that says nothing about the rows: a connection that was lost, a lock.

    Returns those whose payments somebody else has locked for longer than a moment.
    """
    if not earlier:
        try:
            return _record_together(results, gateway)
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("payments.record_repeated", error=type(error).__name__, count=len(results))
    # A commit whose answer was lost may have succeeded.
    with transaction(EVERY_TENANT) as session:
        left = without_stored(session, [*earlier, *results])
    return _record_together(left, gateway, skip_locked=True) if left else []


def _record_one_by_one(gateway: PaymentGateway, unrecorded: list[ExchangeResult]) -> None:
    """Each in its own transaction. Keeps in `unrecorded` what may be written later."""
    failed: list[Exception] = []
    locked: list[ExchangeResult] = []
    try:
        while unrecorded:
            try:
                locked += _record_together(unrecorded[:1], gateway, skip_locked=True)
            except Exception as error:
                if is_transient(error):
                    raise
                with back_on_trail_of(unrecorded[0]):
                    log.exception("payment.not_recorded")
                failed.append(error)
            del unrecorded[0]
    finally:
        unrecorded += locked
    if failed:
        raise failed[0]


def _record_together(
    results: Sequence[ExchangeResult], gateway: PaymentGateway, *, skip_locked: bool = False
) -> list[ExchangeResult]:
    """In one transaction; with `skip_locked` but for those whose payments are locked, which it returns."""
    with transaction(EVERY_TENANT) as session:
        enqueue(session, Job.DISPATCH_WEBHOOKS)
        ids = {result.claim.payment.id for result in results}
        payments, now = locked_payments(session, ids, skip_locked=skip_locked)
        ours = [result for result in results if result.claim.payment.id in payments]
        batch = WriteBatch(session, now)
        stored = store_exchanges(batch, ours, payments, gateway.vault)
        for result, exchange_id in zip(ours, stored, strict=True):
            with back_on_trail_of(result):
                payment = payments[result.claim.payment.id]
                apply_result(batch, payment, result, exchange_id, gateway)
        batch.write()
        return [result for result in results if result.claim.payment.id not in payments]
