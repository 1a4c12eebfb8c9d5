"""A payment's first write, in one statement: its key, its row, and the first line of its history.

All three, or none: what another request has under the key comes back instead.
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
from payments_app.kernel.one_statement import ALONE, execute_alone, insert_from, values_for
from payments_app.payments.model import COLLECTION, Payment
from payments_app.payments.states import BORN, Event, Step
from payments_app.webhooks.model import PaymentEvent

_PAYMENTS: Final = cast(Table, Payment.__table__)
_EVENTS: Final = cast(Table, PaymentEvent.__table__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newborn:
    """A payment that isn't written yet: what it is born with, column by column.

    No ORM object: nobody follows what happens to it, and it costs a tenth of one.
    """

    id: UUID
    tenant_id: UUID
    mode: str
    flow: str = COLLECTION
    provider: str
    account_id: UUID | None
    # As it was read; not kept.
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
    status: str = str(BORN.status)
    stage: str = str(BORN.stage)
    # Its first event's.
    sequence: int = 1
    next_step: str = str(Step.SUBMIT)
    generation: int = 0
    submissions: int = 0
    created_at: datetime
    updated_at: datetime


class AccountChanged(Exception):
    """The tenant's account is another by now than the payment was to go through."""


# All else has a default in the schema, or comes later.
_BORN_WITH: Final = tuple(one.name for one in fields(Newborn) if one.name in _PAYMENTS.c)
_NAMES: Final = tuple(f"payments_{name}" for name in _BORN_WITH)
_born_with: Final = attrgetter(*_BORN_WITH)
_LINE: Final = ("tenant_id", "mode", "payment_id", "sequence", "type", "status", "stage", "actor")


def _birth(source: str) -> str:
    metadata = "%(payments_metadata)s::JSONB"
    born = insert_from(_PAYMENTS, _BORN_WITH, source, metadata=metadata)
    told = insert_from(_EVENTS, (*_LINE, "request_id"), "born")
    return f"born AS ({born} RETURNING id), told AS ({told} RETURNING id)"


# The wall's row, if the account is still as it was read: what this process remembers may be older
# than a change, and a payment for the merchant from before it could never be sent. Until we have
# committed nobody changes it; who is about to, with the row in hand, is waited for.
_STANDING: Final = """
standing AS (
    SELECT FROM wall WHERE %(account_version)s = COALESCE((
        SELECT c.id || ':' || c.version FROM provider_accounts c
        WHERE c.tenant_id = wall.set_config::uuid AND c.provider = %(payments_provider)s
            AND c.mode = %(payments_mode)s
        FOR SHARE
    ), '')
)
""".strip()
_WITHOUT_KEY: Final = (
    f"{ALONE}, {_STANDING}, {_birth('standing')} SELECT count(*) AS made FROM told"  # noqa: S608  our own
)
# As one value, for only who repeats a request gets one: psycopg reads it faster than columns that
# are mostly empty. It is looked for by the wall's row, so after the wall stands.
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
    WHERE k.tenant_id = wall.set_config::uuid AND k.mode = %(idempotency_keys_mode)s
        AND k.key = %(idempotency_keys_key)s
) AS earlier FROM wall
""".strip()
_UNDER_KEY: Final = (
    f"{ALONE}, {_STANDING}, claimed AS ({claim_from('standing')}), {_birth('claimed')} "  # noqa: S608
    + _EARLIER.format(
        first="(SELECT count(*) FROM told) AS made, (SELECT count(*) FROM standing) AS stands, "
    )
)
_FIND: Final = f"{ALONE} {_EARLIER.format(first='')}"


@dataclass(frozen=True, slots=True)
class EarlierRow:
    """What stands under a key, and what is known of its payment."""

    key: KeyRow
    payment_status: str
    payer: bytes | None
    traceparent: str | None

    @classmethod
    def read(cls, text: str) -> EarlierRow:
        """From what the database has written."""
        found = orjson.loads(text)
        payer, traceparent = _bytes(found.pop("payer")), found.pop("traceparent")
        status = found.pop("payment_status")
        found["fingerprint"] = _bytes(found["fingerprint"])
        found["body"] = _bytes(found["body"])
        # None: the key was used for something else.
        found["resource_id"] = found["resource_id"] and UUID(found["resource_id"])
        return cls(KeyRow(**found), status, payer, traceparent)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)


def bear(
    newborn: Newborn,
    metadata: str | None,
    claim: tuple[Attempt, dict[str, Any]] | None,
    *,
    actor: str,
    request_id: str,
) -> EarlierRow | None:
    """None once it is written. Else what stands under the key.

    `metadata`: JSON. `claim`: the attempt and its claim_values(). Raises AccountChanged; sqlalchemy's
    IntegrityError, and OperationalError (LockNotAvailable) when the wait for another request with
    this key was too long.
    """
    values = _values(newborn, metadata, actor=actor, request_id=request_id)
    if claim is None:
        (made,) = execute_alone(newborn.tenant_id, _WITHOUT_KEY, values)
        if not made:
            raise AccountChanged
        return None
    attempt, key = claim
    made, stands, earlier = execute_alone(newborn.tenant_id, _UNDER_KEY, values | key)
    if made:
        return None
    if earlier is not None:
        return EarlierRow.read(earlier)
    if not stands:
        raise AccountChanged
    # Whoever had the key has committed since the statement began.
    return _one(attempt)


def _values(
    newborn: Newborn, metadata: str | None, *, actor: str, request_id: str
) -> dict[str, Any]:
    """What the row and the first line of its history hold, and by what the account is known."""
    values = values_for(
        _EVENTS,
        tenant_id=newborn.tenant_id,
        mode=newborn.mode,
        payment_id=newborn.id,
        sequence=newborn.sequence,
        type=str(Event.ACCEPTED),
        status=newborn.status,
        stage=newborn.stage,
        actor=actor,
        request_id=request_id,
    )
    values.update(zip(_NAMES, _born_with(newborn), strict=True))
    values |= {"payments_metadata": metadata, "account_version": newborn.account_version}
    return values


def find_earlier(attempt: Attempt) -> EarlierRow | None:
    """What stands under the key, if anything does."""
    (earlier,) = execute_alone(attempt.tenant_id, _FIND, place_of(attempt))
    return None if earlier is None else EarlierRow.read(earlier)


def _one(attempt: Attempt) -> EarlierRow:
    row = find_earlier(attempt)
    if row is None:
        # Must not pass for a fresh one.
        raise RuntimeError("a key that is neither ours nor to be found")
    return row
