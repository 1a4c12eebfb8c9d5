"""Accepts a payment: claims the idempotency key, inserts the payment and its first event, and stores
the response, in one statement that is one transaction.

Either all are written, or none; then it returns what an earlier request stored under the key.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any, Final, cast
from uuid import UUID, uuid4

import orjson
import structlog
import uuid_utils.compat
from sqlalchemy import Table
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
    KeyRow,
    StoredAnswer,
    claim_from,
    place_of,
)
from payments_app.kernel.jobs import Job, notify_soon
from payments_app.kernel.one_statement import (
    WITH_TENANT,
    execute_autocommit,
    insert_from,
    values_for,
)
from payments_app.kernel.postgres import constraint_of, is_lock_timeout
from payments_app.payments import queries
from payments_app.payments.errors import ExternalIdTaken
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import COLLECTION, Payment
from payments_app.payments.payers import EncryptedPayer, decrypt_payer, encrypt_payer
from payments_app.payments.routing import NewPayment, Route, select_provider
from payments_app.payments.states import INITIAL_STATE, Event, Status, Step
from payments_app.tenants.caller import Caller
from payments_app.tenants.errors import TenantHeld
from payments_app.webhooks.model import PaymentEvent

log = structlog.get_logger(__name__)

# Renders the response for a new payment.
Render = Callable[["PaymentInsert", NewPayment], StoredAnswer]
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
    row = None if attempt is None else find_earlier(attempt)
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
        return insert_payment(payment, metadata, claim, actor=actor, request_id=context.request_id)
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


_PAYMENTS: Final = cast(Table, Payment.__table__)
_EVENTS: Final = cast(Table, PaymentEvent.__table__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentInsert:
    """The columns that a new payment is inserted with.

    Not an ORM object: it tracks no changes, and costs a tenth of one.
    """

    id: UUID
    tenant_id: UUID
    mode: str
    flow: str = COLLECTION
    provider: str
    account_id: UUID | None
    # The version that was read; not stored.
    account_version: str
    base_url: str
    target_environment: str
    merchant: str
    reference: UUID
    amount_minor: int
    currency: str
    payer: bytes
    payer_index: bytes
    payer_masked: str
    external_id: str | None
    payer_message: str | None
    payee_note: str | None
    description: str | None
    traceparent: str | None
    status: str = str(INITIAL_STATE.status)
    stage: str = str(INITIAL_STATE.stage)
    # The sequence of its first event.
    sequence: int = 1
    next_step: str = str(Step.SUBMIT)
    generation: int = 0
    submissions: int = 0
    created_at: datetime
    updated_at: datetime


class AccountChanged(Exception):
    """The tenant's account was changed since it was selected for the payment."""


# Every other column has a default in the schema, or is set later.
_COLUMNS: Final = tuple(one.name for one in fields(PaymentInsert) if one.name in _PAYMENTS.c)
_NAMES: Final = tuple(f"payments_{name}" for name in _COLUMNS)
_values_of: Final = attrgetter(*_COLUMNS)
# The first event copies these from its payment.
_OF_PAYMENT: Final = ("tenant_id", "mode", "sequence", "status", "stage")


def _inserts(source: str) -> str:
    metadata = "%(payments_metadata)s::JSONB"
    payment = insert_from(_PAYMENTS, _COLUMNS, source, metadata=metadata)
    copied = {"payment_id": "id", **{name: name for name in _OF_PAYMENT}}
    event = insert_from(_EVENTS, ("type", "actor", "request_id"), "new_payment", **copied)
    returned = ", ".join(("id", *_OF_PAYMENT))
    return f"new_payment AS ({payment} RETURNING {returned}), new_event AS ({event} RETURNING id)"


