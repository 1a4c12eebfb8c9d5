"""The outbox: payment events are published some tenths of a second after their commit.

One pass gives each its position in the feed, its feed data, what it covers, and its hashes. The
feed data is frozen then: fields of a later release are added to later events only. The payer's
number is masked; a receiver that needs it whole, or the payer's texts, reads the payment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from sqlalchemy import Row, text

from payments_app.audit.chain import BEGINNING, chain_hash
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.money import Money
from payments_app.payments.event_hashes import (
    COVERED,
    EVENT_FIELDS,
    EVENTS,
    PAYMENT_FIELDS,
    PAYMENTS,
    covers,
)
from payments_app.payments.states import Status
from payments_app.providers.failures import failure_document
from payments_app.webhooks import feed
from payments_app.webhooks.feed import Publication

log = structlog.get_logger(__name__)

# Published in one transaction: readers and deliveries wait for no more than these.
BATCH: Final = 200
# An event that can't be published is retried after this; its payment's later events wait.
TRIED_AGAIN_S: Final = 60.0
# At most so many payments are remembered for this; above that all are retried at once.
STUCK_MAX: Final = 1000
# In id order, which is sequence order within a payment: adding an event locks the payment's row.
# With LIMIT 1 each payment is looked up by its id, so is the answer that ended it, and the event
# before by its sequence. As plain joins, PostgreSQL would read all of them for each event, if it
# prepared the statement on nearly empty tables.
_UNPUBLISHED: Final = text(
    f"""
    SELECT e.id, e.event_id, e.tenant_id, e.mode, e.type, e.payment_id, e.sequence, e.status, e.stage,
           e.created_at, ARRAY[{EVENT_FIELDS}] AS fields, encode((
               SELECT hash FROM events WHERE payment_id = e.payment_id AND sequence = e.sequence - 1
           ), 'hex') AS hash_before,
           CASE WHEN e.sequence = 1 THEN ARRAY[{PAYMENT_FIELDS}] END AS asked,
           p.amount_minor, p.currency, p.payer_masked, p.external_id, p.provider, p.reference,
           p.failure_code, p.failure_provider_code, p.provider_transaction_id, p.metadata,
           {COVERED}
    FROM (SELECT * FROM events WHERE feed_data IS NULL AND payment_id <> ALL (CAST(:stuck AS uuid[]))
          ORDER BY id LIMIT {BATCH}) e
    CROSS JOIN LATERAL (SELECT * FROM payments WHERE id = e.payment_id LIMIT 1) p
    LEFT JOIN LATERAL (SELECT * FROM provider_exchanges WHERE id = p.evidence_id LIMIT 1) x
        ON e.status <> 'PENDING'
    ORDER BY e.id
    """  # noqa: S608  constants
)


class _Stuck:
    """Payments with an event that can't be published, until its next try."""

    def __init__(self) -> None:
        self._until: dict[UUID, float] = {}

    def note(self, payment_id: UUID) -> None:
        if len(self._until) >= STUCK_MAX:
            self._until.clear()
        self._until[payment_id] = boot_seconds() + TRIED_AGAIN_S

    def payments(self) -> list[UUID]:
        now = boot_seconds()
        self._until = {one: until for one, until in self._until.items() if until > now}
        return list(self._until)


_stuck = _Stuck()


def publish_outbox() -> int:
    """Publish the payment events that are not published yet; how many.

    0 while another process does it. One that can't be published, such as one in a currency that
    only a later release knows, delays the events of its own payment only.
    """
    published = 0
    while batch := _publish_batch():
        published += batch
    return published


def _publish_batch() -> int:
    with transaction(EVERY_TENANT, by_index=True) as session:
        if not feed.become_publisher(session):
            return 0
        rows = session.execute(_UNPUBLISHED, {"stuck": _stuck.payments()}).all()
        publications = list(_publications(rows))
        if publications:
            feed.publish(session, publications)
        return len(publications)


def _publications(rows: Iterable[Row[Any]]) -> Iterator[Publication]:
    """Link each to the event before it, which may be in the same batch."""
    last: dict[UUID, tuple[int, str]] = {}
    stuck: set[UUID] = set()
    for row in rows:
        if row.payment_id in stuck:
            continue
        try:
            words = orjson.dumps(_words(row))
        except Exception:
            log.exception("payment_event.not_published", event_number=row.id)
            stuck.add(row.payment_id)
            _stuck.note(row.payment_id)
            continue
        sequence, previous = last.get(row.payment_id, (0, None))
        if sequence != row.sequence - 1 or previous is None:
            previous = row.hash_before
        if row.sequence == 1:
            previous = chain_hash(PAYMENTS, *row.asked)
        if previous is None:
            # The event before it was removed. Others must not wait; `flask audit verify` reports
            # it.
            log.error("payment_event.unlinked", event_number=row.id)
            previous = BEGINNING
        own = chain_hash(EVENTS, previous, *row.fields)
        last[row.payment_id] = row.sequence, own
        yield Publication(row, words, bytes.fromhex(previous), bytes.fromhex(own), covers(row))


def _words(row: Row[Any]) -> dict[str, Any]:
    # The failure is known from the end on, and only the final event shows it.
    failure_code = row.failure_code if row.status == Status.FAILED else None
    return {
        "payment_id": str(row.payment_id),
        "sequence": row.sequence,
        "status": row.status,
        "stage": row.stage,
        "amount": str(Money(row.amount_minor, row.currency)),
        "currency": row.currency,
        "payer": row.payer_masked,
        "external_id": row.external_id,
        "provider": row.provider,
        "reference": str(row.reference),
        "metadata": row.metadata,
        # The code alone is for receivers older than the `failure` object.
        "failure_code": failure_code,
        "failure": failure_document(failure_code, row.failure_provider_code),
        "provider_transaction_id": (
            row.provider_transaction_id if row.status == Status.SUCCESSFUL else None
        ),
    }
