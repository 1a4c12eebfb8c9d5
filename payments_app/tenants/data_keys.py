"""Each tenant's data key, wrapped, in its own row."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select, update

from payments_app.audit.record import record
from payments_app.kernel.database import snapshot, transaction
from payments_app.tenants.model import Tenant


class StoredDataKeys:
    """See kernel.vault.DataKeys."""

    def find(self, tenant_id: UUID) -> str | None:
        """Beside whatever transaction is open."""
        with snapshot(tenant_id) as connection:
            found: str | None = connection.scalar(
                select(Tenant.data_key).where(Tenant.id == tenant_id)
            )
        return found

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        """In a transaction of its own, so not within another."""
        with transaction(tenant_id) as session:
            kept = session.execute(
                update(Tenant)
                .where(Tenant.id == tenant_id, Tenant.data_key.is_(None))
                .values(data_key=wrapped)
                .returning(Tenant.id)
            ).first()
            if kept is not None:
                record(
                    session,
                    tenant_id=tenant_id,
                    actor="system:vault",
                    action="tenant.data_key_made",
                    subject_type="tenant",
                    subject_id=tenant_id,
                )


class KeptDataKeys(StoredDataKeys):
    """For who only looks: a tenant without a data key gets none."""

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        """Keep nothing."""
