"""Claims: which payments are due, the locks on their rows, and the lease of a claimed one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from functools import cache
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    Connection,
    Integer,
    Select,
    Text,
    TextClause,
    Uuid,
    any_,
    bindparam,
    case,
    func,
    literal,
    select,
    text,
    true,
    update,
)
from sqlalchemy.orm import Session, aliased

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import transaction
from payments_app.kernel.http.messages import LeaseLost
from payments_app.kernel.http.transport import Lease
from payments_app.payments.model import ACCOUNT, LANE, Payment
from payments_app.payments.states import Status, Step
from payments_app.providers.contract import AccountKey
from payments_app.tenants.model import Tenant

# How long a claim lasts: a whole exchange (15 s) and its write-back, and not much more, because
# after a crash the payment waits for this long.
LEASE: Final = timedelta(seconds=30)
# A client stops sending this long before the database ends the lease.
LEASE_MARGIN_S: Final = 2.0
# With less than this left before sending, the lease is renewed first.
LEASE_RENEW_BELOW_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Claim:
    """`payment` is as it was when claimed."""

    payment: Payment
    generation: int
    step: Step
    lease: Lease

    @property
    def account(self) -> AccountKey:
        """The account whose slot it takes."""
        return AccountKey(self.payment.provider, self.payment.account_id)


def lease_from(taken_at: float) -> Lease:
    """The lease for a client, if the database was asked for it at `taken_at`: with the margin."""
    return Lease(taken_at + LEASE.total_seconds() - LEASE_MARGIN_S)


def renewed(claim: Claim) -> Lease:
    """The lease, renewed if little is left. Raises LeaseLost if another has the payment."""
    if claim.lease.remaining_s() > LEASE_RENEW_BELOW_S:
        return claim.lease
    taken_at = boot_seconds()
    lease_until = func.clock_timestamp() + LEASE
    with transaction(claim.payment.tenant_id) as session:
        extended = session.execute(
            update(Payment)
            .where(Payment.id == claim.payment.id, Payment.generation == claim.generation)
            .where(Payment.status == Status.PENDING)
            .values(
                lease_until=lease_until,
                # An earlier time was set by a callback: keep it.
                next_action_at=case(
                    (Payment.next_action_at < Payment.lease_until, Payment.next_action_at),
                    else_=lease_until,
                ),
            )
            .returning(Payment.id)
        ).first()
    if extended is None:
        raise LeaseLost
    return lease_from(taken_at)


# What the index has for the platform's account, which has no id.
_PLATFORM: Final = UUID(int=0)


class Lane(IntEnum):
    """The kind of work in a queue. Status checks that somebody asked for go first."""

    SUBMIT = 0
    HINTED = 1
    CHECK = 2


class Queue(NamedTuple):
    """The payments of one tenant through one account, in one lane: the longest due first."""

    account: AccountKey
    tenant_id: UUID
    lane: Lane


class Due(NamedTuple):
    """A payment that is due, the database's time, and since when its tenant is held."""

    payment: Payment
    now: datetime
    held_at: datetime | None


# The queues of all open payments. The recursion steps from queue to queue along the index, so final
# payments cost nothing, nor do more payments in one queue.
QUEUES: Final = f"""WITH RECURSIVE queues AS (
        (SELECT provider, {ACCOUNT} AS account, tenant_id, {LANE} AS lane
         FROM payments WHERE status = 'PENDING'
         ORDER BY provider, {ACCOUNT}, tenant_id, {LANE} LIMIT 1)
        UNION ALL
        SELECT n.* FROM queues q CROSS JOIN LATERAL (
            SELECT provider, {ACCOUNT} AS account, tenant_id, {LANE} AS lane
            FROM payments WHERE status = 'PENDING'
              AND (provider, {ACCOUNT}, tenant_id, {LANE})
                  > (q.provider, q.account, q.tenant_id, q.lane)
            ORDER BY provider, {ACCOUNT}, tenant_id, {LANE} LIMIT 1) n
    )
"""  # noqa: S608  our own words


