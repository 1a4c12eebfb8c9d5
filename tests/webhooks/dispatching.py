"""What a worker process does with deliveries, step by step: claim, send, record."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask, current_app

from payments_app.kernel.http.egress import Egress, EgressRules
from payments_app.kernel.http.messages import HttpResponse, NoResponse
from payments_app.kernel.secrets import Cipher
from payments_app.payments import outbox
from payments_app.webhooks import dispatcher
from payments_app.webhooks.claims import DeliveryClaim, DeliveryClaims
from payments_app.webhooks.dispatcher import DeliveryResult

PER_TENANT = 32


class WorkerProcess:
    """The claims of one process, what it knows of endpoints, and its connections."""

    def __init__(self, *, per_tenant: int = PER_TENANT, cipher: Cipher | None = None) -> None:
        self._claims = DeliveryClaims(per_tenant)
        self._egress = Egress(EgressRules(allow_private=True), user_agent="test")
        self._cipher = cipher

    def claim(self, slots: int = 64) -> list[DeliveryClaim]:
        """Claim due deliveries for so many free slots."""
        return self._claims.claim_due(slots)

    def claim_one(self) -> DeliveryClaim:
        """Claim the next due delivery; fails if there is none."""
        (claim,) = self.claim(1)
        return claim

    def send(self, claim: DeliveryClaim) -> DeliveryResult:
        """POST it, without recording the result."""
        cipher = self._cipher or current_app.extensions["maramoja"].cipher
        return dispatcher.send(claim, egress=self._egress, cipher=cipher)

    def record(self, *results: DeliveryResult) -> None:
        """Record the results, and free their slots."""
        for result in results:
            self._claims.release(result.claim)
            self._claims.learn(
                result.claim, delivered=result.is_delivered, elapsed_s=result.seen.elapsed_s
            )
        left = list(results)
        while left:
            left = dispatcher.record(left)

    def deliver(self, *claims: DeliveryClaim) -> None:
        """Send all, then record all."""
        self.record(*[self.send(claim) for claim in claims])

    def deliver_due(self) -> int:
        """Deliver all that is due, one after the other; returns how many."""
        outbox.publish_outbox()
        count = 0
        while claims := self.claim(1):
            self.deliver(*claims)
            count += 1
        return count


def answered(
    claim: DeliveryClaim,
    status: int = 200,
    *,
    elapsed_s: float = 0.0,
    headers: Mapping[str, str] | None = None,
) -> DeliveryResult:
    """A result as if the receiver had sent this response."""
    return DeliveryResult(claim, HttpResponse(status, headers or {}, b"", elapsed_s))


def unanswered(claim: DeliveryClaim, why: str = "timeout") -> DeliveryResult:
    """A result as if there had been no response."""
    return DeliveryResult(claim, NoResponse(why, sent=True))


def deliver_due(_app: Flask) -> int:
    """Deliver all that is due, as a new process; returns how many."""
    return WorkerProcess().deliver_due()
