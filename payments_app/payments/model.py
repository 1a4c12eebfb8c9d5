"""The tables of payments and of what is known of them. Only `Payment.apply` changes a status."""

from __future__ import annotations

from datetime import datetime
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
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from payments_app.kernel.database import Base
from payments_app.kernel.money import Money
from payments_app.payments.states import INITIAL_STATE, Event, Stage, Status, Step, next_state

Timestamp: Final = TIMESTAMP(timezone=True)
NOW: Final = text("clock_timestamp()")
# The direction of the money.
COLLECTION: Final = "collection"
# Index expressions, spelled as PostgreSQL writes them. ACCOUNT: the account, with a fixed id for
# the platform's. LANE: a submission, a status check that somebody asked for, any other check.
# COALESCE would be shorter, but row-level security would keep it from using the index.
ACCOUNT: Final = """(
CASE
    WHEN account_id IS NULL THEN '00000000-0000-0000-0000-000000000000'::uuid
    ELSE account_id
END)"""
LANE: Final = """(
CASE
    WHEN next_step = 'submit'::text THEN 0
    WHEN hinted THEN 1
    ELSE 2
END)"""


class Payment(Base):
    """One payment. The provider knows it by its `reference`, on every send.

    An open payment has `next_action_at`: the row is its own job. `hinted`: a callback or the
    operator wants its status checked before others. `lease_until` and `generation` belong to the
    worker that has claimed it. `account_id` is None for the platform's account; base_url,
    target_environment and merchant are kept because only the platform that took a payment can tell
    its status, and only to the merchant that sent it.
    """

    __tablename__ = "payments"
    __table_args__ = (
        CheckConstraint("mode IN ('live', 'test')", name="mode_known"),
        CheckConstraint("flow IN ('collection')", name="flow_known"),
        CheckConstraint("amount_minor > 0", name="amount_positive"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency_form"),
        CheckConstraint("status <> 'PENDING' OR payer IS NOT NULL", name="open_has_payer"),
        CheckConstraint(
            "num_nulls(payer, payer_index, payer_masked) IN (0, 3)", name="payer_goes_whole"
        ),
        CheckConstraint("status IN ('PENDING', 'SUCCESSFUL', 'FAILED')", name="status_known"),
        CheckConstraint(
            "stage IN ('accepted', 'submitting', 'awaiting_payer', 'unknown', 'final')",
            name="stage_known",
        ),
        CheckConstraint("next_step IN ('submit', 'check')", name="step_known"),
        CheckConstraint("(stage = 'final') = (status <> 'PENDING')", name="final_has_ended"),
        CheckConstraint(
            "(status = 'PENDING') = (next_action_at IS NOT NULL)", name="open_is_never_forgotten"
        ),
        CheckConstraint("(status = 'PENDING') = (evidence_id IS NULL)", name="end_has_evidence"),
        CheckConstraint("(status = 'PENDING') = (final_at IS NULL)", name="end_has_time"),
        CheckConstraint(
            "(status = 'FAILED') = (failure_code IS NOT NULL)", name="failure_has_code"
        ),
        # W3C Trace Context, version 00; neither the trace's id nor the span's is all zeros.
        CheckConstraint(
            "traceparent ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]$'",
            name="traceparent_form",
        ),
        UniqueConstraint("reference"),
        UniqueConstraint("tenant_id", "mode", "external_id"),
        # The queues of due payments: see claims.py.
        Index(
            "ix_payments_queues",
            "provider",
            text(ACCOUNT),
            "tenant_id",
            text(LANE),
            "next_action_at",
            postgresql_where=text("status = 'PENDING'"),
        ),
        Index("ix_payments_newest", "tenant_id", "mode", text("created_at DESC"), text("id DESC")),
        # Payers that the retention job must still erase.
        Index(
            "ix_payments_remembered",
            "final_at",
            postgresql_where=text("payer IS NOT NULL AND final_at IS NOT NULL"),
        ),
        Index("ix_payments_payer", "tenant_id", "payer_index", text("created_at DESC")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    mode: Mapped[str] = mapped_column(Text)
    flow: Mapped[str] = mapped_column(Text, default=COLLECTION)
    provider: Mapped[str] = mapped_column(Text)
    account_id: Mapped[UUID | None] = mapped_column(ForeignKey("provider_accounts.id"))
    base_url: Mapped[str] = mapped_column(Text)
    target_environment: Mapped[str] = mapped_column(Text)
    merchant: Mapped[str] = mapped_column(Text)
    reference: Mapped[UUID]
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(Text)
    # Encrypted: see payers.py. All three are null once the payer has been erased.
    payer: Mapped[bytes | None] = mapped_column(LargeBinary)
    payer_index: Mapped[bytes | None] = mapped_column(LargeBinary)
    payer_masked: Mapped[str | None] = mapped_column(Text)
    external_id: Mapped[str | None] = mapped_column(Text)
    payer_message: Mapped[str | None] = mapped_column(Text)
    payee_note: Mapped[str | None] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    # The span of the acceptance; all later steps join its trace: see kernel/tracing.py.
    traceparent: Mapped[str | None] = mapped_column(Text)
    # SQLAlchemy reserves the name `metadata` on a model.
    tenant_metadata: Mapped[dict[str, Any] | None] = mapped_column(
        "metadata", JSONB(none_as_null=True)
    )
    status: Mapped[str] = mapped_column(Text, default=INITIAL_STATE.status)
    stage: Mapped[str] = mapped_column(Text, default=INITIAL_STATE.stage)
    failure_code: Mapped[str | None] = mapped_column(Text)
    failure_provider_code: Mapped[str | None] = mapped_column(Text)
    provider_transaction_id: Mapped[str | None] = mapped_column(Text)
    evidence_id: Mapped[int | None] = mapped_column(
        ForeignKey("provider_exchanges.id", use_alter=True)
    )
    sequence: Mapped[int] = mapped_column(default=0)
    next_step: Mapped[str] = mapped_column(Text, default=Step.SUBMIT)
    next_action_at: Mapped[datetime | None] = mapped_column(Timestamp, server_default=NOW)
    hinted: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    lease_until: Mapped[datetime | None] = mapped_column(Timestamp)
    generation: Mapped[int] = mapped_column(default=0)
    submissions: Mapped[int] = mapped_column(default=0)
    submitted_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)
    final_at: Mapped[datetime | None] = mapped_column(Timestamp)

    @property
    def money(self) -> Money:
        """The amount with its currency."""
        return Money(self.amount_minor, self.currency)

    @property
    def is_final(self) -> bool:
        """Whether it has ended, on the provider's evidence."""
        return self.status != Status.PENDING

    def apply(self, event: Event, now: datetime) -> bool:
        """Apply the event by the table of states; True if status or stage changed.

        Raises IllegalTransition. The caller writes the event row in the same transaction: the
        database refuses a change of status without one.
        """
        state = next_state(Stage(self.stage), event)
        changed = state != (self.status, self.stage)
        self.status, self.stage = state
        self.updated_at = now
        if self.is_final:
            self.next_action_at = None
            self.hinted = False
            self.lease_until = None
            self.final_at = now
        return changed


class ProviderExchange(Base):
    """One exchange with the provider: evidence.

    A submission's row is committed open (`finished_at` is null) before its first byte is sent, one
    for each generation of the claim. A closed row never changes.
    """

    __tablename__ = "provider_exchanges"
    __table_args__ = (
        UniqueConstraint("payment_id", "generation"),
        CheckConstraint("kind IN ('submit', 'check')", name="kind_known"),
        CheckConstraint("(finished_at IS NULL) = (verdict IS NULL)", name="closed_has_verdict"),
        CheckConstraint("kind = 'submit' OR finished_at IS NOT NULL", name="only_submit_is_open"),
        CheckConstraint(
            "requests_left <= 1 OR verdict NOT IN ('REFUSED', 'NOT_SENT', 'NOT_FOUND', 'FAILED')",
            name="weak_verdict_is_of_one_request",
        ),
        CheckConstraint("requests_left >= 0", name="requests_left_counted"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    generation: Mapped[int]
    kind: Mapped[str] = mapped_column(Text)
    reference: Mapped[UUID]
    verdict: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    http_status: Mapped[int | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    failure_code: Mapped[str | None] = mapped_column(Text)
    failure_provider_code: Mapped[str | None] = mapped_column(Text)
    elapsed_ms: Mapped[int | None]
    # How many requests of a submission may have arrived and created something. Null if not counted:
    # a status check, a row from before migration 0010, an adapter that failed midway.
    requests_left: Mapped[int | None]
    started_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)


class Callback(Base):
    """A provider's callback as received: a hint, never a proof. The same bytes count once."""

    __tablename__ = "callbacks"
    __table_args__ = (UniqueConstraint("payment_id", "digest"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    method: Mapped[str] = mapped_column(Text)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    source: Mapped[str | None] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)


class InvariantViolation(Base):
    """A violation of an invariant that was found. A person resolves it, once."""

    __tablename__ = "invariant_breaks"
    __table_args__ = (
        UniqueConstraint("tenant_id", "invariant", "subject"),
        CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="resolved_has_reason"),
        Index(
            "ix_invariant_breaks_open", "tenant_id", postgresql_where=text("resolved_at IS NULL")
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"))
    invariant: Mapped[str] = mapped_column(Text)
    # A payment's id, or a row of the audit trail or of the events.
    subject: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
    found_at: Mapped[datetime] = mapped_column(Timestamp, server_default=NOW)
    resolved_at: Mapped[datetime | None] = mapped_column(Timestamp)
    resolution: Mapped[str | None] = mapped_column(Text)
