"""Violations of invariants, and the release of a tenant once each has been resolved."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select, update

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, database_now, set_tenant, transaction
from payments_app.payments.errors import RecoveryUnfinished, ViolationNotFound
from payments_app.payments.model import InvariantViolation
from payments_app.tenants.errors import ViolationsOpen
from payments_app.tenants.holds import RESTORED, checked_reason, release_in
from payments_app.tenants.model import Tenant


def list_violations(tenant_id: UUID | None, *, resolved: bool) -> list[InvariantViolation]:
    """Of one tenant or of all, newest first; resolved ones too if wanted."""
    wanted = select(InvariantViolation).order_by(InvariantViolation.id.desc())
    if tenant_id is not None:
        wanted = wanted.where(InvariantViolation.tenant_id == tenant_id)
    if not resolved:
        wanted = wanted.where(InvariantViolation.resolved_at.is_(None))
    with transaction(tenant_id or EVERY_TENANT) as session:
        return list(session.scalars(wanted))


def resolve_violation(break_id: int, *, why: str, actor: str) -> InvariantViolation:
    """Record that a person resolved it; it is not reported again. The tenant stays held.

    Raises ViolationNotFound, ReasonMissing.
    """
    why = checked_reason(why)
    with transaction(EVERY_TENANT) as session:
        resolved: InvariantViolation | None = session.scalar(
            update(InvariantViolation)
            .where(InvariantViolation.id == break_id, InvariantViolation.resolved_at.is_(None))
            .values(resolved_at=database_now(), resolution=why)
            .returning(InvariantViolation)
        )
        if resolved is None:
            raise ViolationNotFound(f"There is no open break with the number {break_id}.")
        set_tenant(session, resolved.tenant_id)
        record(
            session,
            tenant_id=resolved.tenant_id,
            actor=actor,
            action="invariant_break.resolved",
            subject_type="invariant_break",
            subject_id=str(resolved.id),
            detail={"invariant": resolved.invariant, "subject": resolved.subject, "why": why},
        )
        return resolved


def release_tenant(tenant_id: UUID, *, actor: str) -> bool:
    """Release the tenant; False if it wasn't held. Raises ViolationsOpen, RecoveryUnfinished."""
    unresolved = (
        select(func.count())
        .select_from(InvariantViolation)
        .where(InvariantViolation.tenant_id == tenant_id, InvariantViolation.resolved_at.is_(None))
    )
    with transaction(tenant_id) as session:
        if count := session.execute(unresolved).scalar_one():
            raise ViolationsOpen(
                f"{count} of its breaks are open: look at each with flask invariants list,"
                " then flask invariants resolve ID --why …"
            )
        held = select(Tenant.held_why).where(Tenant.id == tenant_id)
        why = held.with_for_update(of=Tenant, key_share=True)
        if session.scalar(why) == RESTORED:
            raise RecoveryUnfinished(
                "It is held until the provider was asked about its payments after the restore: let it"
                " go with flask recovery finish. flask recovery status says how far that is."
            )
        return release_in(session, tenant_id, actor=actor)
