"""Accepting a payment: the key is claimed, the payment and the answer stored, in one transaction."""

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
from payments_app.kernel.vault import Box, Vault
from payments_app.payments import birth, queries
from payments_app.payments.birth import AccountChanged, EarlierRow, Newborn
from payments_app.payments.errors import ExternalIdTaken
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.order import NewPayment, Route, choose_route
from payments_app.payments.payers import SealedPayer, open_payer, seal_payer
from payments_app.payments.states import Status
from payments_app.tenants.caller import Caller
from payments_app.tenants.errors import TenantHeld

log = structlog.get_logger(__name__)

# The answer that a new payment is given.
Render = Callable[[Newborn, NewPayment], StoredAnswer]
# A brake is on for minutes or hours, never for seconds.
HELD_RETRY_AFTER_S: Final = 60
# An account may be changed between any reading of it and the acceptance; not so often in a row.
ACCOUNT_READS_MAX: Final = 8
EXTERNAL_ID_ONCE: Final = "uq_payments_tenant_id_mode_external_id"


_KEYS_REFUSED: Final[dict[type[GatewayError], str]] = {
    KeyReused: "reused",
    KeyInProgress: "in_progress",
    KeyExpired: "expired",
}
# Each is there from the start, at nought: a rate needs a number to begin from.
for _outcome in ("first", "replayed", "absent", *_KEYS_REFUSED.values()):
    metrics.idempotency.labels(_outcome)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for a payment, and how their request is known."""

    caller: Caller
    request_id: str
    idempotency_key: UUID | None
    answer_kept_for: timedelta
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to give. `status_now` is set when it is given again."""

    answer: StoredAnswer
    payment_id: UUID
    status_now: Status | None = None


def accept_payment(
    order: NewPayment, asker: Asker, rails: PaymentGateway, render: Render
) -> Accepted:
    """Accept the payment, once for each idempotency key, or give the first answer again.

    Raises FieldsInvalid and its kin, and TenantHeld, before anything is claimed; KeyReused,
    KeyInProgress, KeyExpired; ExternalIdTaken; VaultClosed.
    """
    with _refusals_counted():
        accepted = _accept_through_account(order, asker, rails, render)
    metrics.idempotency.labels(_came_to(asker, accepted)).inc()
    return accepted


def _accept_through_account(
    order: NewPayment, asker: Asker, rails: PaymentGateway, render: Render
) -> Accepted:
    for _ in range(ACCOUNT_READS_MAX - 1):
        try:
            return _accept(order, asker, rails, render)
        except AccountChanged:
            rails.accounts.forget()
    return _accept(order, asker, rails, render)


def replay_payment(order: NewPayment, asker: Asker, vault: Vault) -> Accepted | None:
    """The first answer, if this key has one. Raises KeyReused, KeyExpired, VaultClosed."""
    with _refusals_counted():
        earlier = _replay(order, asker, vault)
    if earlier is not None:
        metrics.idempotency.labels(_came_to(asker, earlier)).inc()
    return earlier


def _accept(order: NewPayment, asker: Asker, rails: PaymentGateway, render: Render) -> Accepted:
    try:
        route = choose_route(order, asker.caller, rails)
        _refuse_held(asker.caller)
    except GatewayError:
        # No rail takes it now. Whose key has an answer from before is given that one.
        if (earlier := _replay(order, asker, rails.vault)) is None:
            raise
        return earlier
    payment_id = uuid_utils.compat.uuid7()
    tenant_id = asker.caller.tenant_id
    sealed = seal_payer(rails.vault, tenant_id=tenant_id, payment_id=payment_id, msisdn=order.payer)
    payment = _newborn(payment_id, order, asker, route, sealed, rails.vault)
    accepted = Accepted(render(payment, order), payment_id)
    attempt = attempt_of(order, asker, rails.vault)
    row = _bear(payment, order, asker, attempt, accepted.answer, sealed.box)
    if attempt is not None and row is not None:
        return _replayed(attempt, row, rails.vault)
    notify_soon(Job.PROCESS_DUE)
    notify_soon(Job.DISPATCH_WEBHOOKS)
    tracing.current().note({tracing.PAYMENT: str(payment_id)})
    metrics.payments_accepted.labels(payment.provider, payment.mode).inc()
    log.info("payment.accepted", payment_id=str(payment_id))
    return accepted


def _came_to(asker: Asker, accepted: Accepted) -> str:
    if accepted.status_now is not None:
        return "replayed"
    return "absent" if asker.idempotency_key is None else "first"


