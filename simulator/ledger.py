"""Payments and the money they moved. Tests check the gateway against it: rows are never changed.

A payment is accepted once for each reference, ends once, and moves money in the transaction in
which it becomes SUCCESSFUL. `movements` has no unique constraint on purpose: the ledger must
show a second movement, not hide it.
"""

import sqlite3
from dataclasses import dataclass, fields

from simulator.database import Database
from simulator.scenarios import Status

# MTN's are long numbers too; the first one is arbitrary.
_FIRST_FINANCIAL_TRANSACTION = 2_000_000_000

# How many due payments one pass of the ticker ends, so that it never holds the lock long.
_DUE_BATCH = 200


@dataclass(frozen=True, slots=True)
class Order:
    """An accepted request to pay or transfer. Field names are the columns of `creations`."""

    reference_id: str
    product: str
    operation: str
    api_user: str
    environment: str
    amount: str
    amount_minor: int
    currency: str
    party_type: str
    party: str
    external_id: str | None
    payer_message: str | None
    payee_note: str | None
    callback_url: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a payment will end; with `due_at` None, the admin API decides when."""

    status: Status
    reason: str | None
    due_at: float | None
    visible_at: float


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment in its current state."""

    order: Order
    status: Status
    reason: str | None
    financial_transaction_id: str | None
    visible_at: float
    due_at: float | None


_ORDER_FIELDS = tuple(field.name for field in fields(Order))
_INSERT_CREATION = (
    f"INSERT INTO creations (generation, at, visible_at, {', '.join(_ORDER_FIELDS)})"  # noqa: S608
    f" VALUES (?, ?, ?{', ?' * len(_ORDER_FIELDS)})"
)
_SELECT_PAYMENT = (
    f"SELECT {', '.join('c.' + name for name in _ORDER_FIELDS)}, c.visible_at,"  # noqa: S608
    " o.status, o.reason, o.financial_transaction_id, w.due_at FROM creations c"
    " LEFT JOIN outcomes o USING (generation, reference_id)"
    " LEFT JOIN waiting w USING (generation, reference_id)"
    " WHERE c.generation = ? AND c.reference_id = ?"
)


