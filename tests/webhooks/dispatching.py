"""A worker process's way with deliveries, step by step: claim, send, record."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask, current_app

from payments_app.kernel.egress import Egress, EgressRules
from payments_app.kernel.http import HttpResponse, NoResponse
from payments_app.kernel.secrets import Cipher
from payments_app.payments import outbox
from payments_app.webhooks import dispatcher
from payments_app.webhooks.claims import DeliveryClaim, DeliveryClaims
from payments_app.webhooks.dispatcher import DeliveryResult

PER_TENANT = 32


class WorkerProcess:
    """Its claims, what it has learned of endpoints, and its connections."""

    def __init__(self, *, per_tenant: int = PER_TENANT, cipher: Cipher | None = None) -> None:
        self._claims = DeliveryClaims(per_tenant)
        self._egress = Egress(EgressRules(allow_private=True), user_agent="test")
        self._cipher = cipher

    def claim(self, slots: int = 64) -> list[DeliveryClaim]:
        """What is due, as for so many free slots."""
        return self._claims.claim_due(slots)

    def claim_one(self) -> DeliveryClaim:
        """The one whose turn it is."""
        (claim,) = self.claim(1)
        return claim

    def send(self, claim: DeliveryClaim) -> DeliveryResult:
        """POST it; nothing is recorded yet."""
        cipher = self._cipher or current_app.extensions["maramoja"].cipher
        return dispatcher.send(claim, egress=self._egress, cipher=cipher)

    def record(self, *results: DeliveryResult) -> None:
        """Write down what came of them, and free their slots."""
        for result in results:
            self._claims.release(result.claim)
            self._claims.learn(
                result.claim, delivered=result.is_delivered, elapsed_s=result.seen.elapsed_s
            )
        left = list(results)
        while left:
            left = dispatcher.record(left)

    def deliver(self, *claims: DeliveryClaim) -> None:
        """Send and record, together."""
        self.record(*[self.send(claim) for claim in claims])

    def deliver_due(self) -> int:
        """All that is due, one after the other; how many."""
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
    """A result as if the receiver had answered so."""
    return DeliveryResult(claim, HttpResponse(status, headers or {}, b"", elapsed_s))


def unanswered(claim: DeliveryClaim, why: str = "timeout") -> DeliveryResult:
    """A result as if nothing had come back."""
    return DeliveryResult(claim, NoResponse(why, sent=True))


def deliver_due(_app: Flask) -> int:
    """What is due, by a process of its own; how many."""
    return WorkerProcess().deliver_due()
