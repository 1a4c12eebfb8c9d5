"""What the provider said, kept as it came: a payment's end must point to one of these rows."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from payments_app.kernel.vault import Vault
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.payments.payers import Payer, payer_of
from payments_app.payments.states import Step
from payments_app.providers.contract import Observation, Verdict

# Evidence is kept whole up to this size; providers' answers are some hundred bytes.
EVIDENCE_BYTES_MAX: Final = 16_384


def open_submission(session: Session, payment: Payment) -> None:
    """The row that must be there before the first byte of this generation leaves."""
    session.add(
        ProviderExchange(
            tenant_id=payment.tenant_id,
            payment_id=payment.id,
            generation=payment.generation,
            kind=Step.SUBMIT,
            reference=payment.reference,
        )
    )


def store_exchange(
    session: Session,
    payment: Payment,
    *,
    generation: int,
    step: Step,
    seen: Observation,
    vault: Vault,
) -> int | None:
    """Keep what came back: close the submission's row, or add the question's. Its id."""
    if step is Step.CHECK and seen.http_status is None and seen.verdict is Verdict.NOT_SENT:
        return None
    outcome = _outcome(seen) | {"body": _sealed(payment, generation, seen.body, vault)}
    if step is Step.SUBMIT:
        return session.execute(
            update(ProviderExchange)
            .where(
                ProviderExchange.payment_id == payment.id,
                ProviderExchange.generation == generation,
            )
            .values(outcome)
            .returning(ProviderExchange.id)
        ).scalar_one()
    return session.execute(
        insert(ProviderExchange)
        .values(
            tenant_id=payment.tenant_id,
            payment_id=payment.id,
            generation=generation,
            kind=Step.CHECK,
            reference=payment.reference,
            **outcome,
        )
        .returning(ProviderExchange.id)
    ).scalar_one()


def opened_body(payer: Payer | None, *, generation: int, body: bytes | None) -> bytes | None:
    """What the provider said; None once the payer has been erased. Raises VaultClosed."""
    if not body:
        return body
    return payer and payer.box.open(body, about=_about(generation))


def _outcome(seen: Observation) -> dict[str, Any]:
    return {
        "verdict": seen.verdict,
        "reason": seen.reason,
        "http_status": seen.http_status,
        "failure_code": seen.failure.code if seen.failure else None,
        "failure_provider_code": seen.failure.provider_code if seen.failure else None,
        "elapsed_ms": round(seen.elapsed_s * 1000),
        "finished_at": func.clock_timestamp(),
    }


def _sealed(payment: Payment, generation: int, body: bytes, vault: Vault) -> bytes | None:
    """As it rests: an answer about an erased payer isn't kept."""
    if not body:
        return body
    payer = payer_of(vault, payment)
    return payer and payer.box.seal(body[:EVIDENCE_BYTES_MAX], about=_about(generation))


def _about(generation: int) -> str:
    return f"exchange {generation}"


def standing_refusal(session: Session, payment: Payment) -> ProviderExchange | None:
    """The last submission's answer, if that was a refusal."""
    last = session.scalars(
        select(ProviderExchange)
        .where(ProviderExchange.payment_id == payment.id, ProviderExchange.kind == Step.SUBMIT)
        .order_by(ProviderExchange.generation.desc())
        .limit(1)
    ).first()
    return last if last is not None and last.verdict == Verdict.REFUSED else None


def possible_submissions(session: Session, payment: Payment) -> int:
    """How many submissions may have reached the provider: all but those proven not to have left."""
    return session.execute(
        select(func.count())
        .select_from(ProviderExchange)
        .where(
            ProviderExchange.payment_id == payment.id,
            ProviderExchange.kind == Step.SUBMIT,
            ProviderExchange.verdict.is_distinct_from(Verdict.NOT_SENT),
        )
    ).scalar_one()
