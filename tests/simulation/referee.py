"""Judges a run: each request when it is sent, and all tables at the end.

It reads with SQL of its own, as the superuser, and uses neither the engine nor its types.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from payments_app.kernel.http.messages import HttpRequest
from tests.simulation.clock import VirtualClock

Row = dict[str, Any]


class Check(StrEnum):
    """The rules that a run must keep. docs/mutants.md says which of them detects which mutant."""

    ONE_ACCEPT = "one accept per key"
    SAME_ANSWER = "same answer for a key"
    REUSE_SEEN = "another request under the key is refused"
    NO_LOST_ACK = "what was answered 2xx exists"
    TENANT_WALL = "tenants don't mix"
    KEY_LIVES = "a key expires only after the payment's end"
    ONE_CHARGE = "one order at the provider"
    REFERENCE = "only the payment's own reference is sent"
    NOT_SENT = "NOT_SENT only if nothing left"
    WRITTEN_FIRST = "stored before it is sent"
    FENCE = "the sender holds the lease"
    ASK_FIRST = "status checked before it is sent again"
    TRUTH = "the end is the provider's truth"
    EVIDENCE = "an end has its evidence"
    STORY = "every change has its event"
    LIVENESS = "every payment ends in time"
    NO_CRASH = "no unexpected error"


class Violation(BaseException):
    """A run broke a rule. No `except Exception` of ours may catch it."""

    def __init__(self, check: Check, why: str) -> None:
        super().__init__(f"{check}: {why}")
        self.check = check


_ON_LEAVING: Final = """
SELECT p.id, p.reference, p.status, p.stage, p.generation, p.lease_until,
       (SELECT e.stage FROM events e WHERE e.payment_id = p.id
        ORDER BY e.sequence DESC LIMIT 1) AS told_stage,
       (SELECT json_agg(json_build_object(
                   'generation', e.generation, 'kind', e.kind, 'verdict', e.verdict,
                   'reference', e.reference) ORDER BY e.generation)
        FROM provider_exchanges e WHERE e.payment_id = p.id) AS exchanges
FROM payments p
"""
# Tenants see these stages, so an event must have recorded them.
_TOLD_STAGES: Final = ("unknown", "awaiting_payer")


@dataclass
class Referee:
    """Watches one database."""

    administrator: psycopg.Connection
    clock: VirtualClock
    names: dict[str, str] = field(default_factory=dict)
    left: set[tuple[str, int]] = field(default_factory=set)
    generations: dict[str, int] = field(default_factory=dict)
    arrived: set[tuple[str, int]] = field(default_factory=set)
    out: dict[int, tuple[str, datetime]] = field(default_factory=dict)
    tickets: int = 0

    def begin(self) -> None:
        """Begin a new run."""
        self.names.clear()
        self.left.clear()
        self.generations.clear()
        self.arrived.clear()
        self.out.clear()

    def rows(self, query: str, parameters: list[Any] | None = None) -> list[Row]:
        """The rows of a query; it sees committed rows only."""
        with self.administrator.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, parameters).fetchall()

    def name_of(self, reference: str) -> str:
        """P1, P2 … in the order of their first use: ids differ from run to run."""
        return self.names.setdefault(reference, f"P{len(self.names) + 1}")

    def references(self) -> list[str]:
        """The references of all payments, oldest first."""
        return [
            str(row["reference"]) for row in self.rows("SELECT reference FROM payments ORDER BY id")
        ]

    def is_open(self, description: str, tenant_id: UUID) -> bool:
        """Whether this intent's payment has no end yet."""
        query = (
            "SELECT 1 FROM payments WHERE (description, tenant_id, status) = (%s, %s, 'PENDING')"
        )
        return bool(self.rows(query, [description, tenant_id]))

    def next_due(self) -> datetime | None:
        """When the next open payment can be claimed; None when all have ended."""
        return self.rows(
            "SELECT min(greatest(next_action_at, lease_until)) AS due FROM payments"
            " WHERE status = 'PENDING'"
        )[0]["due"]

    def leaving(self, call: HttpRequest, reference: str) -> int:
        """Called before a request is sent. Returns a ticket; call `back` with it after the answer.

        Raises Violation unless the request is recorded and the payment has no other under way.
        """
        is_submission = call.method == "POST"
        payment = self._payment(call, reference, is_submission=is_submission)
        told, lease_until = self.name_of(reference), payment["lease_until"]
        if str(payment["reference"]) != reference:
            raise Violation(Check.REFERENCE, f"{told} goes out under another reference")
        if lease_until is None or lease_until <= self.clock.now():
            raise Violation(Check.FENCE, f"{told}: something is sent without a lease")
        # Leases end by the database's clock: the second claim was made by it.
        now = self.clock.in_database()
        if any(until > now for about, until in self.out.values() if about == reference):
            raise Violation(Check.FENCE, f"two are out for {told} at once")
        if payment["stage"] in _TOLD_STAGES and payment["told_stage"] != payment["stage"]:
            raise Violation(Check.STORY, f"{told} is {payment['stage']}, and no line says so")
        if is_submission:
            self._submission_leaving(payment, told)
        self.tickets += 1
        self.out[self.tickets] = (reference, lease_until)
        return self.tickets

    def back(self, ticket: int) -> None:
        """The exchange is over, with or without an answer. Not called for an actor that died."""
        del self.out[ticket]

    def has_left(self, reference: str) -> None:
        """The submission was sent: it may have arrived."""
        self.arrived.add((reference, self.generations[reference]))

    def unauthorized(self, reference: str) -> None:
        """A 401 was the answer: the adapter may send once more, under a new token."""
        self.left = {sent for sent in self.left if sent[0] != reference}

    def _payment(self, call: HttpRequest, reference: str, *, is_submission: bool) -> Row:
        if is_submission:
            body: Any = json.loads(call.body or b"")
            found = self.rows(_ON_LEAVING + "WHERE p.id = %s", [body["externalId"]])
        else:
            found = self.rows(_ON_LEAVING + "WHERE p.reference = %s", [reference])
        if not found:
            raise Violation(Check.WRITTEN_FIRST, "a call about a payment that is in no table")
        return found[0]

    def _submission_leaving(self, payment: Row, told: str) -> None:
        exchanges = {exchange["generation"]: exchange for exchange in payment["exchanges"] or ()}
        generation = payment["generation"]
        if payment["status"] != "PENDING":
            raise Violation(Check.FENCE, f"{told} has ended and is sent")
        mine = exchanges.get(generation)
        if mine is None or mine["kind"] != "submit" or mine["verdict"] is not None:
            earlier = any(e["kind"] == "submit" for e in exchanges.values())
            raise Violation(
                Check.FENCE if earlier else Check.WRITTEN_FIRST,
                f"{told} is sent, and generation {generation} has no open submission",
            )
        if (str(payment["reference"]), generation) in self.left:
            raise Violation(Check.FENCE, f"{told} is sent twice by generation {generation}")
        self.left.add((str(payment["reference"]), generation))
        self.generations[str(payment["reference"])] = generation
        before = exchanges.get(generation - 1)
        if generation > 1 and (
            before is None
            or (before["kind"], before["verdict"])
            not in {("check", "NOT_FOUND"), ("submit", "NOT_SENT")}
        ):
            raise Violation(Check.ASK_FIRST, f"{told} is sent again, and nobody had asked")
