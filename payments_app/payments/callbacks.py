"""A provider's callback: kept, and a reason to ask now. What it says is never believed."""

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
from payments_app.kernel.jobs import Job, enqueue
from payments_app.kernel.one_statement import alone_for, execute_lookup
from payments_app.kernel.vault import Box, Vault
from payments_app.payments.payers import Payer, open_payer

log = structlog.get_logger(__name__)

# One payment's callbacks beyond this many different ones are answered and not stored.
CALLBACKS_MAX: Final = 50
# The first callback is asked about at once, the next ones this much later than the one before:
# whoever knows a payment's reference has its provider asked no faster than that.
HINT_GAP_S: Final = 2.0
_CALLBACK: Final = "callback"


class Came(StrEnum):
    """What is made of a callback. The last three are said before it gets here."""

    KEPT = "kept"
    # Kept, and about a payment that had ended: nobody asks any more.
    LATE = "late"
    REPEATED = "repeated"
    UNKNOWN = "unknown"
    ERASED = "erased"
    TOO_MANY = "too_many"
    MALFORMED = "malformed"
    FOREIGN = "foreign"
    LIMITED = "limited"


_NEW: Final = frozenset({Came.KEPT, Came.LATE})
# As one value, and correlated with `wall`: the tenant is set before a payment is looked at.
_FIND: Final = f"""
{alone_for("tenant_of_reference(%(provider)s, %(reference)s)")}
SELECT (
    SELECT json_build_object(
        'payment_id', p.id, 'tenant_id', p.tenant_id, 'payer', encode(p.payer, 'base64'),
        'traceparent', p.traceparent,
        'callbacks', (SELECT count(*) FROM callbacks c WHERE c.payment_id = p.id)
    )::text
    FROM payments p
    WHERE p.tenant_id = nullif(wall.set_config, '')::uuid AND p.reference = %(reference)s
        AND p.provider = %(provider)s
) FROM wall
""".strip()  # noqa: S608  our own
# The same bytes again change nothing. A final payment is left as it is. The newest one before this
# is looked up in the statement's snapshot, which does not have this one yet.
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
    FROM kept
    WHERE payments.id = kept.payment_id AND status = 'PENDING' AND next_step = 'check'
)
SELECT p.status <> 'PENDING' FROM kept JOIN payments p ON p.id = kept.payment_id
""")
for _came in Came:
    metrics.callbacks.labels(_came)


@dataclass(frozen=True, slots=True)
class ReceivedCallback:
    """A callback as it came in, for whatever payment `reference` is."""

    provider: str
    reference: UUID
    method: str
    body: bytes = field(repr=False)
    source: str | None


def note_callback(received: ReceivedCallback, vault: Vault) -> bool:
    """Keep the callback and have the provider asked now. True if it was new.

    It proves nothing: whoever sent it, the payment's end comes from our own question.
    Raises VaultClosed.
    """
    came = _note(received, vault)
    count_callback(came)
    return came in _NEW


def count_callback(came: Came) -> None:
    """One more that came to this."""
    metrics.callbacks.labels(came).inc()


def _note(received: ReceivedCallback, vault: Vault) -> Came:
    found = _find(received)
    if found is None:
        log.warning(
            "callback.unknown_reference",
            provider=received.provider,
            reference=str(received.reference),
        )
        return Came.UNKNOWN
    tracing.current().link(found.traceparent)
    tracing.current().note({tracing.PAYMENT: str(found.payment_id)})
    payer = open_payer(
        vault, tenant_id=found.tenant_id, payment_id=found.payment_id, sealed=found.payer
    )
    if payer is None:
        log.info("callback.payer_erased", payment_id=str(found.payment_id))
        return Came.ERASED
    if found.callbacks >= CALLBACKS_MAX:
        log.warning("callback.too_many", payment_id=str(found.payment_id))
        return Came.TOO_MANY
    return _keep(received, found, payer.box)


def opened_callback(payer: Payer | None, body: bytes) -> bytes | None:
    """What a callback said; None once the payer has been erased. Raises VaultClosed."""
    return payer and payer.box.open(body, about=_CALLBACK)


@dataclass(frozen=True, slots=True)
class _Found:
    """The payment that a callback is about, and how many callbacks about it are kept."""

    payment_id: UUID
    tenant_id: UUID
    payer: bytes | None = field(repr=False)
    traceparent: str | None
    callbacks: int


def _find(received: ReceivedCallback) -> _Found | None:
    """The payment with this reference, whosever it is: the lookup tells its tenant and no more."""
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


def _keep(received: ReceivedCallback, found: _Found, box: Box) -> Came:
    """Store the callback, and have the payment due now if it waits for its next question."""
    row = {
        "tenant_id": found.tenant_id,
        "payment_id": found.payment_id,
        "digest": box.digest(received.body, about=_CALLBACK),
        "method": received.method,
        "body": box.seal(received.body, about=_CALLBACK),
        "source": received.source,
        "gap_s": HINT_GAP_S,
    }
    with transaction(found.tenant_id) as session:
        is_final = session.execute(_KEEP, row).scalar_one_or_none()
        if is_final is None:
            return Came.REPEATED
        enqueue(session, Job.PROCESS_DUE)
    log.info("callback.received", payment_id=str(found.payment_id), late=is_final)
    return Came.LATE if is_final else Came.KEPT