# One row if the account is unchanged since this process read it, else none: a payment for an
# account's earlier API user could never be sent. FOR SHARE makes a change of the account wait for
# our commit, and makes us wait for a change that is not committed yet.
_CURRENT_ACCOUNT: Final = """
current_account AS (
    SELECT FROM tenant_scope WHERE %(account_version)s = COALESCE((
        SELECT c.id || ':' || c.version FROM provider_accounts c
        WHERE c.tenant_id = tenant_scope.set_config::uuid AND c.provider = %(payments_provider)s
            AND c.mode = %(payments_mode)s
        FOR SHARE
    ), '')
)
""".strip()
_WITHOUT_KEY: Final = f"{WITH_TENANT}, {_CURRENT_ACCOUNT}, {_inserts('current_account')} SELECT count(*) AS made FROM new_event"  # noqa: S608  our own
# One JSON value, as only a repeated request has one: psycopg reads it faster than many columns that
# are mostly null. It selects from tenant_scope, so the tenant is set before the key is looked up.
_EARLIER: Final = """
SELECT {first}(
    SELECT json_build_object(
        'fingerprint', encode(k.fingerprint, 'base64'),
        'fingerprint_version', k.fingerprint_version, 'field_digests', k.field_digests,
        'resource_id', k.resource_id, 'status', k.status, 'headers', k.headers,
        'body', encode(k.body, 'base64'), 'is_past_expiry', k.expires_at <= clock_timestamp(),
        'payment_status', p.status, 'payer', encode(p.payer, 'base64'),
        'traceparent', p.traceparent
    )::text
    FROM idempotency_keys k
        LEFT JOIN LATERAL (SELECT * FROM payments WHERE id = k.resource_id LIMIT 1) p ON true
    WHERE k.tenant_id = tenant_scope.set_config::uuid AND k.mode = %(idempotency_keys_mode)s
        AND k.key = %(idempotency_keys_key)s
) AS earlier FROM tenant_scope
""".strip()
_UNDER_KEY: Final = (
    f"{WITH_TENANT}, {_CURRENT_ACCOUNT}, claimed AS ({claim_from('current_account')}), {_inserts('claimed')} "  # noqa: S608
    + _EARLIER.format(
        first="(SELECT count(*) FROM new_event) AS made, (SELECT count(*) FROM current_account) AS is_current, "
    )
)
_FIND: Final = f"{WITH_TENANT} {_EARLIER.format(first='')}"


@dataclass(frozen=True, slots=True)
class EarlierRow:
    """What is stored under a key, and the state of its payment."""

    key: KeyRow
    payment_status: str
    payer: bytes | None
    traceparent: str | None

    @classmethod
    def read(cls, text: str) -> EarlierRow:
        """Read the JSON of _EARLIER."""
        found = orjson.loads(text)
        payer, traceparent = _bytes(found.pop("payer")), found.pop("traceparent")
        status = found.pop("payment_status")
        found["fingerprint"] = _bytes(found["fingerprint"])
        found["body"] = _bytes(found["body"])
        # None: the key was used for another route, which creates no payment.
        found["resource_id"] = found["resource_id"] and UUID(found["resource_id"])
        return cls(KeyRow(**found), status, payer, traceparent)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)


def insert_payment(
    payment_insert: PaymentInsert,
    metadata: str | None,
    claim: tuple[Attempt, dict[str, Any]] | None,
    *,
    actor: str,
    request_id: str,
) -> EarlierRow | None:
    """Insert the payment. Returns None, or what is already stored under the key.

    `metadata`: JSON. `claim`: the attempt and its claim_values(). Raises AccountChanged;
    sqlalchemy's IntegrityError, and OperationalError (LockNotAvailable) when another request with
    this key did not end in time.
    """
    values = _values(payment_insert, metadata, actor=actor, request_id=request_id)
    if claim is None:
        (made,) = execute_autocommit(payment_insert.tenant_id, _WITHOUT_KEY, values)
        if not made:
            raise AccountChanged
        return None
    attempt, key = claim
    made, is_current, earlier = execute_autocommit(
        payment_insert.tenant_id, _UNDER_KEY, values | key
    )
    if made:
        return None
    if earlier is not None:
        return EarlierRow.read(earlier)
    if not is_current:
        raise AccountChanged
    # The request that used the key has committed since our statement began.
    return _one(attempt)


def _values(
    payment_insert: PaymentInsert, metadata: str | None, *, actor: str, request_id: str
) -> dict[str, Any]:
    """The values of the payment, what its event does not copy, and the account's version."""
    values = values_for(_EVENTS, type=str(Event.ACCEPTED), actor=actor, request_id=request_id)
    values.update(zip(_NAMES, _values_of(payment_insert), strict=True))
    values |= {"payments_metadata": metadata, "account_version": payment_insert.account_version}
    return values


def find_earlier(attempt: Attempt) -> EarlierRow | None:
    """What is stored under the key, if anything is."""
    (earlier,) = execute_autocommit(attempt.tenant_id, _FIND, place_of(attempt))
    return None if earlier is None else EarlierRow.read(earlier)


def _one(attempt: Attempt) -> EarlierRow:
    row = find_earlier(attempt)
    if row is None:
        # This must not be treated as a new key.
        raise RuntimeError("a key that is neither ours nor to be found")
    return row
