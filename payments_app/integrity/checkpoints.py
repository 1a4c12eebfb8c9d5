"""Checkpoints: every minute an audit entry records which events exist, and their digest.

A payment's own chain can't show that its last events, or all, were removed. The checkpoint can: it
is part of the tenant's audit chain.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from sqlalchemy import text

from payments_app.audit.heads import HeadPublisher
from payments_app.audit.model import SEALED
from payments_app.audit.record import record
from payments_app.integrity.invariants import check_changed
from payments_app.kernel.database import EVERY_TENANT, transaction

log = structlog.get_logger(__name__)

# To digest so many hashes takes some milliseconds; an audit chain is locked no longer than that.
BATCH: Final = 10_000
# Transactions that add events take milliseconds. For a longer one, the next run waits again.
WAIT_MAX_S: Final = 10.0
_WAIT_S: Final = 0.05
_heads: Final = HeadPublisher()
# One process at a time writes checkpoints; the number spells "seal" in ASCII.
_ONE_SEALER: Final = 0x7365616C

# Events up to the last id were inserted by transactions with xid < xmax, as an event's payment is
# written before it. Once xmin >= xmax, those ids are final.
_LAST: Final = text(
    "SELECT max(id), pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM events"
)
_ENDED: Final = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= :number")
# An event has its hash once published: an unpublished one, and all after it, wait for the next run.
_PUBLISHED: Final = text(
    "SELECT coalesce(min(id) - 1, :last) FROM events WHERE feed_data IS NULL AND id <= :last"
)
_LOCK: Final = text("SELECT pg_try_advisory_xact_lock(:key)")
# A forged checkpoint entry must not stop or break this for good: one beyond the last event is
# ignored. `flask audit verify` reports it.
_SEALED_THROUGH: Final = text(
    f"""
    SELECT through::bigint FROM (
        SELECT id, CASE jsonb_typeof(detail->'through')
            WHEN 'number' THEN (detail->>'through')::numeric END AS through
        FROM audit_entries WHERE action = '{SEALED}'
    ) AS seals
    WHERE through BETWEEN 0 AND :last ORDER BY id DESC LIMIT 1
    """  # noqa: S608  a constant
)
_BATCH_END: Final = text(
    "SELECT max(id) FROM (SELECT id FROM events"
    " WHERE payment_id IS NOT NULL AND id > :after AND id <= :last ORDER BY id LIMIT :batch) AS batch"
)
_DIGESTS: Final = text(
    "SELECT tenant_id, count(*) AS events, min(id) AS first,"
    " encode(sha256(string_agg(hash, ''::bytea ORDER BY id)), 'hex') AS digest,"
    " encode(sha256(string_agg(coalesce(content_hash, ''), ''::bytea ORDER BY id)), 'hex') AS contents"
    " FROM events WHERE payment_id IS NOT NULL AND id > :after AND id <= :through"
    " GROUP BY tenant_id ORDER BY tenant_id"
)


class Batch(NamedTuple):
    """The events with an id above `after`, up to `through`."""

    after: int
    through: int


def write_checkpoints(heads_file: Path | None = None) -> int:
    """Cover all published events that no new event can precede; how many events.

    Then publish the head of each chain that has grown, whoever has added to it.
    """
    sealed = _seal_all()
    _heads.publish(heads_file)
    return sealed


def _seal_all() -> int:
    last = _last_settled()
    sealed = 0
    while last and (batch := _next_batch(last)):
        # Invariants first: a batch that a crash leaves without a checkpoint is checked again.
        check_changed(after=batch.after, through=batch.through)
        if not (count := _seal(batch)):
            break
        sealed += count
    if sealed:
        log.info("payment_events.sealed", count=sealed)
    return sealed


def _last_settled() -> int | None:
    """The id up to which all events are published and no other can be added."""
    with transaction(EVERY_TENANT) as session:
        last, number = session.execute(_LAST).one()
    give_up_at = time.monotonic() + WAIT_MAX_S
    while time.monotonic() < give_up_at:
        with transaction(EVERY_TENANT) as session:
            if session.scalar(_ENDED, {"number": number}):
                return session.scalar(_PUBLISHED, {"last": last}) if last else None
        time.sleep(_WAIT_S)
    log.warning("seal.postponed", waited_s=WAIT_MAX_S)
    return None


def _next_batch(last: int) -> Batch | None:
    with transaction(EVERY_TENANT) as session:
        after = session.scalar(_SEALED_THROUGH, {"last": last}) or 0
        through = session.scalar(_BATCH_END, {"after": after, "last": last, "batch": BATCH})
    return None if through is None else Batch(after, through)


def _seal(batch: Batch) -> int:
    """Add an entry for each tenant with events in it; how many events. 0 if another does."""
    with transaction(EVERY_TENANT) as session:
        if not session.scalar(_LOCK, {"key": _ONE_SEALER}):
            return 0
        if (session.scalar(_SEALED_THROUGH, {"last": batch.through}) or 0) != batch.after:
            return 0
        tenants = session.execute(_DIGESTS, batch._asdict()).all()
        for row in tenants:
            record(
                session,
                tenant_id=row.tenant_id,
                actor="system",
                action=SEALED,
                subject_type="payment_events",
                subject_id=f"{row.first}-{batch.through}",
                detail={
                    "first": row.first,
                    "through": batch.through,
                    "events": row.events,
                    "digest": row.digest,
                    "contents": row.contents,
                },
            )
        return sum(row.events for row in tenants)
