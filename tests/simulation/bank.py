"""A model of the provider: its true state, by which every run is judged. It answers as MTN does.

It is reliable in three things: a reference makes one order, however often it is sent; an order
that has ended stays ended; and a final status that it reports is true. Other faults: network.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from payments_app.kernel.http.messages import HttpRequest, HttpResponse
from tests.simulation.clock import VirtualClock

# Below the adapter's visible_after_s, even if the network also delays the request.
HIDDEN_MAX_S: Final = 90.0


class Fate(StrEnum):
    """The status of an order, in MTN's words."""

    PENDING = "PENDING"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"


@dataclass
class BankOrder:
    """One request to pay that the provider has accepted."""

    reference: str
    external_id: str
    amount: str
    currency: str
    payer: str
    visible_at_s: float
    fate: Fate = Fate.PENDING
    reason: str = ""


@dataclass
class Bank:
    """All orders. `refused`: references of submissions that it refused; `mixed_up`: those for which
    it once returned another order; `said`: every answer that reached its caller.
    """

    clock: VirtualClock
    orders: dict[str, BankOrder] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    mixed_up: set[str] = field(default_factory=set)
    said: dict[str, list[bytes]] = field(default_factory=dict)
    hide_s: float = 0.0

    def submit(
        self, call: HttpRequest, *, at_s: float | None = None, hide_s: float = 0.0
    ) -> HttpResponse:
        """Accept the order, or answer that it exists. `at_s`: when it arrived, if not now.

        `hide_s`: how long this order stays invisible, if longer than the others.
        """
        reference = call.headers["X-Reference-Id"]
        if reference in self.orders:
            return coded(409, "RESOURCE_ALREADY_EXIST")
        body = json.loads(call.body or b"")
        self.orders[reference] = BankOrder(
            reference=reference,
            external_id=body["externalId"],
            amount=body["amount"],
            currency=body["currency"],
            payer=body["payer"]["partyId"],
            visible_at_s=(self.clock.seconds() if at_s is None else at_s)
            + max(hide_s, self.hide_s),
        )
        return HttpResponse(202, {}, b"")

    def show(self, reference: str) -> HttpResponse:
        """The status of the order; 404 while the order is invisible."""
        order = self.orders.get(reference)
        if order is None or order.visible_at_s > self.clock.seconds():
            return coded(404, "RESOURCE_NOT_FOUND")
        return HttpResponse(200, {}, self.told(order))

    def told(self, order: BankOrder, fate: Fate | None = None) -> bytes:
        """The order as JSON, for answers and callbacks."""
        fate = fate or order.fate
        fields = {
            "amount": order.amount,
            "currency": order.currency,
            "externalId": order.external_id,
            "payer": {"partyIdType": "MSISDN", "partyId": order.payer},
            "status": fate.value,
        }
        if fate is Fate.SUCCESSFUL:
            fields["financialTransactionId"] = str(1_000_000 + len(order.reference))
        if fate is Fate.FAILED:
            fields["reason"] = order.reason or "APPROVAL_REJECTED"
        return json.dumps(fields).encode()

    def refuse(self, reference: str, answer: HttpResponse) -> HttpResponse:
        """Refuse a submission; an order that another submission created stays."""
        self.refused.add(reference)
        return answer

    def decide(self, order: BankOrder, fate: Fate, reason: str = "") -> None:
        """Set the payer's decision. Once."""
        assert order.fate is Fate.PENDING
        order.fate, order.reason = fate, reason

    def come_clean(self, hidden: Callable[[str], bool]) -> None:
        """Make all orders visible at once, except those that `hidden` says must stay invisible."""
        self.hide_s = 0.0
        for order in self.orders.values():
            if not hidden(order.reference):
                order.visible_at_s = 0.0

    def reveal(self, reference: str) -> None:
        """Make this order visible."""
        if reference in self.orders:
            self.orders[reference].visible_at_s = 0.0

    def pending(self) -> list[BankOrder]:
        """Orders without an end, in the order of their arrival."""
        return [order for order in self.orders.values() if order.fate is Fate.PENDING]

    def has_said(self, reference: str, answer: HttpResponse) -> None:
        """Record an answer that reached its caller: the referee accepts it as evidence."""
        self.said.setdefault(reference, []).append(answer.body)


def coded(status: int, code: str) -> HttpResponse:
    """An MTN error with a code."""
    return HttpResponse(status, {}, json.dumps({"code": code, "message": code.lower()}).encode())
