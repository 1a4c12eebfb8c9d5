"""Tenants, their API keys and their accounts at providers."""

from __future__ import annotations

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Final
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, CIDR, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from payments_app.kernel.database import Base
from payments_app.tenants.scopes import Scope

Timestamp: Final = TIMESTAMP(timezone=True)
NOW: Final = text("clock_timestamp()")
_SCOPES: Final = ", ".join(f"'{scope}'" for scope in Scope)


class Tenant(Base):
    """A company that uses the gateway."""

    __tablename__ = "tenants"
    __table_args__ = (
        CheckConstraint("slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'", name="slug_form"),
        CheckConstraint("status IN ('active', 'suspended')", name="status_known"),
        CheckConstraint("(held_at IS NULL) = (held_why IS NULL)", name="held_has_reason"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default="active")
    require_idempotency_key: Mapped[bool] = mapped_column(server_default=text("false"))
    rate_limit: Mapped[str | None] = mapped_column(Text)
    tenant_rate_limit: Mapped[str | None] = mapped_column(Text)
    default_provider: Mapped[str | None] = mapped_column(Text)
    # Encrypts its payers' numbers; is itself encrypted by Cipher. Made with the first payment.
    data_key: Mapped[str | None] = mapped_column(Text, deferred=True)
    # While the tenant is held, nothing new is accepted or sent for it. See holds.py.
    held_at: Mapped[datetime | None] = mapped_column(Timestamp)
    held_why: Mapped[str | None] = mapped_column(Text)
    # When its rows were last restored from a backup.
    restored_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)


class ApiKey(Base):
    """A key: found by its prefix, proven by the whole key's hash. The key itself is not stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint("mode IN ('live', 'test')", name="mode_known"),
        CheckConstraint("octet_length(key_hash) = 32", name="hash_is_sha256"),
        CheckConstraint(
            f"scopes <@ ARRAY[{_SCOPES}] AND cardinality(scopes) > 0", name="scopes_known"
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), index=True)
    prefix: Mapped[str] = mapped_column(Text, unique=True)
    key_hash: Mapped[bytes] = mapped_column(LargeBinary)
    mode: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text, server_default="")
    scopes: Mapped[list[str]] = mapped_column(
        ARRAY(Text), server_default="{" + ",".join(Scope) + "}"
    )
    # The networks that may use it; any network if empty.
    networks: Mapped[list[IPv4Network | IPv6Network]] = mapped_column(
        ARRAY(CIDR), server_default="{}"
    )
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    expires_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # To the minute: most requests do not update it.
    last_used_at: Mapped[datetime | None] = mapped_column(Timestamp)
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp)


class ProviderCredentials(Base):
    """A tenant's own account at a provider. `credentials` is JSON, encrypted by Cipher."""

    __tablename__ = "provider_accounts"
    __table_args__ = (
        UniqueConstraint("tenant_id", "provider", "mode"),
        CheckConstraint("mode IN ('live', 'test')", name="mode_known"),
        CheckConstraint("mode = 'live' OR target_environment = 'sandbox'", name="test_is_sandbox"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    provider: Mapped[str] = mapped_column(Text)
    mode: Mapped[str] = mapped_column(Text)
    base_url: Mapped[str] = mapped_column(Text)
    target_environment: Mapped[str] = mapped_column(Text)
    credentials: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
