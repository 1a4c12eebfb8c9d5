"""Stores the provider's answers as received: a final payment must point to one of these rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Uuid,
    and_,
    any_,
    exists,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import Session, aliased

from payments_app.kernel.encryption import TenantKeyring
from payments_app.payments.exchange_pool import ExchangeResult
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.payments.payers import Payer, payer_of
from payments_app.payments.states import Step
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import UNREAD_REASONS, Observation, Verdict
from payments_app.tenants.model import Tenant

# A body is stored up to this size; providers' answers have a few hundred bytes.
EVIDENCE_BYTES_MAX: Final = 16_384
# RFC 9110, 15: three digits.
_STATUSES: Final = range(100, 1000)
# A final payment points to the row of one of these.
_ENDING: Final = frozenset({Verdict.SUCCESSFUL, Verdict.FAILED, Verdict.REFUSED})
# The provider gives these verdicts only for a payment that it has.
_SHOWN: Final = frozenset({Verdict.PENDING, Verdict.SUCCESSFUL, Verdict.FAILED})
# A client without a response repeats its request within this time. The key's reference is the same
# then: a request sent under it before a restore may be at the provider.
RESTORED_DOUBT: Final = timedelta(days=7)


class Evidence(NamedTuple):
    """A stored answer that ends a payment, with the reason if it is a failure."""

    exchange_id: int | None
    failure_code: str | None
    failure_provider_code: str | None


def evidence_of(seen: Observation, exchange_id: int | None) -> Evidence:
    """The evidence of an observation that is stored as `exchange_id`."""
    return Evidence(exchange_id, *_failure_words(seen))


def open_submission(batch: WriteBatch, payment: Payment) -> None:
    """Add the row that must be committed before the first byte of this generation is sent."""
    batch.exchanges.append(
        {
            "tenant_id": payment.tenant_id,
            "payment_id": payment.id,
            "generation": payment.generation,
            "kind": Step.SUBMIT,
            "reference": payment.reference,
        }
    )


def store_exchanges(
    batch: WriteBatch,
    findings: Sequence[ExchangeResult],
    payments: Mapping[UUID, Payment],
    keyring: TenantKeyring,
) -> list[int | None]:
    """Store results: close submissions' rows, add checks'. The ids of what may end a payment."""
    closed: list[dict[str, Any]] = []
    for finding in findings:
        claim, seen = finding.claim, finding.seen
        payment = payments[claim.payment.id]
        outcome = _outcome(seen, batch.now)
        outcome["body"] = _sealed(payment, claim.generation, seen.body, keyring)
        if claim.step is Step.SUBMIT:
            outcome["requests_left"] = _requests_left(seen)
            closed.append({"of_payment": payment.id, "of_generation": claim.generation, **outcome})
        elif seen.verdict is not Verdict.NOT_SENT or seen.http_status is not None:
            batch.exchanges.append(
                {
                    "tenant_id": payment.tenant_id,
                    "payment_id": payment.id,
                    "generation": claim.generation,
                    "kind": claim.step,
                    "reference": payment.reference,
                    **outcome,
                }
            )
    batch.close_submissions(closed)
    batch.write()
    may_end = {one.claim.payment.id for one in findings if one.seen.verdict in _ENDING}
    ids = _ids(batch.session, may_end)
    return [ids.get((one.claim.payment.id, one.claim.generation)) for one in findings]


def without_stored(session: Session, findings: Sequence[ExchangeResult]) -> list[ExchangeResult]:
    """The results whose answer is not in the database yet."""
    ids = [one.claim.payment.id for one in findings]
    rows = session.execute(
        select(ProviderExchange.payment_id, ProviderExchange.generation).where(
            ProviderExchange.payment_id == any_(literal(ids, ARRAY(Uuid))),
            ProviderExchange.finished_at.is_not(None),
        )
    )
    stored = {(payment_id, generation) for payment_id, generation in rows}
    return [one for one in findings if (one.claim.payment.id, one.claim.generation) not in stored]


def _ids(session: Session, payment_ids: Collection[UUID]) -> dict[tuple[UUID, int], int]:
    if not payment_ids:
        return {}
    rows = session.execute(
        select(ProviderExchange.payment_id, ProviderExchange.generation, ProviderExchange.id).where(
            ProviderExchange.payment_id == any_(literal(list(payment_ids), ARRAY(Uuid)))
        )
    )
    return {(payment_id, generation): id_ for payment_id, generation, id_ in rows}


def opened_body(payer: Payer | None, *, generation: int, body: bytes | None) -> bytes | None:
    """The decrypted answer; None once the payer has been erased. Raises DataKeyUnreadable."""
    if not body:
        return body
    return payer and payer.data_key.decrypt(body, about=_about(generation))


def _outcome(seen: Observation, now: datetime) -> dict[str, Any]:
    code, provider_code = _failure_words(seen)
    return {
        "verdict": seen.verdict,
        "reason": seen.reason,
        # A number that is no HTTP status must not keep the answer from being stored.
        "http_status": seen.http_status if seen.http_status in _STATUSES else None,
        "failure_code": code,
        "failure_provider_code": provider_code,
        "elapsed_ms": round(seen.elapsed_s * 1000),
        "requests_left": None,
        "finished_at": now,
    }


def _requests_left(seen: Observation) -> int | None:
    """None if the count is incomplete, because the adapter failed midway."""
    if seen.requests_left is None and seen.verdict is Verdict.NOT_SENT:
        # The adapter was never called.
        return 0
    return seen.requests_left


def _failure_words(seen: Observation) -> tuple[str | None, str | None]:
    return (seen.failure.code, seen.failure.provider_code) if seen.failure else (None, None)


def _sealed(payment: Payment, generation: int, body: bytes, keyring: TenantKeyring) -> bytes | None:
    """The encrypted body. An answer about an erased payer isn't stored."""
    if not body:
        return body
    payer = payer_of(keyring, payment)
    return payer and payer.data_key.encrypt(body[:EVIDENCE_BYTES_MAX], about=_about(generation))