def attempt_of(order: NewPayment, asker: Asker, vault: Vault) -> Attempt | None:
    """The request as the idempotency key sees it; None without a key. Raises VaultClosed."""
    if asker.idempotency_key is None:
        return None
    return Attempt(
        tenant_id=asker.caller.tenant_id,
        mode=asker.caller.mode,
        key=asker.idempotency_key,
        fields={"method": "POST", "route": "/api/v1/payments", **order.fields()},
        digest=partial(vault.box_of(asker.caller.tenant_id).digest, about="request"),
    )


@contextmanager
def _refusals_counted() -> Iterator[None]:
    try:
        yield
    except (KeyReused, KeyInProgress, KeyExpired) as error:
        metrics.idempotency.labels(_KEYS_REFUSED[type(error)]).inc()
        raise


def _replay(order: NewPayment, asker: Asker, vault: Vault) -> Accepted | None:
    attempt = attempt_of(order, asker, vault)
    row = None if attempt is None else birth.find_earlier(attempt)
    return None if attempt is None or row is None else _replayed(attempt, row, vault)


def _bear(
    payment: Newborn,
    order: NewPayment,
    asker: Asker,
    attempt: Attempt | None,
    answer: StoredAnswer,
    box: Box,
) -> EarlierRow | None:
    """None once the payment is there. Else what its key was used for before."""
    claim = None
    if attempt is not None:
        sealed = replace(answer, body=box.seal(answer.body, about=_answer_to(attempt)))
        values = idempotency.claim_values(
            attempt, resource_id=payment.id, answer=sealed, keep_for=asker.answer_kept_for
        )
        claim = attempt, values
    metadata = None if order.metadata is None else json.dumps(order.metadata)
    actor = f"key:{asker.caller.key_id}"
    try:
        return birth.bear(payment, metadata, claim, actor=actor, request_id=asker.request_id)
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


def _id_of_earlier(payment: Newborn) -> dict[str, str]:
    """The id of the payment that has this one's external_id."""
    found = queries.find_id(payment.tenant_id, payment.mode, payment.external_id)
    return {} if found is None else {"payment_id": str(found)}


def _replayed(attempt: Attempt, row: EarlierRow, vault: Vault) -> Accepted:
    earlier = idempotency.earlier_of(attempt, row.key)
    # Its own trace, with a way to the one in which the payment goes on.
    tracing.current().link(row.traceparent)
    payer = open_payer(
        vault, tenant_id=attempt.tenant_id, payment_id=earlier.payment_id, sealed=row.payer
    )
    expired = earlier.is_past_expiry and row.payment_status != Status.PENDING
    if expired or earlier.answer is None or payer is None:
        raise KeyExpired(
            "The answer to this Idempotency-Key is no longer kept; its payment is.",
            payment_id=str(earlier.payment_id),
        )
    body = payer.box.open(earlier.answer.body, about=_answer_to(attempt))
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


def reference_for(asker: Asker, vault: Vault) -> UUID:
    """What the provider is to know the payment by: a UUIDv4 in form, as providers want it.

    One key has one reference, for ever: should the database be restored to a time before the key
    was used, a retry is the same payment to the provider still. Nobody foresees it without the
    tenant's data key. Raises VaultClosed.
    """
    if asker.idempotency_key is None:
        return uuid4()
    tenant = vault.box_of(asker.caller.tenant_id)
    digest = tenant.digest(asker.idempotency_key.bytes, about=f"reference {asker.caller.mode}")
    return UUID(bytes=digest[:16], version=4)


def _newborn(
    payment_id: UUID,
    order: NewPayment,
    asker: Asker,
    route: Route,
    sealed: SealedPayer,
    vault: Vault,
) -> Newborn:
    now = utc_now()
    caller, account = asker.caller, route.account
    return Newborn(
        id=payment_id,
        tenant_id=caller.tenant_id,
        mode=str(caller.mode),
        provider=route.provider.code,
        account_id=account.id,
        account_version="" if account.id is None else account.version,
        base_url=account.base_url,
        target_environment=account.target_environment,
        merchant=route.provider.merchant(account),
        reference=reference_for(asker, vault),
        amount_minor=order.money.minor,
        currency=order.money.currency,
        payer=sealed.payer,
        payer_index=sealed.index,
        payer_masked=sealed.masked,
        external_id=order.external_id,
        payer_message=order.payer_message,
        payee_note=order.payee_note,
        description=order.description,
        traceparent=asker.traceparent,
        created_at=now,
        updated_at=now,
    )
