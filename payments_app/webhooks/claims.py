"""Claims due deliveries in batches: choose endpoints and their share of slots, then claim.

The claim is committed before anything is sent, and records that an attempt has begun: the attempt's
row is written with its result. An endpoint is sent only the earliest open event of a payment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text
from sqlalchemy.orm import Session

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.webhooks.concurrency import EndpointLimits, FairTurns, Waiting

# The longest time for one exchange. The lease is longer, so that the result is recorded within it.
EXCHANGE_MAX_S: Final = 15.0
LEASE: Final = timedelta(seconds=30)
LEASE_MARGIN_S: Final = 2.0
# Limits for one endpoint: open deliveries that are searched for one to send, and deliveries that
# are moved at once behind the earlier one of their payment that they wait for.
LOOKED_THROUGH_MAX: Final = 1000
PARKED_MAX: Final = 1000
# Passes in one call. The next call finds what is left.
LOOKS_MAX: Final = 8

# The enabled endpoints with something due, and how many deliveries of each are claimed in all
# processes. The recursion steps from endpoint to endpoint along the index of open deliveries, so
# ended deliveries, and endpoints with nothing open, cost nothing.
_WAITING: Final = text(
    """
    WITH RECURSIVE open AS (
        (SELECT endpoint_id FROM webhook_deliveries WHERE status = 'pending'
         ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT d.endpoint_id FROM webhook_deliveries d
                WHERE d.status = 'pending' AND d.endpoint_id > open.endpoint_id
                ORDER BY d.endpoint_id LIMIT 1)
        FROM open WHERE open.endpoint_id IS NOT NULL
    )
    SELECT e.id, e.tenant_id, e.timeouts,
           (SELECT count(*) FROM webhook_deliveries f
            WHERE f.endpoint_id = e.id AND f.lease_until > statement_timestamp()) AS in_hand
    FROM open JOIN webhook_endpoints e ON e.id = open.endpoint_id
    WHERE e.status <> 'disabled' AND statement_timestamp() >= (
        SELECT d.next_attempt_at FROM webhook_deliveries d
        WHERE d.endpoint_id = e.id AND d.status = 'pending'
          AND (d.lease_until IS NULL OR d.lease_until <= statement_timestamp())
        ORDER BY d.next_attempt_at LIMIT 1)
    """
)
# For each endpoint at most as many as its slots, longest due first. `first` is the earliest open
# delivery of the same payment: this one, or the one that this one waits for. A waiting delivery is
# returned only if it is due no later than `first`, and `first` is not being sent.
_DUE: Final = text(
    """
    SELECT d.id, d.endpoint_id, d.is_first
    FROM unnest(CAST(:endpoint_ids AS uuid[]), CAST(:shares AS integer[])) AS t(endpoint_id, share)
    CROSS JOIN LATERAL (
        SELECT d.id, d.endpoint_id, coalesce(first.id = d.id, true) AS is_first
        FROM (
            SELECT id, endpoint_id, payment_id, next_attempt_at FROM webhook_deliveries
            WHERE endpoint_id = t.endpoint_id AND status = 'pending'
              AND next_attempt_at <= statement_timestamp()
              AND (lease_until IS NULL OR lease_until <= statement_timestamp())
            ORDER BY next_attempt_at LIMIT :looked_through
        ) d
        LEFT JOIN LATERAL (
            SELECT id, next_attempt_at, lease_until FROM webhook_deliveries
            WHERE endpoint_id = t.endpoint_id AND payment_id = d.payment_id AND status = 'pending'
            ORDER BY sequence LIMIT 1
        ) first ON true
        WHERE coalesce(first.id = d.id, true)
           OR first.next_attempt_at >= d.next_attempt_at
              AND coalesce(first.lease_until <= statement_timestamp(), true)
        LIMIT t.share
    ) d
    """
)
# A concurrent claimer holds the row locks, or has committed and changed the rows. The query also
# reads the URL, the secrets, and the trace in which the payment was accepted. The status condition
# is written so that no partial index fits: rows are found by id, not by a scan of all open ones. And
# payments is not joined: PostgreSQL would read it whole, if it prepared the statement on a small one.
_CLAIM: Final = text(
    """
    WITH due AS (
        SELECT id, endpoint_id, payment_id, lease_until FROM webhook_deliveries
        WHERE id = ANY (CAST(:ids AS uuid[])) AND status NOT IN ('delivered', 'failed')
          AND next_attempt_at <= statement_timestamp()
          AND (lease_until IS NULL OR lease_until <= statement_timestamp())
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE webhook_deliveries d
    SET generation = d.generation + 1, attempts = d.attempts + 1,
        lease_until = statement_timestamp() + CAST(:lease AS interval)
    FROM due JOIN webhook_endpoints e ON e.id = due.endpoint_id AND e.status <> 'disabled'
    WHERE d.id = due.id AND d.id = ANY (CAST(:ids AS uuid[]))
    RETURNING d.id, d.tenant_id, d.endpoint_id, d.payment_id, d.event_type, d.body, d.trigger,
        d.attempts, d.generation, d.next_attempt_at, d.lease_until, due.lease_until AS lost_lease,
        e.url, e.secret, e.previous_secret, e.previous_secret_until,
        (SELECT traceparent FROM payments WHERE id = d.payment_id) AS traceparent
    """
)
# The attempt before, whose worker never reported. Its row stays open: its outcome is unknown.
_ADD_LOST: Final = text(
    """
    INSERT INTO webhook_attempts (tenant_id, delivery_id, generation, trigger, url, started_at)
    VALUES (:tenant_id, :delivery_id, :generation, :trigger, :url, :started_at)
    ON CONFLICT (delivery_id, generation) DO NOTHING
    """
)
# A delivery that waits for an earlier one of its payment becomes due after it, so that thousands
# that wait at a failing endpoint are not read again for each claim. Two statements: the rows are
# locked before the second checks what they wait for. So it can't end in between without releasing
# them.
_LOCK_WAITING: Final = text(
    """
    SELECT d.id FROM unnest(CAST(:endpoint_ids AS uuid[])) AS t(endpoint_id)
    CROSS JOIN LATERAL (
        SELECT w.id FROM webhook_deliveries w
        JOIN LATERAL (
            SELECT id FROM webhook_deliveries
            WHERE endpoint_id = t.endpoint_id AND payment_id = w.payment_id AND status = 'pending'
            ORDER BY sequence LIMIT 1
        ) first ON first.id <> w.id
        WHERE w.endpoint_id = t.endpoint_id AND w.status = 'pending'
          AND w.next_attempt_at <= statement_timestamp()
          AND (w.lease_until IS NULL OR w.lease_until <= statement_timestamp())
        ORDER BY w.next_attempt_at LIMIT :parked
        FOR NO KEY UPDATE OF w SKIP LOCKED
    ) d
    """
)
# The table is named once, not joined with itself. If PostgreSQL takes it for empty, because it was
# analyzed before a backlog grew, a join would look each row up among all of them.
_PARK: Final = text(
    """
    UPDATE webhook_deliveries w
    SET next_attempt_at = coalesce((
        SELECT first.next_attempt_at + interval '1 microsecond'
        FROM (
            SELECT id, next_attempt_at, lease_until FROM webhook_deliveries
            WHERE endpoint_id = w.endpoint_id AND payment_id = w.payment_id AND status = 'pending'
            ORDER BY sequence LIMIT 1
        ) first
        WHERE first.id <> w.id AND first.next_attempt_at >= w.next_attempt_at
          AND coalesce(first.lease_until <= statement_timestamp(), true)
    ), w.next_attempt_at)
    WHERE w.id = ANY (CAST(:ids AS uuid[]))
    """
)


# A delivery and the generation of its claim.
ClaimKey = tuple[UUID, int]


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """One delivery, claimed for one attempt: what to send, where, and the latest time to send it.

    `started_at` is by the database's clock, `taken_at` and `leave_before` by this machine's
    boot_seconds. `secrets` are encrypted, the current one first.
    """

    delivery_id: UUID
    tenant_id: UUID
    endpoint_id: UUID
    payment_id: UUID | None
    event_type: str
    body: bytes
    trigger: str
    attempts: int
    generation: int
    due_at: datetime
    started_at: datetime
    url: str
    secrets: tuple[str, ...]
    traceparent: str | None
    taken_at: float
    leave_before: float

    @property
    def key(self) -> ClaimKey:
        """Identifies the claim: a delivery may be claimed again once the lease has ended."""
        return self.delivery_id, self.generation

    @property
    def message_id(self) -> str:
        """The `webhook-id`: by it, a receiver recognises a repeated delivery."""
        return f"msg_{self.delivery_id.hex}"

    def now(self) -> datetime:
        """The database's time now: receivers refuse a timestamp that is minutes off."""
        return self.started_at + timedelta(seconds=boot_seconds() - self.taken_at)


class DeliveryClaims:
    """The claims of one process. One thread at a time may use it."""

    def __init__(self, per_tenant: int) -> None:
        """`per_tenant`: how many claims one tenant may hold in this process."""
        self._turns = FairTurns(per_tenant)
        self._limits = EndpointLimits()

    def claim_due(self, slots: int) -> list[DeliveryClaim]:
        """Claim at most `slots` deliveries, in fair turns; an empty list when nothing is due."""
        for _ in range(LOOKS_MAX):
            taken_at = boot_seconds()
            with by_index() as session:
                connection = session.connection()
                shares = self._shares(connection, slots)
                if not shares:
                    return []
                due = _due(connection, shares)
                rows = _claim(connection, [row["id"] for row in due if row["is_first"]])
                _park(connection, {row["endpoint_id"] for row in due if not row["is_first"]})
            if rows or not due:
                break
        claims = [_claim_of(row, taken_at) for row in rows]
        for claim in claims:
            self._turns.take(claim.tenant_id)
        return sorted(claims, key=lambda one: one.due_at)

    def release(self, claim: DeliveryClaim) -> None:
        """Release the claim's slot, whatever its result."""
        self._turns.free(claim.tenant_id)

    def learn(self, claim: DeliveryClaim, *, delivered: bool, elapsed_s: float) -> None:
        """Record how the endpoint answered, to adapt its concurrency limit."""
        self._limits.record(claim.endpoint_id, delivered=delivered, elapsed_s=elapsed_s)

    def _shares(self, connection: Connection, slots: int) -> dict[UUID, int]:
        waiting = [
            Waiting(
                row.id,
                row.tenant_id,
                self._limits.limit(row.id, slow_in_a_row=row.timeouts) - row.in_hand,
            )
            for row in connection.execute(_WAITING)
        ]
        return self._turns.share_out(slots, waiting)


@contextmanager
def by_index() -> Iterator[Session]:
    """Open a transaction for all tenants in which the planner uses indexes for every statement."""
    with transaction(EVERY_TENANT, by_index=True) as session:
        yield session


def _due(connection: Connection, shares: Mapping[UUID, int]) -> Sequence[RowMapping]:
    values = {
        "endpoint_ids": list(shares),
        "shares": list(shares.values()),
        "looked_through": LOOKED_THROUGH_MAX,
    }
    return connection.execute(_DUE, values).mappings().all()


def _claim(connection: Connection, ids: Sequence[UUID]) -> Sequence[RowMapping]:
    if not ids:
        return []
    rows = connection.execute(_CLAIM, {"ids": ids, "lease": LEASE}).mappings().all()
    lost = [
        {
            "tenant_id": row["tenant_id"],
            "delivery_id": row["id"],
            "generation": row["generation"] - 1,
            "trigger": row["trigger"],
            "url": row["url"],
            "started_at": row["lost_lease"] - LEASE,
        }
        for row in rows
        if row["lost_lease"] is not None
    ]
    if lost:
        connection.execute(_ADD_LOST, lost)
    return rows


def _park(connection: Connection, endpoint_ids: set[UUID]) -> None:
    if not endpoint_ids:
        return
    values = {"endpoint_ids": list(endpoint_ids), "parked": PARKED_MAX}
    ids = connection.scalars(_LOCK_WAITING, values).all()
    connection.execute(_PARK, {"ids": ids})


def _claim_of(row: RowMapping, taken_at: float) -> DeliveryClaim:
    started_at = row["lease_until"] - LEASE
    return DeliveryClaim(
        delivery_id=row["id"],
        tenant_id=row["tenant_id"],
        endpoint_id=row["endpoint_id"],
        payment_id=row["payment_id"],
        event_type=row["event_type"],
        body=row["body"],
        trigger=row["trigger"],
        attempts=row["attempts"],
        generation=row["generation"],
        due_at=row["next_attempt_at"],
        started_at=started_at,
        url=row["url"],
        secrets=_secrets(row, started_at),
        traceparent=row["traceparent"],
        taken_at=taken_at,
        leave_before=taken_at + LEASE.total_seconds() - LEASE_MARGIN_S - EXCHANGE_MAX_S,
    )


def _secrets(row: RowMapping, now: datetime) -> tuple[str, ...]:
    """The current secret, and the previous one until its overlap ends."""
    until: Any = row["previous_secret_until"]
    if row["previous_secret"] and until and until > now:
        return (row["secret"], row["previous_secret"])
    return (row["secret"],)
