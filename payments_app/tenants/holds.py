"""The brake: while a tenant is held, nothing new of theirs is taken, and nothing is submitted.

What has been sent is asked about to its end. A submission that a worker has in hand when the
brake goes on may still leave: a lease later (30 s) none does.
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
# Why tenants are held after a restore, until their payments were asked about (payments/recovery.py).
RESTORED: Final = "database restored from a backup"


def hold_tenant(tenant_id: UUID, *, why: str, actor: str) -> bool:
    """Put the brake on; False if it was on. Raises ReasonMissing."""
    why = checked_reason(why)
    with transaction(tenant_id) as session:
        return hold_in(session, tenant_id, why=why, actor=actor)


def hold_in(session: Session, tenant_id: UUID, *, why: str, actor: str) -> bool:
    """The same, in the caller's transaction.

    A restore's hold, which ends by itself, gives way to any other reason, and to another restore's.
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
    """Let go, in the caller's transaction; False if it wasn't held."""
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
    """Who is held, by slug; for this reason only, if one is given."""
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
