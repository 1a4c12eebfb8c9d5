"""Stores each tenant's data key, encrypted, in the tenant's row."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select, update

from payments_app.audit.record import record
from payments_app.kernel.database import snapshot, transaction
from payments_app.tenants.model import Tenant


class StoredDataKeys:
    """See kernel.encryption.DataKeys."""

    def find(self, tenant_id: UUID) -> str | None:
        """Read on a separate connection, whether or not a transaction is open."""
        with snapshot(tenant_id) as connection:
            found: str | None = connection.scalar(
                select(Tenant.data_key).where(Tenant.id == tenant_id)
            )
        return found

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        """Store it in a separate transaction; no other may be open."""
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
    """For read-only commands: a tenant without a data key gets none."""

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        """Store nothing."""