class Ledger:
    """Payments of the current generation."""

    def __init__(self, database: Database) -> None:
        self._database = database
        row = database.row("SELECT max(id) AS id FROM generations")
        self.generation: int = row["id"] or 0 if row else 0

    def start_generation(self, now: float) -> int:
        """Begin a new generation. Earlier payments stay in the file, but are hidden and never end."""
        self._database.change("DELETE FROM waiting")
        self.generation = self._database.insert("INSERT INTO generations (at) VALUES (?)", (now,))
        return self.generation

    def accept(self, order: Order, plan: Plan, now: float) -> Payment | None:
        """Create the payment, and end it if that is due; None when its reference was used."""
        values = [getattr(order, name) for name in _ORDER_FIELDS]
        ends_now = plan.due_at is not None and plan.due_at <= now
        financial_id = None
        try:
            with self._database.transaction():
                self._database.insert(
                    _INSERT_CREATION, (self.generation, now, plan.visible_at, *values)
                )
                if ends_now:
                    financial_id = self._end(order, plan.status, plan.reason, now)
                else:
                    self._database.insert(
                        "INSERT INTO waiting VALUES (?, ?, ?, ?, ?)",
                        (
                            self.generation,
                            order.reference_id,
                            plan.status,
                            plan.reason,
                            plan.due_at,
                        ),
                    )
        except sqlite3.IntegrityError:
            return None
        return Payment(
            order=order,
            status=plan.status if ends_now else Status.PENDING,
            reason=plan.reason if ends_now else None,
            financial_transaction_id=financial_id,
            visible_at=plan.visible_at,
            due_at=None if ends_now else plan.due_at,
        )

    def is_known(self, reference_id: str) -> bool:
        """Whether the reference was used before, in any product (1.11: assume global)."""
        found = self._database.row(
            "SELECT 1 FROM creations WHERE generation = ? AND reference_id = ?",
            (self.generation, reference_id),
        )
        return found is not None

    def find(self, reference_id: str) -> Payment | None:
        """Find the payment with this reference."""
        row = self._database.row(_SELECT_PAYMENT, (self.generation, reference_id))
        if row is None:
            return None
        return Payment(
            order=Order(*row[: len(_ORDER_FIELDS)]),
            status=Status(row["status"] or Status.PENDING),
            reason=row["reason"],
            financial_transaction_id=row["financial_transaction_id"],
            visible_at=row["visible_at"],
            due_at=row["due_at"],
        )

    def decide(self, reference_id: str, status: Status, reason: str | None, now: float) -> bool:
        """End a waiting payment; False when it does not wait (any more)."""
        with self._database.transaction():
            return self._decide(reference_id, status, reason, now)

    def settle_due(self, now: float) -> list[str]:
        """End the payments that are due, a batch at most; returns their references."""
        due = self._database.rows(
            "SELECT reference_id, status, reason FROM waiting"
            " WHERE due_at <= ? AND generation = ? ORDER BY due_at LIMIT ?",
            (now, self.generation, _DUE_BATCH),
        )
        if not due:
            return []
        with self._database.transaction():
            return [
                row["reference_id"]
                for row in due
                if self._decide(row["reference_id"], Status(row["status"]), row["reason"], now)
            ]

    def balance_minor(self, api_user: str, product: str, currency: str) -> int:
        """Sum the money that this account's payments of one product moved, in minor units."""
        row = self._database.row(
            "SELECT coalesce(sum(amount_minor), 0) AS total FROM movements"
            " WHERE generation = ? AND api_user = ? AND product = ? AND currency = ?",
            (self.generation, api_user, product, currency),
        )
        return int(row["total"]) if row else 0

    def notify_delivery(self, reference_id: str, message: str, now: float) -> bool:
        """Store a delivery notification; False when there was one already."""
        try:
            self._database.insert(
                "INSERT INTO notifications (generation, at, reference_id, message)"
                " VALUES (?, ?, ?, ?)",
                (self.generation, now, reference_id, message),
            )
        except sqlite3.IntegrityError:
            return False
        return True

    def _decide(self, reference_id: str, status: Status, reason: str | None, now: float) -> bool:
        # Only the call that deletes the row from `waiting` ends the payment, so it never ends twice.
        taken = self._database.change(
            "DELETE FROM waiting WHERE generation = ? AND reference_id = ?",
            (self.generation, reference_id),
        )
        payment = self.find(reference_id) if taken else None
        if payment is None:
            return False
        self._end(payment.order, status, reason, now)
        return True

    def _end(self, order: Order, status: Status, reason: str | None, now: float) -> str | None:
        """Write the outcome and, for a success, the movement. In the caller's transaction."""
        financial_id = self._move(order, now) if status is Status.SUCCESSFUL else None
        self._database.insert(
            "INSERT INTO outcomes"
            " (generation, at, reference_id, status, reason, financial_transaction_id)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (self.generation, now, order.reference_id, status, reason, financial_id),
        )
        return financial_id

    def _move(self, order: Order, now: float) -> str:
        row = self._database.row("SELECT coalesce(max(id), 0) AS id FROM movements")
        financial_id = str(_FIRST_FINANCIAL_TRANSACTION + (row["id"] if row else 0) + 1)
        self._database.insert(
            "INSERT INTO movements (generation, at, reference_id, product, operation, api_user,"
            " amount, amount_minor, currency, party, external_id, financial_transaction_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.generation,
                now,
                order.reference_id,
                order.product,
                order.operation,
                order.api_user,
                order.amount,
                order.amount_minor,
                order.currency,
                order.party,
                order.external_id,
                financial_id,
            ),
        )
        return financial_id
