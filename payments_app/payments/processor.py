"""Processes payments after acceptance: claim, submit or check, record, settle.

Statuses change in this module and outcomes.py (an insert is accept.py's, and recovery.py puts
payments back to a status check after a restore). Each step is its own transaction;
network calls happen only between two. The intent is committed before the call: after a crash at any
point, a status check at the provider shows what happened.
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
from payments_app.kernel.http.messages import LeaseLost
from payments_app.kernel.jobs import Job, enqueue, notify
from payments_app.kernel.postgres import is_transient
from payments_app.payments import backoff
from payments_app.payments.account_slots import AccountSlots, step_of
from payments_app.payments.claims import (
    LEASE,
    Claim,
    Due,
    Queue,
    due_payments,
    is_due,
    lease_from,
    locked_payments,
    put_off,
    renewed,
    waiting_queues,
)
from payments_app.payments.evidence import open_submission, store_exchanges, without_stored
from payments_app.payments.exchange_pool import ExchangePool, ExchangeResult
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.payments.outcomes import apply_result, distrusted, move
from payments_app.payments.states import Event, Stage, Step
from payments_app.payments.telemetry import count_answer, note_outcome, payment_span, resume_span
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import Observation, Provider, ProviderAccount, Verdict
from payments_app.providers.submission import (
    QuestionClient,
    SubmissionClient,
    prepare_through,
    submit_through,
)

log = structlog.get_logger(__name__)

# A held tenant's payment is polled again after this; once released, it waits at most this long.
HELD_LOOK: Final = timedelta(seconds=30)
# The same for a payment that can't be claimed: a person must repair its rows.
NOT_CLAIMED_LOOK: Final = timedelta(seconds=60)
# Queries for one claim: other workers may claim the rows first. The next call finds what is left.
LOOKS_MAX: Final = 8


# --- claim, then submit or check ---------------------------------------------------------------


def process_due(
    gateway: PaymentGateway,
    pool: ExchangePool,
    slots: AccountSlots | None = None,
    unrecorded: list[ExchangeResult] | None = None,
) -> int:
    """Process due payments until none is left, several at a time; returns how many.

    Claim at most one payment per free slot of the pool, so that no lease ages in a queue. A slow
    exchange blocks only its slot, and a slow account only its own: `slots` counts those.
    `unrecorded` keeps for the next call what could not be written yet.
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
            # More may be due than there are slots here: other workers help until nothing is due.
            notify(Job.PROCESS_DUE)
            has_notified = True


def _claim_due(limit: int, gateway: PaymentGateway, slots: AccountSlots) -> list[Claim]:
    """Claim due payments, in fair turns. Blocks no other worker; skips rows that others hold."""
    for _ in range(LOOKS_MAX):
        shares = _shares(limit, gateway, slots) if limit else {}
        if not shares:
            break
        found, claims = _claim(shares)
        if claims:
            return claims
        # Others claimed them first: query again. Not for checks alone: a query uses up their rate.
        if not found and all(step_of(queue) is Step.CHECK for queue in shares):
            break
    return []


def _claim(shares: Mapping[Queue, int]) -> tuple[int, list[Claim]]:
    """Returns how many due payments were found, and the claims of those that may be processed."""
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
    """A payment that can't be claimed, e.g. without its events, must not stop the others."""
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
            # The tenant is held: no new submission is sent for it.
            payment.next_action_at = now + HELD_LOOK
    batch.write()
    return claims


def _shares(limit: int, gateway: PaymentGateway, slots: AccountSlots) -> dict[Queue, int]:
    """How many payments of each queue to claim now. Checks above the rate limit are left out."""
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
    """Carry out the claimed step, on any thread. Releases the account's slot at the end."""
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
            # From here on it may have been sent: after a crash, the next worker checks its status.
            payment.apply(Event.SUBMITTING, now)
            payment.next_step = Step.CHECK
            payment.submissions += 1
            payment.submitted_at = now
            open_submission(batch, payment)
        case Step.CHECK if payment.stage == Stage.SUBMITTING:
            # The worker that claimed the submission has recorded no result.
            move(batch, payment, Event.UNKNOWN, reason="worker_lost")
        case Step.CHECK:
            pass
        case never:
            assert_never(never)
    return Claim(payment, payment.generation, step, lease_from(taken_at))


def carry_out(
    claim: Claim, gateway: PaymentGateway, *, caused_by: str | None = None
) -> ExchangeResult:
    """Carry out the claimed step at the provider, on any thread. Never raises.

    `caused_by`: the span of the notification.
    """
    with payment_span(claim, caused_by=caused_by) as span:
        seen = _seen(claim, gateway)
        note_outcome(seen)
        return ExchangeResult(claim, seen, span)


