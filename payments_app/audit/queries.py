"""Reads the audit trail."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import select

from payments_app.audit.model import AuditEntry
from payments_app.kernel.database import transaction


def latest_entries(
    tenant_id: UUID, *, limit: int, without: Collection[str] = ()
) -> list[AuditEntry]:
    """The tenant's latest entries, newest first. `without`: actions to leave out."""
    newest_first = (
        select(AuditEntry)
        .where(AuditEntry.action.not_in(without))
        .order_by(AuditEntry.position.desc())
        .limit(limit)
    )
    with transaction(tenant_id) as session:
        return list(session.scalars(newest_first.where(AuditEntry.tenant_id == tenant_id)))
