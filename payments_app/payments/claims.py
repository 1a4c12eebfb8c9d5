"""A claim: a worker's right to process one payment, for the time of a lease that can be renewed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import case, func, update

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import transaction
from payments_app.kernel.http import LeaseLost
from payments_app.kernel.transport import Lease
from payments_app.payments.model import Payment
from payments_app.payments.states import Status, Step
from payments_app.providers.contract import AccountKey

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