def in_queue() -> str:
    """The condition for what is due in queue `q`. A claimed payment isn't, even if it is hinted."""
    return f"""
        status = 'PENDING' AND provider = q.provider AND {ACCOUNT} = q.account
        AND tenant_id = q.tenant_id AND {LANE} = q.lane
        AND next_action_at <= statement_timestamp()
        AND coalesce(lease_until, next_action_at) <= statement_timestamp()
    """


# Both are built once: building them costs a worker as much as all other work for a payment.
@cache
def _waiting_query() -> TextClause:
    return text(f"""{QUEUES}
    SELECT q.provider, q.account, q.tenant_id, q.lane, d.due
    FROM queues q CROSS JOIN LATERAL (
        SELECT count(*) AS due FROM (
            SELECT FROM payments WHERE {in_queue()} ORDER BY next_action_at LIMIT :depth) AS first
    ) d
    WHERE d.due > 0
    """)  # noqa: S608  our own words


@cache
def _due_query() -> Select[Payment, datetime, datetime | None]:
    """The longest due payments of each queue, up to its share, locked."""
    q = (
        func.unnest(
            bindparam("providers", type_=ARRAY(Text)),
            bindparam("accounts", type_=ARRAY(Uuid)),
            bindparam("tenants", type_=ARRAY(Uuid)),
            bindparam("lanes", type_=ARRAY(Integer)),
            bindparam("shares", type_=ARRAY(Integer)),
        )
        .table_valued("provider", "account", "tenant_id", "lane", "share")
        .render_derived(name="q")
    )
    first = (
        select(Payment)
        .where(text(in_queue()))
        .order_by(Payment.next_action_at)
        .limit(q.c.share)
        .with_for_update(skip_locked=True, key_share=True)
        .lateral()
    )
    payment = aliased(Payment, first)
    return (
        select(payment, func.statement_timestamp(), Tenant.held_at)
        .select_from(q)
        .join(first, true())
        .join(Tenant, Tenant.id == payment.tenant_id)
        .order_by(payment.next_action_at)
    )


def waiting_queues(connection: Connection, depth: int) -> dict[Queue, int]:
    """The queues with due payments, and how many, counted up to `depth`."""
    return {
        Queue(
            AccountKey(row.provider, None if row.account == _PLATFORM else row.account),
            row.tenant_id,
            Lane(row.lane),
        ): row.due
        for row in connection.execute(_waiting_query(), {"depth": depth})
    }


def due_payments(session: Session, shares: Mapping[Queue, int]) -> list[Due]:
    """The longest due payments of each queue, up to its share, locked.

    No worker waits for another: rows that others have claimed or locked are left out.
    """
    values = {
        "providers": [queue.account.provider for queue in shares],
        "accounts": [queue.account.id or _PLATFORM for queue in shares],
        "tenants": [queue.tenant_id for queue in shares],
        "lanes": [int(queue.lane) for queue in shares],
        "shares": list(shares.values()),
    }
    rows = session.execute(_due_query(), values)
    return [Due(*row) for row in rows]


def locked_payments(
    session: Session, payment_ids: Collection[UUID], *, skip_locked: bool = False
) -> tuple[dict[UUID, Payment], datetime]:
    """Lock these; returns them and the database's time. In id order, to prevent deadlocks.

    With `skip_locked`, without those that somebody else has locked.
    """
    rows = session.execute(
        select(Payment, func.statement_timestamp())
        .where(Payment.id == any_(literal(list(payment_ids), ARRAY(Uuid))))
        .order_by(Payment.id)
        .with_for_update(of=Payment, skip_locked=skip_locked, key_share=True)
    ).all()
    now = rows[0][1] if rows else session.scalars(select(func.statement_timestamp())).one()
    return {payment.id: payment for payment, _ in rows}, now


def is_due(payment: Payment, now: datetime) -> bool:
    """The same condition as `in_queue`."""
    times = (payment.next_action_at, payment.lease_until or payment.next_action_at)
    return payment.status == Status.PENDING and all(one and one <= now for one in times)


def put_off(session: Session, payment_id: UUID, pause: timedelta) -> None:
    """Delay the payment's next action by `pause`."""
    later = update(Payment).where(Payment.id == payment_id, Payment.status == Status.PENDING)
    session.execute(later.values(next_action_at=func.statement_timestamp() + pause))
