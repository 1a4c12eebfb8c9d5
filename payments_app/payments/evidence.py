"""What the provider said, kept as it came: a payment's end must point to one of these rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, any_, func, literal, select
from sqlalchemy.orm import Session

from payments_app.kernel.vault import Vault
from payments_app.payments.hands import Finding
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.payments.page import Page
from payments_app.payments.payers import Payer, payer_of
from payments_app.payments.states import Step
from payments_app.providers.contract import Observation, Verdict

# Evidence is kept whole up to this size; providers' answers are some hundred bytes.
EVIDENCE_BYTES_MAX: Final = 16_384
# A payment that ends points to the row of one of these.
_ENDING: Final = frozenset({Verdict.SUCCESSFUL, Verdict.FAILED, Verdict.REFUSED})


class Evidence(NamedTuple):
    """A stored answer that ends a payment, with its reason if it is a failure."""

    exchange_id: int | None
    failure_code: str | None
    failure_provider_code: str | None


def evidence_of(seen: Observation, exchange_id: int | None) -> Evidence:
    """What was seen, as it is stored."""
    return Evidence(exchange_id, *_failure_words(seen))


def open_submission(page: Page, payment: Payment) -> None:
    """The row that must be there before the first byte of this generation leaves."""
    page.exchanges.append(
        {
            "tenant_id": payment.tenant_id,
            "payment_id": payment.id,
            "generation": payment.generation,
            "kind": Step.SUBMIT,
            "reference": payment.reference,
        }
    )


def store_exchanges(
    page: Page, findings: Sequence[Finding], payments: Mapping[UUID, Payment], vault: Vault
) -> list[int | None]:
    """Keep what came back: close submissions' rows, add questions'. The ids of what may end one."""
    closed: list[dict[str, Any]] = []
    for finding in findings:
        claim, seen = finding.claim, finding.seen
        payment = payments[claim.payment.id]
        outcome = _outcome(seen, page.now)
        outcome["body"] = _sealed(payment, claim.generation, seen.body, vault)
        if claim.step is Step.SUBMIT:
            closed.append({"of_payment": payment.id, "of_generation": claim.generation, **outcome})
        elif seen.verdict is not Verdict.NOT_SENT or seen.http_status is not None:
            page.exchanges.append(
                {
                    "tenant_id": payment.tenant_id,
                    "payment_id": payment.id,
                    "generation": claim.generation,
                    "kind": claim.step,
                    "reference": payment.reference,
                    **outcome,
                }
            )
    page.close_submissions(closed)
    page.write()
    may_end = {one.claim.payment.id for one in findings if one.seen.verdict in _ENDING}
    ids = _ids(page.session, may_end)
    return [ids.get((one.claim.payment.id, one.claim.generation)) for one in findings]


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
    """What the provider said; None once the payer has been erased. Raises VaultClosed."""
    if not body:
        return body
    return payer and payer.box.open(body, about=_about(generation))


def _outcome(seen: Observation, now: datetime) -> dict[str, Any]:
    code, provider_code = _failure_words(seen)
    return {
        "verdict": seen.verdict,
        "reason": seen.reason,
        "http_status": seen.http_status,
        "failure_code": code,
        "failure_provider_code": provider_code,
        "elapsed_ms": round(seen.elapsed_s * 1000),
        "finished_at": now,
    }


def _failure_words(seen: Observation) -> tuple[str | None, str | None]:
    return (seen.failure.code, seen.failure.provider_code) if seen.failure else (None, None)


def _sealed(payment: Payment, generation: int, body: bytes, vault: Vault) -> bytes | None:
    """As it rests: an answer about an erased payer isn't kept."""
    if not body:
        return body
    payer = payer_of(vault, payment)
    return payer and payer.box.seal(body[:EVIDENCE_BYTES_MAX], about=_about(generation))


def _about(generation: int) -> str:
    return f"exchange {generation}"


def standing_refusal(page: Page, payment: Payment) -> Evidence | None:
    """The last submission's answer, if that was a refusal."""
    last = page.session.scalars(
        select(ProviderExchange)
        .where(ProviderExchange.payment_id == payment.id, ProviderExchange.kind == Step.SUBMIT)
        .order_by(ProviderExchange.generation.desc())
        .limit(1)
    ).first()
    if last is None or last.verdict != Verdict.REFUSED:
        return None
    return Evidence(last.id, last.failure_code, last.failure_provider_code)


def possible_submissions(page: Page, payment: Payment) -> int:
    """How many submissions may have reached the provider: all but those proven not to have left."""
    return page.session.execute(
        select(func.count())
        .select_from(ProviderExchange)
        .where(
            ProviderExchange.payment_id == payment.id,
            ProviderExchange.kind == Step.SUBMIT,
            ProviderExchange.verdict.is_distinct_from(Verdict.NOT_SENT),
        )
    ).scalar_one()
