"""Stores a provider's callback and makes a status check due. Its content is never trusted."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

import orjson
import structlog
from sqlalchemy import text

from payments_app.kernel import metrics, tracing
from payments_app.kernel.database import transaction
from payments_app.kernel.encryption import DataKey, TenantKeyring
from payments_app.kernel.jobs import Job, enqueue
from payments_app.kernel.one_statement import execute_lookup, with_tenant_found_by
from payments_app.payments.payers import Payer, decrypt_payer

log = structlog.get_logger(__name__)

# More than this many different callbacks of one payment are answered, but not stored.
CALLBACKS_MAX: Final = 50
# The first callback makes a status check due at once, the next ones this long after the one before:
# whoever knows a payment's reference can't cause status checks faster than that.
HINT_GAP_S: Final = 2.0
_CALLBACK: Final = "callback"


class CallbackOutcome(StrEnum):
    """Outcome label. MALFORMED, FOREIGN and LIMITED are set by api/callbacks.py."""

    KEPT = "kept"
    # Kept, but the payment had ended: no status check follows.
    LATE = "late"
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    ERASED = "erased"
    TOO_MANY = "too_many"
    MALFORMED = "malformed"
    FOREIGN = "foreign"
    LIMITED = "limited"


_NEW: Final = frozenset({CallbackOutcome.KEPT, CallbackOutcome.LATE})
# One value, correlated with `tenant_scope`: the tenant is set before the payment is read. The tenant
# is not compared by `=`, nor is the status below: on a small table PostgreSQL would choose an index
# of the tenant's or of the open payments, and the prepared statement would read all of them for each
# callback from then on.
_FIND: Final = f"""
{with_tenant_found_by("tenant_of_reference(%(provider)s, %(reference)s)")}
SELECT (
    SELECT json_build_object(
        'payment_id', p.id, 'tenant_id', p.tenant_id, 'payer', encode(p.payer, 'base64'),
        'traceparent', p.traceparent,
        'callbacks', (SELECT count(*) FROM callbacks c WHERE c.payment_id = p.id)
    )::text
    FROM payments p
    WHERE p.tenant_id IS NOT DISTINCT FROM nullif(tenant_scope.set_config, '')::uuid
        AND p.reference = %(reference)s
        AND p.provider = %(provider)s
) FROM tenant_scope
""".strip()  # noqa: S608  our own
# A repeated callback changes nothing. A final payment is left as it is. max(received_at) is of
# earlier callbacks: the statement's snapshot doesn't have this one yet.
_KEEP: Final = text("""
WITH kept AS (
    INSERT INTO callbacks (tenant_id, payment_id, digest, method, body, source)
    VALUES (:tenant_id, :payment_id, :digest, :method, :body, :source)
    ON CONFLICT DO NOTHING
    RETURNING payment_id
), hinted AS (
    UPDATE payments
    SET hinted = true, next_action_at = least(next_action_at, greatest(clock_timestamp(),
        (SELECT max(received_at) FROM callbacks WHERE payment_id = payments.id)
        + make_interval(secs => :gap_s)))
    WHERE payments.id = :payment_id AND EXISTS (SELECT FROM kept)
        AND status NOT IN ('SUCCESSFUL', 'FAILED') AND next_step = 'check'
)
SELECT (SELECT status <> 'PENDING' FROM payments WHERE id = kept.payment_id) FROM kept
""")
for _came in CallbackOutcome:
    metrics.callbacks.labels(_came)


@dataclass(frozen=True, slots=True)
class ReceivedCallback:
    """A callback as received, for the payment with this `reference`, if there is one."""

    provider: str
    reference: UUID
    method: str
    body: bytes = field(repr=False)
    source: str | None


def record_callback(received: ReceivedCallback, keyring: TenantKeyring) -> bool:
    """Store the callback and make a status check due. True if it was new.

    It proves nothing, whoever sent it: only our own request to the provider ends the payment.
    Raises DataKeyUnreadable.
    """
    came = _note(received, keyring)
    count_callback(came)
    return came in _NEW


def count_callback(came: CallbackOutcome) -> None:
    """Count one callback with this outcome."""
    metrics.callbacks.labels(came).inc()


def _note(received: ReceivedCallback, keyring: TenantKeyring) -> CallbackOutcome:
    found = _find(received)
    if found is None:
        log.warning(
            "callback.unknown_reference",
            provider=received.provider,
            reference=str(received.reference),
        )
        return CallbackOutcome.UNKNOWN
    tracing.current().link(found.traceparent)
    tracing.current().note({tracing.PAYMENT: str(found.payment_id)})
    payer = decrypt_payer(
        keyring, tenant_id=found.tenant_id, payment_id=found.payment_id, sealed=found.payer
    )
    if payer is None:
        log.info("callback.payer_erased", payment_id=str(found.payment_id))
        return CallbackOutcome.ERASED
    if found.callbacks >= CALLBACKS_MAX:
        log.warning("callback.too_many", payment_id=str(found.payment_id))
        return CallbackOutcome.TOO_MANY
    return _keep(received, found, payer.data_key)


def opened_callback(payer: Payer | None, body: bytes) -> bytes | None:
    """A callback's decrypted body; None once the payer is erased. Raises DataKeyUnreadable."""
    return payer and payer.data_key.decrypt(body, about=_CALLBACK)


@dataclass(frozen=True, slots=True)
class _Found:
    """The payment of a callback, and how many callbacks are stored for it."""

    payment_id: UUID
    tenant_id: UUID
    payer: bytes | None = field(repr=False)
    traceparent: str | None
    callbacks: int


def _find(received: ReceivedCallback) -> _Found | None:
    """The payment with this reference, of any tenant: the lookup returns only its tenant."""
    wanted = {"provider": received.provider, "reference": received.reference}
    (row,) = execute_lookup(_FIND, wanted)
    if row is None:
        return None
    found = orjson.loads(row)
    payer = found.pop("payer")
    return _Found(
        payment_id=UUID(found.pop("payment_id")),
        tenant_id=UUID(found.pop("tenant_id")),
        payer=None if payer is None else b64decode(payer),
        **found,
    )


def _keep(received: ReceivedCallback, found: _Found, data_key: DataKey) -> CallbackOutcome:
    """Store the callback, and make the payment due if its next step is a status check."""
    row = {
        "tenant_id": found.tenant_id,
        "payment_id": found.payment_id,
        "digest": data_key.digest(received.body, about=_CALLBACK),
        "method": received.method,
        "body": data_key.encrypt(received.body, about=_CALLBACK),
        "source": received.source,
        "gap_s": HINT_GAP_S,
    }
    with transaction(found.tenant_id, by_index=True) as session:
        is_final = session.execute(_KEEP, row).scalar_one_or_none()
        if is_final is None:
            return CallbackOutcome.REPEATED
        enqueue(session, Job.PROCESS_DUE)
    log.info("callback.received", payment_id=str(found.payment_id), late=is_final)
    return CallbackOutcome.LATE if is_final else CallbackOutcome.KEPT
