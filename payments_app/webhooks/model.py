"""Models: endpoints, events, deliveries and attempts."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from payments_app.kernel.database import Base
from payments_app.kernel.secrets import about

Timestamp: Final = TIMESTAMP(timezone=True)
NOW: Final = text("clock_timestamp()")


class EndpointStatus(StrEnum):
    """Whether events are sent to the endpoint."""

    ENABLED = "enabled"
    DISABLED = "disabled"


class DeliveryStatus(StrEnum):
    """The state of one event's delivery to one endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class Trigger(StrEnum):
    """Why an attempt was made."""

    SCHEDULE = "schedule"
    MANUAL = "manual"


def about_secret(tenant_id: UUID, endpoint_id: UUID) -> str:
    """Binds an endpoint's secret to its row: in another row it can't be decrypted."""
    return about("webhook_endpoint", tenant_id, endpoint_id)


class WebhookEndpoint(Base):
    """A tenant's webhook endpoint. A removed one stays as a row, without its secrets."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        CheckConstraint("mode IN ('live', 'test')", name="mode_known"),
        CheckConstraint("status IN ('enabled', 'disabled')", name="status_known"),
        CheckConstraint("(deleted_at IS NULL) = (secret IS NOT NULL)", name="secret_goes_with_it"),
        CheckConstraint("deleted_at IS NULL OR status = 'disabled'", name="removed_is_disabled"),
        CheckConstraint(
            "(status = 'disabled') = (disabled_at IS NOT NULL)", name="disabled_has_time"
        ),
        Index("ix_webhook_endpoints_tenant", "tenant_id", "mode", "created_at"),
        # Like `served_at`, of the previous version, which may run beside this one in a deploy.
        Index(
            "ix_webhook_endpoints_turn",
            text("served_at NULLS FIRST"),
            postgresql_where=text("status = 'enabled'"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    mode: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, server_default="")
    event_types: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # Both encrypted by Cipher. The previous one signs too, until `previous_secret_until`.
    secret: Mapped[str | None] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_secret_until: Mapped[datetime | None] = mapped_column(Timestamp)
    status: Mapped[str] = mapped_column(Text, server_default=EndpointStatus.ENABLED)
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    disabled_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # Since when every delivery failed, and for how many days of that the tenant was warned.
    failing_since: Mapped[datetime | None] = mapped_column(Timestamp)
    warned_days: Mapped[int] = mapped_column(server_default="0")
    # Timeouts and slow responses in a row. From a limit on, one delivery at a time is sent.
    timeouts: Mapped[int] = mapped_column(server_default="0")
    served_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    deleted_at: Mapped[datetime | None] = mapped_column(Timestamp)

    def disable(self, reason: str, now: datetime) -> None:
        """Stop sending to it."""
        self.status = EndpointStatus.DISABLED
        self.disabled_reason = reason
        self.disabled_at = self.updated_at = now

    def enable(self) -> None:
        """Send to it again, with its failures reset."""
        self.status = EndpointStatus.ENABLED
        self.disabled_reason = self.disabled_at = None
        self.timeouts = 0
        self.note_success()

    def note_success(self) -> None:
        """Reset the failures: it accepted a delivery, or was enabled again."""
        self.failing_since = None
        self.warned_days = 0


class PaymentEvent(Base):
    """An event of a payment's history, which is also sent to its tenant. Append-only.

    It commits with the change that it describes. The publisher gives it, once, its position in the
    feed (`position`, dense in each tenant and mode), its payload (`feed_data`) and its hash, which
    chains it to the payment's event before it: payments/outbox.py. `actor`: who or what caused it.

    Some belong to no payment. They are in no chain, and a test event has no position either.
    """

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("payment_id", "sequence"),
        UniqueConstraint("tenant_id", "mode", "position"),
        CheckConstraint("sequence > 0", name="sequence_positive"),
        CheckConstraint(
            "num_nulls(payment_id, sequence, status, stage, actor) IN (0, 5)",
            name="of_payment_is_whole",
        ),
        CheckConstraint(
            "payment_id IS NOT NULL OR feed_data IS NOT NULL AND hash IS NULL",
            name="of_no_payment_is_published",
        ),
        CheckConstraint("position IS NULL OR feed_data IS NOT NULL", name="published_is_whole"),
        CheckConstraint(
            "payment_id IS NULL OR feed_data IS NULL OR hash IS NOT NULL",
            name="published_is_chained",
        ),
        CheckConstraint("(hash IS NULL) = (previous_hash IS NULL)", name="hash_has_link"),
        Index("ix_events_unpublished", "id", postgresql_where=text("feed_data IS NULL")),
        Index("ix_events_time", "tenant_id", "mode", "created_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # The id by which a tenant knows it.
    event_id: Mapped[UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    mode: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(Text)
    payment_id: Mapped[UUID | None] = mapped_column(ForeignKey("payments.id"))
    sequence: Mapped[int | None]
    status: Mapped[str | None] = mapped_column(Text)
    stage: Mapped[str | None] = mapped_column(Text)
    actor: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    # With this, the database checks that a status change has its event in the same transaction.
    transaction_id: Mapped[int] = mapped_column(
        BigInteger, server_default=text("(pg_current_xact_id()::text)::bigint")
    )
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    position: Mapped[int | None] = mapped_column(BigInteger)
    feed_data: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_hash: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    hash: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    # Over position, payload and `covers`, a JSON document: what of its payment the event covers.
    content_hash: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    covers: Mapped[str | None] = mapped_column(Text, deferred=True)


class WebhookDelivery(Base):
    """The delivery of one event to one endpoint: a work item, with bytes that never change.

    `message_id` is the `webhook-id` at every attempt.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("event_number", "endpoint_id"),
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status_known"),
        CheckConstraint("(status = 'delivered') = (delivered_at IS NOT NULL)", name="has_time"),
        Index(
            "ix_webhook_deliveries_due",
            "endpoint_id",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'"),
        ),
        # To find the earliest open delivery of the same payment.
        Index(
            "ix_webhook_deliveries_open",
            "endpoint_id",
            "payment_id",
            "sequence",
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_webhook_deliveries_in_hand",
            "endpoint_id",
            "lease_until",
            postgresql_where=text("lease_until IS NOT NULL"),
        ),
        Index("ix_webhook_deliveries_newest", "endpoint_id", text("id DESC")),
        Index("ix_webhook_deliveries_age", "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    mode: Mapped[str] = mapped_column(Text)
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_endpoints.id"))
    event_number: Mapped[int] = mapped_column(ForeignKey("events.id"))
    event_type: Mapped[str] = mapped_column(Text)
    payment_id: Mapped[UUID | None] = mapped_column(ForeignKey("payments.id"))
    sequence: Mapped[int | None]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(Text, server_default=DeliveryStatus.PENDING)
    trigger: Mapped[str] = mapped_column(Text, server_default=Trigger.SCHEDULE)
    # Attempts since it was created or resent: a resend counts from zero.
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    lease_until: Mapped[datetime | None] = mapped_column(Timestamp)
    generation: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    delivered_at: Mapped[datetime | None] = mapped_column(Timestamp)

    def succeed(self, now: datetime) -> None:
        """The endpoint accepted it."""
        self.status = DeliveryStatus.DELIVERED
        self.delivered_at = now

    def give_up(self) -> None:
        """There is no next attempt, unless someone resends it."""
        self.status = DeliveryStatus.FAILED

    @property
    def message_id(self) -> str:
        """By it, a receiver recognises a repeated delivery."""
        return f"msg_{self.id.hex}"


class WebhookAttempt(Base):
    """One POST, inserted with its result; until then only the delivery's claim records it.

    An open row belongs to a worker that died: nobody knows if it was sent. The next claimer of the
    delivery inserts it. Rows are partitioned by the week in which their delivery was created.
    """

    __tablename__ = "webhook_attempts"
    __table_args__ = (
        CheckConstraint("(finished_at IS NULL) = (outcome IS NULL)", name="closed_has_outcome"),
        Index("ix_webhook_attempts_age", "started_at"),
        {"postgresql_partition_by": "RANGE (delivery_id)"},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    delivery_id: Mapped[UUID] = mapped_column(
        ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True
    )
    generation: Mapped[int] = mapped_column(primary_key=True)
    trigger: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # `delivered`, `http_error`, or the reason for no response, such as `timeout`.
    outcome: Mapped[str | None] = mapped_column(Text)
    http_status: Mapped[int | None]
    answer: Mapped[bytes | None] = mapped_column(LargeBinary)
    elapsed_ms: Mapped[int | None]
