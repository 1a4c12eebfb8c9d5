"""Whole behaviours as other gateways have them, on our tables: bugs that are more than one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import FunctionType
from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from payments_app.kernel import idempotency
from payments_app.kernel.database import EVERY_TENANT, after_commit, transaction
from payments_app.kernel.idempotency import (
    Attempt,
    Earlier,
    IdempotencyKey,
    KeyInProgress,
    StoredAnswer,
    fingerprint,
)
from payments_app.kernel.transport import Lease
from payments_app.kernel.vault import Vault
from payments_app.payments import acceptance, callbacks, lifecycle, retention
from payments_app.payments.callbacks import ReceivedCallback
from payments_app.payments.claims import Claim
from payments_app.payments.due import locked_payments
from payments_app.payments.evidence import store_exchanges
from payments_app.payments.model import Payment
from payments_app.payments.page import Page
from payments_app.payments.states import Stage, Status, Step
from payments_app.providers.contract import Observation, Verdict
from tests.builders import found
from tests.builders import vault as vault_here
from tests.simulation.rewriting import replaced


@contextmanager
def swapped(*pairs: tuple[Any, Callable[..., Any], Callable[..., Any]]) -> Iterator[None]:
    """Each (owner, original, new) in force."""
    with ExitStack() as stack:
        for owner, original, new in pairs:
            assert isinstance(original, FunctionType)
            stack.enter_context(replaced(owner, original, new))
        yield


@contextmanager
def lock_dropped_on_error() -> Iterator[None]:
    """A reservation outside the database, given up when the request fails in any way."""
    held: dict[tuple[UUID, str, UUID], tuple[bytes, UUID, StoredAnswer]] = {}
    accept = acceptance.accept_payment

    def claim(
        _session: Session,
        attempt: Attempt,
        *,
        resource_id: UUID,
        answer: StoredAnswer,
        keep_for: timedelta,  # noqa: ARG001  it has the real one's signature
    ) -> Earlier | None:
        place = (attempt.tenant_id, attempt.mode, attempt.key)
        asked = fingerprint(attempt, idempotency.CURRENT_VERSION)
        print_, payment_id, stored = held.setdefault(place, (asked, resource_id, answer))
        if payment_id == resource_id:
            return None
        if print_ != asked:
            raise idempotency.KeyReused("Used for another request.", fields=[])
        return Earlier(payment_id, stored, is_past_expiry=False)

    def accepting(order: Any, asker: Any, rails: Any, render: Any) -> Any:
        try:
            return accept(order, asker, rails, render)
        except (idempotency.KeyReused, KeyInProgress):
            raise
        except Exception:
            held.pop((asker.caller.tenant_id, asker.caller.mode, asker.idempotency_key), None)
            raise

    with swapped(
        (idempotency, idempotency.claim, claim), (acceptance, acceptance.accept_payment, accepting)
    ):
        yield


@contextmanager
def looked_up_then_stored_after() -> Iterator[None]:
    """Look for the key, act, and remember the key once all is done."""

    def claim(
        session: Session,
        attempt: Attempt,
        *,
        resource_id: UUID,
        answer: StoredAnswer,
        keep_for: timedelta,
    ) -> Earlier | None:
        earlier = idempotency.find(session, attempt)
        if earlier is None:
            after_commit(session, lambda: _remember(attempt, resource_id, answer, keep_for))
        return earlier

    with swapped((idempotency, idempotency.claim, claim)):
        yield


def _remember(
    attempt: Attempt, payment_id: UUID, answer: StoredAnswer, keep_for: timedelta
) -> None:
    with transaction(EVERY_TENANT) as session:
        session.execute(
            insert(IdempotencyKey)
            .values(
                tenant_id=attempt.tenant_id,
                mode=attempt.mode,
                key=attempt.key,
                fingerprint=fingerprint(attempt, idempotency.CURRENT_VERSION),
                fingerprint_version=idempotency.CURRENT_VERSION,
                field_digests={},
                resource_id=payment_id,
                status=answer.status,
                headers=dict(answer.headers),
                body=answer.body,
                expires_at=text("clock_timestamp() + :kept").bindparams(kept=keep_for),
            )
            .on_conflict_do_nothing()
        )


@contextmanager
def nightly_clean_up() -> Iterator[None]:
    """What is PENDING for more than a day is called FAILED, and nobody is asked."""
    expire = retention.expire_answers

    def expire_all() -> int:
        with transaction(EVERY_TENANT) as session:
            old = session.scalars(
                select(Payment.id)
                .where(
                    Payment.status == Status.PENDING,
                    Payment.stage != Stage.ACCEPTED,
                    Payment.created_at < text("statement_timestamp() - interval '1 day'"),
                )
                .order_by(Payment.description, Payment.id)
            ).all()
        for payment_id in old:
            _end(payment_id, Observation(Verdict.FAILED, "too_old"), vault_here())
        return expire()

    with swapped((retention, retention.expire_answers, expire_all)):
        yield


@contextmanager
def callback_trusted() -> Iterator[None]:
    """The status in a callback's body becomes the payment's."""
    note = callbacks.note_callback

    def believe(received: ReceivedCallback, vault: Vault) -> bool:
        new = note(received, vault)
        status = json.loads(received.body)["status"]
        if status in (Status.SUCCESSFUL, Status.FAILED):
            with transaction(EVERY_TENANT) as session:
                payment_id = session.scalars(
                    select(Payment.id).where(Payment.reference == received.reference)
                ).one()
            _end(payment_id, Observation(Verdict(status), "callback", body=received.body), vault)
        return new

    with swapped((callbacks, callbacks.note_callback, believe)):
        yield


def _end(payment_id: UUID, seen: Observation, vault: Vault) -> None:
    with transaction(EVERY_TENANT) as session:
        locked, now = locked_payments(session, [payment_id])
        payment = locked[payment_id]
        if payment.is_final or payment.stage == Stage.ACCEPTED:
            return
        payment.generation += 1
        claim = Claim(payment, payment.generation, Step.CHECK, Lease(0.0))
        page = Page(session, now)
        (exchange_id,) = store_exchanges(page, [found(claim, seen)], locked, vault)
        lifecycle._settle(page, payment, seen, exchange_id)
        page.write()
