"""Verifies or exports the whole record: audit entries, payments' events, checkpoints.

Also verifies that tenants, API keys, provider accounts and webhook endpoints agree with their
entries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from payments_app.audit.chain import Fault, TamperDetected
from payments_app.audit.comparison import verify_rows
from payments_app.audit.heads import KeptHead, verify_kept_heads
from payments_app.audit.stream import stream, take_time
from payments_app.audit.verify import verify_entries
from payments_app.integrity.event_chain import verify_checkpoints, verify_event_chains
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.tenants.verification import COMPARISONS as OF_TENANTS
from payments_app.webhooks.verification import COMPARISONS as OF_WEBHOOKS

# Each event is read twice: for its chain and for its checkpoint.
_ROWS: Final = (
    "SELECT (SELECT count(*) FROM audit_entries {where})"
    " + 2 * (SELECT count(*) FROM events {where})"
)
_ENTRIES: Final = (
    "SELECT 'audit_entries' AS table, tenant_id, position, id, actor, action, subject_type,"
    " subject_id, source, request_id, detail, created_at, encode(previous_hash, 'hex') AS"
    " previous_hash, encode(hash, 'hex') AS hash FROM audit_entries {where}"
    " ORDER BY tenant_id, position"
)
_EVENTS: Final = (
    "SELECT 'payment_events' AS table, tenant_id, payment_id, sequence, id, type, status, stage,"
    " actor, request_id, data, transaction_id, created_at, encode(previous_hash, 'hex') AS"
    " previous_hash, encode(hash, 'hex') AS hash, event_id, mode, position,"
    " encode(feed_data, 'hex') AS feed_data, covers, encode(content_hash, 'hex') AS content_hash"
    " FROM (SELECT * FROM events"
    " WHERE payment_id IS NOT NULL) AS of_payments {where} ORDER BY id"
)


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant's whole record: how many entries and events, and the hash of the last entry."""

    tenant_id: str
    entries: int
    events: int
    head: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying the record; `fault` is the first bad row."""

    tenants: list[TenantRecord]
    seals: int
    fault: Fault | None


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of the record. None: all."""

    tenant_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


def verify_record(
    tenant_id: UUID | None,
    *,
    sought: Collection[str] = (),
    kept: Iterable[KeptHead] = (),
    on_row: Callable[[], None],
) -> Verdict:
    """Verify the record of one tenant or of all.

    `sought`, `kept`: heads that were kept elsewhere, by their hash alone and with their position.
    """
    with transaction(tenant_id or EVERY_TENANT) as session:
        take_time(session)
        try:
            heads = verify_entries(session, tenant_id, sought=sought, on_row=on_row)
            verify_kept_heads(session, kept)
            verify_rows(session, tenant_id, (*OF_TENANTS, *OF_WEBHOOKS), on_row=on_row)
            events = verify_event_chains(session, tenant_id, on_row=on_row)
            seals = verify_checkpoints(session, tenant_id, on_row=on_row)
        except TamperDetected as bent:
            return Verdict([], 0, bent.fault)
    found = [
        TenantRecord(tenant, head.entries, events[tenant], head.hash)
        for tenant, head in heads.items()
    ]
    return Verdict(found, seals, None)


def rows_to_walk(tenant_id: UUID | None) -> int:
    """About how often verify_record calls `on_row`."""
    where, values = _condition(Part(tenant_id))
    with transaction(tenant_id or EVERY_TENANT) as session:
        take_time(session)
        return int(session.scalar(text(_ROWS.format(where=where)), values) or 0)


def export_record(part: Part, *, events: bool) -> Iterator[dict[str, Any]]:
    """The record row by row, as stored in the tables: entries, and then events if wanted."""
    where, values = _condition(part)
    with transaction(part.tenant_id or EVERY_TENANT) as session:
        take_time(session)
        for statement in (_ENTRIES, _EVENTS) if events else (_ENTRIES,):
            with stream(session, statement.format(where=where), **values) as rows:
                for row in rows:
                    yield dict(row._mapping)  # noqa: SLF001  SQLAlchemy's own name for it


def _condition(part: Part) -> tuple[str, dict[str, object]]:
    asked: dict[str, tuple[str, object]] = {
        "tenant": ("tenant_id = :tenant", part.tenant_id),
        "since": ("created_at >= :since", part.since),
        "until": ("created_at < :until", part.until),
    }
    given = {name: pair for name, pair in asked.items() if pair[1] is not None}
    where = " AND ".join(condition for condition, _ in given.values())
    return (f"WHERE {where}" if where else ""), {name: value for name, (_, value) in given.items()}
