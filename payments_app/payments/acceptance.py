"""Accepts a payment: claims the key, stores the payment and the response, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID, uuid4

import structlog
import uuid_utils.compat
from sqlalchemy.exc import IntegrityError, OperationalError

from payments_app.kernel import idempotency, metrics, tracing
from payments_app.kernel.clock import utc_now
from payments_app.kernel.encryption import DataKey, TenantKeyring
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.idempotency import (
    Attempt,
    KeyExpired,
    KeyInProgress,
    KeyReused,
    StoredAnswer,
)
from payments_app.kernel.jobs import Job, notify_soon
from payments_app.kernel.postgres import constraint_of, is_lock_timeout
from payments_app.payments import insertion, queries
from payments_app.payments.errors import ExternalIdTaken
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.insertion import AccountChanged, EarlierRow, PaymentInsert
from payments_app.payments.payers import EncryptedPayer, decrypt_payer, encrypt_payer
from payments_app.payments.routing import NewPayment, Route, select_provider
from payments_app.payments.states import Status
from payments_app.tenants.caller import Caller
from payments_app.tenants.errors import TenantHeld

log = structlog.get_logger(__name__)

# Renders the response for a new payment.
Render = Callable[[PaymentInsert, NewPayment], StoredAnswer]
# A hold lasts minutes or hours, never seconds.
HELD_RETRY_AFTER_S: Final = 60
# An account may change between reading it and the acceptance, but not this often in a row.
ACCOUNT_READS_MAX: Final = 8
EXTERNAL_ID_ONCE: Final = "uq_payments_tenant_id_mode_external_id"


_KEYS_REFUSED: Final[dict[type[GatewayError], str]] = {
    KeyReused: "reused",
    KeyInProgress: "in_progress",
    KeyExpired: "expired",
}
# Create each counter at 0: a rate needs a first value.
for _outcome in ("first", "replayed", "absent", *_KEYS_REFUSED.values()):
    metrics.idempotency.labels(_outcome)


@dataclass(frozen=True, slots=True)
class AcceptContext:
    """Who requests the payment, and the identifiers of the request."""

    caller: Caller
    request_id: str
    idempotency_key: UUID | None
    answer_kept_for: timedelta
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The response to send. `status_now` is set when a stored one is replayed."""

    answer: StoredAnswer
    payment_id: UUID
    status_now: Status | None = None


def accept_payment(
    order: NewPayment, context: AcceptContext, gateway: PaymentGateway, render: Render
) -> Accepted:
    """Accept the payment, once per idempotency key, or replay the first response.

    Raises FieldsInvalid and select_provider's other errors, and TenantHeld, before anything is
    claimed; KeyReused, KeyInProgress, KeyExpired; ExternalIdTaken; DataKeyUnreadable.
    """
    with _refusals_counted():
        accepted = _accept_through_account(order, context, gateway, render)
    metrics.idempotency.labels(_came_to(context, accepted)).inc()
    return accepted


def _accept_through_account(
    order: NewPayment, context: AcceptContext, gateway: PaymentGateway, render: Render
) -> Accepted:
    for _ in range(ACCOUNT_READS_MAX - 1):
        try:
            return _accept(order, context, gateway, render)
        except AccountChanged:
            gateway.accounts.forget()
    return _accept(order, context, gateway, render)


def replay_payment(
    order: NewPayment, context: AcceptContext, keyring: TenantKeyring
) -> Accepted | None:
    """The first response, if this key has one. Raises KeyReused, KeyExpired, DataKeyUnreadable."""
    with _refusals_counted():
        earlier = _replay(order, context, keyring)
    if earlier is not None:
        metrics.idempotency.labels(_came_to(context, earlier)).inc()
    return earlier


def _accept(
    order: NewPayment, context: AcceptContext, gateway: PaymentGateway, render: Render
) -> Accepted:
    try:
        route = select_provider(order, context.caller, gateway)
        _refuse_held(context.caller)
    except GatewayError:
        # No provider takes it now. A key with a stored response still gets that one.
        if (earlier := _replay(order, context, gateway.keyring)) is None:
            raise
        return earlier
    payment_id = uuid_utils.compat.uuid7()
    tenant_id = context.caller.tenant_id
    sealed = encrypt_payer(
        gateway.keyring, tenant_id=tenant_id, payment_id=payment_id, msisdn=order.payer
    )
    payment = _payment_insert(payment_id, order, context, route, sealed, gateway.keyring)
    accepted = Accepted(render(payment, order), payment_id)
    attempt = attempt_of(order, context, gateway.keyring)
    row = _insert_once(payment, order, context, attempt, accepted.answer, sealed.data_key)
    if attempt is not None and row is not None:
        return _replayed(attempt, row, gateway.keyring)
    notify_soon(Job.PROCESS_DUE)
    notify_soon(Job.DISPATCH_WEBHOOKS)
    tracing.current().note({tracing.PAYMENT: str(payment_id)})
    metrics.payments_accepted.labels(payment.provider, payment.mode).inc()
    log.info("payment.accepted", payment_id=str(payment_id))
    return accepted


def _came_to(context: AcceptContext, accepted: Accepted) -> str:
    if accepted.status_now is not None:
        return "replayed"
    return "absent" if context.idempotency_key is None else "first"


