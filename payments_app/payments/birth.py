"""A payment's first write, in one statement: its key, its row, and the first line of its story.

All three, or none: what another request has under the key comes back instead.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

import orjson
from sqlalchemy import Table

from payments_app.kernel.database import ALONE, execute_alone, insert_from, values_for
from payments_app.kernel.idempotency import Attempt, KeyRow, claim_from, place_of
from payments_app.payments.model import Payment, PaymentEvent
from payments_app.payments.states import Event

_PAYMENTS: Final = cast(Table, Payment.__table__)
_EVENTS: Final = cast(Table, PaymentEvent.__table__)
# What a payment is born with; all else has a default in the schema, or comes later.
_BORN_WITH: Final = (
    *("id", "tenant_id", "mode", "flow", "provider", "account_id", "base_url"),
    *("target_environment", "merchant", "reference", "amount_minor", "currency", "payer"),
    *("payer_index", "payer_masked", "external_id", "payer_message", "payee_note", "description"),
    *("traceparent", "status", "stage", "sequence", "next_step", "generation", "submissions"),
    *("created_at", "updated_at"),
)
_LINE: Final = ("tenant_id", "payment_id", "sequence", "type", "status", "stage", "actor")


def _birth(source: str) -> str:
    metadata = "%(payments_metadata)s::JSONB"
    born = insert_from(_PAYMENTS, _BORN_WITH, source, metadata=metadata)
    told = insert_from(_EVENTS, (*_LINE, "request_id"), "born")
    return f"born AS ({born} RETURNING id), told AS ({told} RETURNING id)"


_WITHOUT_KEY: Final = f"{ALONE}, {_birth('wall')} SELECT count(*) AS made FROM told"  # noqa: S608  our own
# As one value, for only who repeats a request gets one: psycopg reads it faster than columns that
# are mostly empty. It is looked for by the wall's row, so after the wall stands.
_EARLIER: Final = """
SELECT {made}, (
    SELECT json_build_object(
        'fingerprint', encode(k.fingerprint, 'base64'),
        'fingerprint_version', k.fingerprint_version, 'field_digests', k.field_digests,
        'resource_id', k.resource_id, 'status', k.status, 'headers', k.headers,
        'body', encode(k.body, 'base64'), 'is_past_expiry', k.expires_at <= clock_timestamp(),
        'payment_status', p.status, 'payer', encode(p.payer, 'base64'),
        'traceparent', p.traceparent
    )::text
    FROM idempotency_keys k JOIN payments p ON p.id = k.resource_id
    WHERE k.tenant_id = wall.set_config::uuid AND k.mode = %(idempotency_keys_mode)s
        AND k.key = %(idempotency_keys_key)s
) AS earlier FROM wall
""".strip()
_UNDER_KEY: Final = (
    f"{ALONE}, claimed AS ({claim_from('wall')}), {_birth('claimed')} "  # noqa: S608
    + _EARLIER.format(made="(SELECT count(*) FROM told) AS made")
)
_FIND: Final = f"{ALONE} {_EARLIER.format(made='0 AS made')}"


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
        found["resource_id"] = UUID(found["resource_id"])
        return cls(KeyRow(**found), status, payer, traceparent)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)


def bear(
    payment: Payment,
    attempt: Attempt | None,
    claim: dict[str, Any] | None,
    *,
    actor: str,
    request_id: str,
) -> EarlierRow | None:
    """None once it is written. Else what stands under the key.

    `claim`: claim_values(). Raises sqlalchemy's IntegrityError, and OperationalError
    (LockNotAvailable) when the wait for another request with this key was too long.
    """
    line = values_for(
        _EVENTS,
        tenant_id=payment.tenant_id,
        payment_id=payment.id,
        sequence=payment.sequence,
        type=str(Event.ACCEPTED),
        status=str(payment.status),
        stage=str(payment.stage),
        actor=actor,
        request_id=request_id,
    )
    values = _row(payment) | line
    if attempt is None or claim is None:
        execute_alone(payment.tenant_id, _WITHOUT_KEY, values)
        return None
    row = execute_alone(payment.tenant_id, _UNDER_KEY, values | claim)
    if row.made:
        return None
    if row.earlier is not None:
        return EarlierRow.read(row.earlier)
    # Whoever had the key has committed since the statement began.
    return _one(attempt)


def find_earlier(attempt: Attempt) -> EarlierRow | None:
    """What stands under the key, if anything does."""
    row = execute_alone(attempt.tenant_id, _FIND, place_of(attempt))
    return None if row.earlier is None else EarlierRow.read(row.earlier)


def _one(attempt: Attempt) -> EarlierRow:
    row = find_earlier(attempt)
    if row is None:
        # Must not pass for a fresh one.
        raise RuntimeError("a key that is neither ours nor to be found")
    return row


def _row(payment: Payment) -> dict[str, Any]:
    values = {name: _plain(getattr(payment, name)) for name in _BORN_WITH}
    metadata = payment.tenant_metadata
    return values_for(
        _PAYMENTS, metadata=None if metadata is None else json.dumps(metadata), **values
    )


def _plain(value: Any) -> Any:
    """Psycopg would take an enumeration's word for a type of its own."""
    return str(value) if isinstance(value, str) else value
