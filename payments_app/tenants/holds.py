"""Holds: while a tenant is held, no new payment of it is accepted, and none is submitted.

Status checks of sent payments continue until they are final. A submission that a worker has claimed
before the hold may still be sent; after the lease's length (30 s) none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from payments_app.audit.comparison import words_of
from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, database_now, transaction
from payments_app.tenants.errors import ReasonMissing
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import checked_line

log = structlog.get_logger(__name__)

WHY_LENGTH_MAX: Final = 200
# The reason for holds after a restore, until all payments are checked (payments/recovery.py).
RESTORED: Final = "database restored from a backup"


def hold_tenant(tenant_id: UUID, *, why: str, actor: str) -> bool:
    """Hold the tenant; False if it was held already. Raises ReasonMissing."""
    why = checked_reason(why)
    with transaction(tenant_id) as session:
        return hold_in(session, tenant_id, why=why, actor=actor)


def hold_in(session: Session, tenant_id: UUID, *, why: str, actor: str) -> bool:
    """Hold the tenant in the caller's transaction; False if it was held already.

    A restore's hold, which ends by itself, is replaced by a hold for any other reason, and by that
    of another restore.
    """
    held_at = session.scalar(
        update(Tenant)
        .where(
            Tenant.id == tenant_id,
            or_(Tenant.held_at.is_(None), Tenant.held_why == RESTORED),
        )
        .values(held_at=database_now(), held_why=why)
        .returning(Tenant.held_at)
    )
    if held_at is None:
        return False
    detail = {"why": why, "held_at": words_of(held_at)}
    _record(session, tenant_id, actor=actor, action="tenant.held", detail=detail)
    log.error("tenant.held", held_tenant_id=str(tenant_id), why=why)
    return True


def release_in(session: Session, tenant_id: UUID, *, actor: str) -> bool:
    """Release the tenant in the caller's transaction; False if it was not held."""
    why = session.scalar(
        select(Tenant.held_why)
        .where(Tenant.id == tenant_id)
        .with_for_update(of=Tenant, key_share=True)
    )
    if why is None:
        return False
    session.execute(
        update(Tenant).where(Tenant.id == tenant_id).values(held_at=None, held_why=None)
    )
    _record(session, tenant_id, actor=actor, action="tenant.released", detail={"why": why})
    return True


def held_tenants(why: str | None = None) -> list[Tenant]:
    """The held tenants, by slug; only those with this reason, if one is given."""
    wanted = select(Tenant).where(Tenant.held_at.is_not(None)).order_by(Tenant.slug)
    if why is not None:
        wanted = wanted.where(Tenant.held_why == why)
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(wanted))


def checked_reason(why: str) -> str:
    """One short line. Raises ReasonMissing."""
    try:
        line = checked_line(why, length_max=WHY_LENGTH_MAX)
    except ValueError as error:
        raise ReasonMissing(f"The reason {error}.") from None
    if not line:
        raise ReasonMissing("Say why: the audit trail keeps it.")
    return line


def _record(
    session: Session, tenant_id: UUID, *, actor: str, action: str, detail: Mapping[str, object]
) -> None:
    record(
        session,
        tenant_id=tenant_id,
        actor=actor,
        action=action,
        subject_type="tenant",
        subject_id=tenant_id,
        detail=detail,
    )
