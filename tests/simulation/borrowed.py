"""Bugs of other gateways that take more than one line, implemented on our tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any
from uuid import UUID

from sqlalchemy import select, text

from payments_app.kernel import idempotency
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.http.transport import Lease
from payments_app.kernel.idempotency import (
    Attempt,
    IdempotencyKey,
    KeyInProgress,
    KeyRow,
    claim_from,
)
from payments_app.kernel.one_statement import WITH_TENANT, execute_autocommit
from payments_app.payments import accept, callbacks, outcomes, retention
from payments_app.payments.accept import EarlierRow, PaymentInsert
from payments_app.payments.callbacks import ReceivedCallback
from payments_app.payments.claims import Claim, locked_payments
from payments_app.payments.evidence import store_exchanges
from payments_app.payments.model import Payment
from payments_app.payments.states import Stage, Status, Step
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import Observation, Verdict
from tests.builders import found
from tests.builders import keyring as vault_here
from tests.simulation.rewriting import replaced

KeyClaim = tuple[Attempt, dict[str, Any]]


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
    """A reservation outside the database, dropped when the request fails in any way."""
    held: dict[tuple[UUID, str, UUID], tuple[UUID, KeyRow]] = {}
    original, insert_payment = accept.accept_payment, accept.insert_payment

    def reserve(
        payment_insert: PaymentInsert, metadata: str | None, claim: KeyClaim | None, **who: str
    ) -> EarlierRow | None:
        if claim is None:
            return insert_payment(payment_insert, metadata, None, **who)
        attempt, values = claim
        place = (attempt.tenant_id, attempt.mode, attempt.key)
        payment_id, key = held.setdefault(place, (payment_insert.id, _as_stored(values)))
        if payment_id == payment_insert.id:
            return insert_payment(payment_insert, metadata, None, **who)
        with transaction(EVERY_TENANT) as session:
            known = session.execute(
                select(Payment.status, Payment.payer, Payment.traceparent).where(
                    Payment.id == payment_id
                )
            ).one()
        return EarlierRow(key, *known)

    def accepting(order: Any, context: Any, gateway: Any, render: Any) -> Any:
        try:
            return original(order, context, gateway, render)
        except (idempotency.KeyReused, KeyInProgress):
            raise
        except Exception:
            held.pop((context.caller.tenant_id, context.caller.mode, context.idempotency_key), None)
            raise

    with swapped((accept, insert_payment, reserve), (accept, original, accepting)):
        yield


def _as_stored(values: dict[str, Any]) -> KeyRow:
    names = ("fingerprint", "fingerprint_version", "resource_id", "status", "body")
    return KeyRow(
        **{name: values[f"idempotency_keys_{name}"] for name in names},
        field_digests=json.loads(values["idempotency_keys_field_digests"]),
        headers=json.loads(values["idempotency_keys_headers"]),
        is_past_expiry=False,
    )


@contextmanager
def looked_up_then_stored_after() -> Iterator[None]:
    """Look up the key, create the payment, and store the key only afterwards."""
    insert_payment = accept.insert_payment

    def act(
        payment_insert: PaymentInsert, metadata: str | None, claim: KeyClaim | None, **who: str
    ) -> EarlierRow | None:
        earlier = None if claim is None else accept.find_earlier(claim[0])
        if earlier is None:
            insert_payment(payment_insert, metadata, None, **who)
            if claim is not None:
                claimed = f"{WITH_TENANT}, claimed AS ({claim_from('tenant_scope')})"
                statement = f"{claimed} SELECT count(*) FROM claimed"  # noqa: S608  ours
                execute_autocommit(payment_insert.tenant_id, statement, claim[1])
        return earlier

    with swapped((accept, insert_payment, act)):
        yield


@contextmanager
def key_without_tenant() -> Iterator[None]:
    """The key is looked up without its tenant, and without row-level security."""
    insert_payment = accept.insert_payment

    def act(
        payment_insert: PaymentInsert, metadata: str | None, claim: KeyClaim | None, **who: str
    ) -> EarlierRow | None:
        if claim is not None:
            attempt = claim[0]
            with transaction(EVERY_TENANT) as session:
                owner = session.scalars(
                    select(IdempotencyKey.tenant_id)
                    .where(IdempotencyKey.key == attempt.key)
                    .order_by(IdempotencyKey.created_at)
                ).first()
            if owner is not None:
                return accept.find_earlier(replace(attempt, tenant_id=owner))
        return insert_payment(payment_insert, metadata, claim, **who)

    with swapped((accept, insert_payment, act)):
        yield


@contextmanager
def nightly_clean_up() -> Iterator[None]:
    """Set a payment that is PENDING for more than a day to FAILED, without a status check."""
    expire = retention.purge_responses

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

    with swapped((retention, retention.purge_responses, expire_all)):
        yield


@contextmanager
def callback_trusted() -> Iterator[None]:
    """The status in a callback's body becomes the payment's status."""
    note = callbacks.record_callback

    def believe(received: ReceivedCallback, keyring: TenantKeyring) -> bool:
        new = note(received, keyring)
        status = json.loads(received.body)["status"]
        if status in (Status.SUCCESSFUL, Status.FAILED):
            with transaction(EVERY_TENANT) as session:
                payment_id = session.scalars(
                    select(Payment.id).where(Payment.reference == received.reference)
                ).one()
            _end(payment_id, Observation(Verdict(status), "callback", body=received.body), keyring)
        return new

    with swapped((callbacks, callbacks.record_callback, believe)):
        yield


def _end(payment_id: UUID, seen: Observation, keyring: TenantKeyring) -> None:
    with transaction(EVERY_TENANT) as session:
        locked, now = locked_payments(session, [payment_id])
        payment = locked[payment_id]
        if payment.is_final or payment.stage == Stage.ACCEPTED:
            return
        payment.generation += 1
        claim = Claim(payment, payment.generation, Step.CHECK, Lease(0.0))
        batch = WriteBatch(session, now)
        (exchange_id,) = store_exchanges(batch, [found(claim, seen)], locked, keyring)
        outcomes.settle(batch, payment, seen, exchange_id)
        batch.write()
