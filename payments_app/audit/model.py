"""Who changed what, when and from where. Rows are only ever added; the database refuses changes.

Migration 0004 has the trigger that chains each row to the row before it of the same tenant.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from payments_app.kernel.database import Base

# The action of a checkpoint of payment events: integrity/checkpoints.py.
SEALED: Final = "payment_events.sealed"
# Migration 0017 writes it after a downgrade below 0017, which deleted the content hashes.
UNCOVERED: Final = "payment_events.uncovered"


class AuditEntry(Base):
    """One change. `actor` is, for example, `cli:ada` or `key:<id>`; `detail` holds no secret.

    `source`: the address of an API caller, or the host of a command. The database sets `position`,
    the hashes and `created_at`, and ignores given values.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        UniqueConstraint("tenant_id", "position"),
        Index("ix_audit_entries_seals", "id", postgresql_where=text(f"action = '{SEALED}'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    position: Mapped[int] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    subject_type: Mapped[str] = mapped_column(Text)
    subject_id: Mapped[str] = mapped_column(Text)
    source: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(
        TIMESTAMP(timezone=True), server_default=text("clock_timestamp()")
    )
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