def _seen(claim: Claim, gateway: PaymentGateway) -> Observation:
    counted = SubmissionClient(gateway.http_client(claim.lease))
    try:
        return _observe(claim, gateway, counted)
    except LeaseLost:
        # Nothing was sent. Another worker has claimed the row by now, or will.
        log.warning("payment.lease_lost", generation=claim.generation)
        return Observation(Verdict.NOT_SENT, "lease_lost")
    except GatewayError as error:
        # The adapter or the account is gone: an operator must act. Nothing was sent.
        log.error("payment.account_unavailable", code=error.code)
        return Observation(
            Verdict.NOT_SENT, "account_unavailable", retry_after_s=backoff.ACCOUNT_MISSING_S
        )
    except Exception:
        # A fault in an adapter or in our database must not stop the other payments.
        log.exception("payment.adapter_failed")
        if claim.step is Step.SUBMIT and counted.nothing_began:
            return Observation(Verdict.NOT_SENT, "not_ready", requests_left=0)
        return Observation(Verdict.UNKNOWN, "adapter_failed")


def _observe(claim: Claim, gateway: PaymentGateway, counted: SubmissionClient) -> Observation:
    """Open the account, get a token, make the one exchange. No transaction is open.

    Raises LeaseLost if no time was left to send; GatewayError if provider or account is gone.
    """
    payment = claim.payment
    provider = gateway.registry.get(payment.provider)
    account = gateway.account_of(payment)
    if provider.merchant(account) != payment.merchant:
        # The cached account may be older than a change that the acceptance has used already.
        account = gateway.account_of(payment, anew=True)
    is_other_merchant = provider.merchant(account) != payment.merchant
    if is_other_merchant:
        log.error("payment.merchant_changed", provider=payment.provider)
    if claim.step is Step.SUBMIT and is_other_merchant:
        return Observation(
            Verdict.NOT_SENT, "merchant_changed", retry_after_s=backoff.ACCOUNT_MISSING_S
        )
    gateway.pace.advise(account.key, provider.terms(account).checks_per_s)
    seen, calls = _exchanged(claim, gateway, counted, provider, account)
    # None: there was no token. tokens.py decides how long to wait for one.
    if calls is not None:
        gateway.pace.learn(account.key, claim.step, seen, calls)
    return distrusted(seen) if is_other_merchant else seen


def _exchanged(
    claim: Claim,
    gateway: PaymentGateway,
    counted: SubmissionClient,
    provider: Provider,
    account: ProviderAccount,
) -> tuple[Observation, int | None]:
    """Get a token, then make the one exchange; also returns how many calls it took, None without a token."""
    payment = claim.payment
    not_ready = prepare_through(counted, provider, account)
    if not_ready is not None:
        return not_ready, None
    counted.http_client = gateway.http_client(renewed(claim))
    order = gateway.order_for(payment)
    if claim.step is Step.SUBMIT:
        seen = submit_through(counted, provider, order, account)
        return count_answer(payment, claim.step, seen), 1
    question = QuestionClient(counted.http_client)
    seen = provider.check(order, account, question)
    return count_answer(payment, claim.step, seen), question.calls


# --- record: what the exchanges proved --------------------------------------------------------


def record(
    results: Sequence[ExchangeResult],
    gateway: PaymentGateway,
    unrecorded: list[ExchangeResult] | None = None,
) -> None:
    """Write the results in one transaction. A result that can't be written stops no other.

    `unrecorded` has those of an earlier call, written too, and keeps those for a later one: their
    payments are locked, or the database is unavailable. Raises the first other error.
    """
    unrecorded = [] if unrecorded is None else unrecorded
    # Once the lease is over, another worker checks the status.
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
    """Retry once after an error not caused by the rows: a lost connection, a lock.

    Returns the results whose payments somebody else keeps locked for longer than a moment.
    """
    if not earlier:
        try:
            return _record_together(results, gateway)
        except Exception as error:
            if not is_transient(error):
                raise
            log.warning("payments.record_repeated", error=type(error).__name__, count=len(results))
    # A commit may have succeeded although its response was lost.
    with transaction(EVERY_TENANT) as session:
        left = without_stored(session, [*earlier, *results])
    return _record_together(left, gateway, skip_locked=True) if left else []


def _record_one_by_one(gateway: PaymentGateway, unrecorded: list[ExchangeResult]) -> None:
    """Write each in its own transaction. Keeps in `unrecorded` what may be written later."""
    failed: list[Exception] = []
    locked: list[ExchangeResult] = []
    try:
        while unrecorded:
            try:
                locked += _record_together(unrecorded[:1], gateway, skip_locked=True)
            except Exception as error:
                if is_transient(error):
                    raise
                with resume_span(unrecorded[0]):
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
    """Write in one transaction. With `skip_locked`, skip and return those of locked payments."""
    with transaction(EVERY_TENANT, by_index=True) as session:
        enqueue(session, Job.DISPATCH_WEBHOOKS)
        ids = {result.claim.payment.id for result in results}
        payments, now = locked_payments(session, ids, skip_locked=skip_locked)
        ours = [result for result in results if result.claim.payment.id in payments]
        batch = WriteBatch(session, now)
        stored = store_exchanges(batch, ours, payments, gateway.keyring)
        for result, exchange_id in zip(ours, stored, strict=True):
            with resume_span(result):
                payment = payments[result.claim.payment.id]
                apply_result(batch, payment, result, exchange_id, gateway)
        batch.write()
        return [result for result in results if result.claim.payment.id not in payments]