def _about(generation: int) -> str:
    return f"exchange {generation}"


def standing_refusal(batch: WriteBatch, payment: Payment) -> Evidence | None:
    """The last submission's answer, if it was a refusal that no other exchange contradicts."""
    last = batch.session.scalars(
        select(ProviderExchange)
        .where(ProviderExchange.payment_id == payment.id, ProviderExchange.kind == Step.SUBMIT)
        .order_by(ProviderExchange.generation.desc())
        .limit(1)
    ).first()
    if last is None or last.verdict != Verdict.REFUSED or was_seen(batch, payment):
        return None
    return Evidence(last.id, last.failure_code, last.failure_provider_code)


def was_seen(batch: WriteBatch, payment: Payment) -> bool:
    """Whether the provider has shown that it has the payment: then no refusal ends it any more.

    A duplicate shows it too, but not of the first submission: we had sent nothing before it.
    Migration 0012 has the same rule.
    """
    earlier = aliased(ProviderExchange)
    was_sent_before = exists().where(
        earlier.payment_id == ProviderExchange.payment_id,
        earlier.kind == Step.SUBMIT,
        earlier.generation < ProviderExchange.generation,
        _may_have_left(earlier),
    )
    is_known_duplicate = and_(
        ProviderExchange.verdict == Verdict.DUPLICATE,
        or_(ProviderExchange.kind == Step.CHECK, was_sent_before),
    )
    shown = exists().where(
        ProviderExchange.payment_id == payment.id,
        or_(ProviderExchange.verdict.in_(_SHOWN), is_known_duplicate),
    )
    return batch.session.execute(select(shown)).scalar_one()


def may_have_left_before(batch: WriteBatch, payment: Payment) -> bool:
    """Whether an earlier request may have been sent, even one without effect, such as a 429.

    A refusal of a later request proves nothing about it. A row restored from a backup says nothing
    of what was sent since: see recovery.py.
    """
    if (
        payment.submissions > 1
        and batch.session.execute(
            select(
                exists().where(
                    ProviderExchange.payment_id == payment.id,
                    ProviderExchange.kind == Step.SUBMIT,
                    ProviderExchange.generation < payment.generation,
                    _may_have_left(ProviderExchange),
                )
            )
        ).scalar_one()
    ):
        return True
    restored_at = batch.session.scalar(
        select(Tenant.restored_at).where(Tenant.id == payment.tenant_id)
    )
    return (
        restored_at is not None and restored_at <= payment.created_at < restored_at + RESTORED_DOUBT
    )


def _may_have_left(exchange: type[ProviderExchange]) -> ColumnElement[bool]:
    """Of a submission. If its requests were not counted, it was sent if it was answered."""
    counted = func.coalesce(exchange.requests_left > 0, exchange.http_status.is_not(None))
    return or_(exchange.verdict.is_distinct_from(Verdict.NOT_SENT), counted)


def unread_before(batch: WriteBatch, payment: Payment) -> bool:
    """Whether an earlier status check had an unreadable answer, with no readable one since.

    Timeouts and 500s between them are ignored. So one unreadable answer changes nothing, nor do
    ones that alternate with readable answers.
    """
    reason = batch.session.scalars(
        select(ProviderExchange.reason)
        .where(
            ProviderExchange.payment_id == payment.id,
            ProviderExchange.kind == Step.CHECK,
            ProviderExchange.generation < payment.generation,
            or_(
                ProviderExchange.reason.in_(UNREAD_REASONS),
                ProviderExchange.verdict != Verdict.UNKNOWN,
            ),
        )
        .order_by(ProviderExchange.generation.desc())
        .limit(1)
    ).first()
    return reason in UNREAD_REASONS


def possible_submissions(batch: WriteBatch, payment: Payment) -> int:
    """How many submissions may have reached the provider: all but those proven not sent."""
    return batch.session.execute(
        select(func.count())
        .select_from(ProviderExchange)
        .where(
            ProviderExchange.payment_id == payment.id,
            ProviderExchange.kind == Step.SUBMIT,
            ProviderExchange.verdict.is_distinct_from(Verdict.NOT_SENT),
        )
    ).scalar_one()
