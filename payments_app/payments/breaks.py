"""Breaks of invariants, and letting a tenant go again once each has been resolved."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import func, select, update

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, database_now, narrow, transaction
from payments_app.payments.errors import BreakNotFound, RecoveryUnfinished
from payments_app.payments.model import InvariantBreak
from payments_app.tenants.errors import BreaksOpen
from payments_app.tenants.holds import RESTORED, checked_reason, release_in
from payments_app.tenants.model import Tenant


def list_breaks(tenant_id: UUID | None, *, resolved: bool) -> list[InvariantBreak]:
    """Of one tenant or of all, newest first; those that are resolved too if wanted."""
    wanted = select(InvariantBreak).order_by(InvariantBreak.id.desc())
    if tenant_id is not None:
        wanted = wanted.where(InvariantBreak.tenant_id == tenant_id)
    if not resolved:
        wanted = wanted.where(InvariantBreak.resolved_at.is_(None))
    with transaction(tenant_id or EVERY_TENANT) as session:
        return list(session.scalars(wanted))


def resolve_break(break_id: int, *, why: str, actor: str) -> InvariantBreak:
    """A person has looked at it; it is never found again. The brake stays on.

    Raises BreakNotFound, ReasonMissing.
    """
    why = checked_reason(why)
    with transaction(EVERY_TENANT) as session:
        resolved: InvariantBreak | None = session.scalar(
            update(InvariantBreak)
            .where(InvariantBreak.id == break_id, InvariantBreak.resolved_at.is_(None))
            .values(resolved_at=database_now(), resolution=why)
            .returning(InvariantBreak)
        )
        if resolved is None:
            raise BreakNotFound(f"There is no open break with the number {break_id}.")
        narrow(session, resolved.tenant_id)
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
    """Let the brake go; False if it wasn't on. Raises BreaksOpen, RecoveryUnfinished."""
    unresolved = (
        select(func.count())
        .select_from(InvariantBreak)
        .where(InvariantBreak.tenant_id == tenant_id, InvariantBreak.resolved_at.is_(None))
    )
    with transaction(tenant_id) as session:
        if count := session.execute(unresolved).scalar_one():
            raise BreaksOpen(
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