def attempt_of(order: NewPayment, context: AcceptContext, keyring: TenantKeyring) -> Attempt | None:
    """The request as its idempotency key compares it, if any. Raises DataKeyUnreadable."""
    if context.idempotency_key is None:
        return None
    return Attempt(
        tenant_id=context.caller.tenant_id,
        mode=context.caller.mode,
        key=context.idempotency_key,
        fields={"method": "POST", "route": "/api/v1/payments", **order.fields()},
        digest=partial(keyring.key_for(context.caller.tenant_id).digest, about="request"),
    )


@contextmanager
def _refusals_counted() -> Iterator[None]:
    try:
        yield
    except (KeyReused, KeyInProgress, KeyExpired) as error:
        metrics.idempotency.labels(_KEYS_REFUSED[type(error)]).inc()
        raise


def _replay(order: NewPayment, context: AcceptContext, keyring: TenantKeyring) -> Accepted | None:
    attempt = attempt_of(order, context, keyring)
    row = None if attempt is None else insertion.find_earlier(attempt)
    return None if attempt is None or row is None else _replayed(attempt, row, keyring)


def _insert_once(
    payment: PaymentInsert,
    order: NewPayment,
    context: AcceptContext,
    attempt: Attempt | None,
    answer: StoredAnswer,
    data_key: DataKey,
) -> EarlierRow | None:
    """Insert the payment. Returns None, or the earlier row if the key was used before."""
    claim = None
    if attempt is not None:
        sealed = replace(answer, body=data_key.encrypt(answer.body, about=_answer_to(attempt)))
        values = idempotency.claim_values(
            attempt, resource_id=payment.id, answer=sealed, keep_for=context.answer_kept_for
        )
        claim = attempt, values
    metadata = None if order.metadata is None else json.dumps(order.metadata)
    actor = f"key:{context.caller.key_id}"
    try:
        return insertion.insert_payment(
            payment, metadata, claim, actor=actor, request_id=context.request_id
        )
    except IntegrityError as error:
        if constraint_of(error) == EXTERNAL_ID_ONCE:
            raise ExternalIdTaken(
                "An earlier payment has this external_id.",
                external_id=payment.external_id,
                **_id_of_earlier(payment),
            ) from None
        raise
    except OperationalError as error:
        if not is_lock_timeout(error):
            raise
        raise KeyInProgress(
            "The first request with this Idempotency-Key is still running.", retry_after_s=1
        ) from None


def _id_of_earlier(payment: PaymentInsert) -> dict[str, str]:
    """The id of the payment that has this one's external_id."""
    found = queries.find_id(payment.tenant_id, payment.mode, payment.external_id)
    return {} if found is None else {"payment_id": str(found)}


def _replayed(attempt: Attempt, row: EarlierRow, keyring: TenantKeyring) -> Accepted:
    earlier = idempotency.earlier_of(attempt, row.key)
    # The request keeps its own trace, with a link to the payment's trace.
    tracing.current().link(row.traceparent)
    payer = decrypt_payer(
        keyring, tenant_id=attempt.tenant_id, payment_id=earlier.payment_id, sealed=row.payer
    )
    expired = earlier.is_past_expiry and row.payment_status != Status.PENDING
    if expired or earlier.answer is None or payer is None:
        raise KeyExpired(
            "The answer to this Idempotency-Key is no longer kept; its payment is.",
            payment_id=str(earlier.payment_id),
        )
    body = payer.data_key.decrypt(earlier.answer.body, about=_answer_to(attempt))
    status = Status(row.payment_status)
    return Accepted(replace(earlier.answer, body=body), earlier.payment_id, status)


def _answer_to(attempt: Attempt) -> str:
    return f"answer {attempt.key}"


def _refuse_held(caller: Caller) -> None:
    if caller.held:
        raise TenantHeld(
            "New payments of this tenant are held at present. Send it again, with the same key.",
            retry_after_s=HELD_RETRY_AFTER_S,
        )


def reference_for(context: AcceptContext, keyring: TenantKeyring) -> UUID:
    """The reference that the provider knows the payment by: in form a UUIDv4, as providers want.

    A key always gives the same reference: if the database is restored to a time before the key was
    used, a retry is still the same payment to the provider. Nobody can predict it without the
    tenant's data key. Raises DataKeyUnreadable.
    """
    if context.idempotency_key is None:
        return uuid4()
    tenant = keyring.key_for(context.caller.tenant_id)
    digest = tenant.digest(context.idempotency_key.bytes, about=f"reference {context.caller.mode}")
    return UUID(bytes=digest[:16], version=4)


def _payment_insert(
    payment_id: UUID,
    order: NewPayment,
    context: AcceptContext,
    route: Route,
    sealed: EncryptedPayer,
    keyring: TenantKeyring,
) -> PaymentInsert:
    now = utc_now()
    caller, account = context.caller, route.account
    return PaymentInsert(
        id=payment_id,
        tenant_id=caller.tenant_id,
        mode=str(caller.mode),
        provider=route.provider.code,
        account_id=account.id,
        account_version="" if account.id is None else account.version,
        base_url=account.base_url,
        target_environment=account.target_environment,
        merchant=route.provider.merchant(account),
        reference=reference_for(context, keyring),
        amount_minor=order.money.minor,
        currency=order.money.currency,
        payer=sealed.payer,
        payer_index=sealed.index,
        payer_masked=sealed.masked,
        external_id=order.external_id,
        payer_message=order.payer_message,
        payee_note=order.payee_note,
        description=order.description,
        traceparent=context.traceparent,
        created_at=now,
        updated_at=now,
    )
