"""Insert a payment in one statement: its idempotency key, its row, and its first event.

All three are written, or none; then it returns what an earlier request stored under the key.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, cast
from uuid import UUID

import orjson
from sqlalchemy import Table

from payments_app.kernel.idempotency import Attempt, KeyRow, claim_from, place_of
from payments_app.kernel.one_statement import (
    WITH_TENANT,
    execute_autocommit,
    insert_from,
    values_for,
)
from payments_app.payments.model import COLLECTION, Payment
from payments_app.payments.states import INITIAL_STATE, Event, Step
from payments_app.webhooks.model import PaymentEvent

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
_EVENT_COLUMNS: Final = (
    "tenant_id",
    "mode",
    "payment_id",
    "sequence",
    "type",
    "status",
    "stage",
    "actor",
)


def _inserts(source: str) -> str:
    metadata = "%(payments_metadata)s::JSONB"
    payment = insert_from(_PAYMENTS, _COLUMNS, source, metadata=metadata)
    event = insert_from(_EVENTS, (*_EVENT_COLUMNS, "request_id"), "new_payment")
    return f"new_payment AS ({payment} RETURNING id), new_event AS ({event} RETURNING id)"


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
    FROM idempotency_keys k LEFT JOIN payments p ON p.id = k.resource_id
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
    """The values of the payment and of its first event, and the account's version."""
    values = values_for(
        _EVENTS,
        tenant_id=payment_insert.tenant_id,
        mode=payment_insert.mode,
        payment_id=payment_insert.id,
        sequence=payment_insert.sequence,
        type=str(Event.ACCEPTED),
        status=payment_insert.status,
        stage=payment_insert.stage,
        actor=actor,
        request_id=request_id,
    )
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
