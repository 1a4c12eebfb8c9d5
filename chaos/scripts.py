"""What each client does, step by step. Pure: drawn from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final
from uuid import UUID

# The simulator's special numbers: those that fail, the one that pays late, the one that never
# answers. Any other number pays.
FAILING_PAYERS: Final = tuple(f"467331234{ending}" for ending in (51, 52, 55, 57, 61, 62, 63))
LATE_PAYER: Final = "46733123454"
SILENT_PAYER: Final = "46733123453"
# MTN's sandbox knows one currency.
CURRENCY: Final = "EUR"

# pay: a new key until there is an answer. twins: the same from two threads at once.
# replay: an earlier key again. mutate: an earlier key with another amount. borrow: a new payment
# under a key of another tenant. peek: another tenant's payment. look: one's own, again.
# page: one's newest payments.
_WEIGHTS: Final = {
    "pay": 58,
    "twins": 10,
    "replay": 10,
    "mutate": 7,
    "borrow": 3,
    "peek": 4,
    "look": 5,
    "page": 3,
}
# A client that waits less than an answer takes: for it the outcome is unknown, and it asks again.
_IMPATIENT_PART: Final = 0.15
_IMPATIENT_S: Final = (0.004, 0.08)
_PATIENT_S: Final = (3.0, 8.0)
_PAUSE_S: Final = (0.05, 0.9)
# More than any client gets done: it stops when the time is over, not when the script ends.
_STEPS_PER_S: Final = 6


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    amount: int
    payer: str
    external_id: str | None

    def body(self, key: str) -> dict[str, object]:
        """The request. The metadata ties each payment to its key, whatever else happens."""
        named = {} if self.external_id is None else {"external_id": self.external_id}
        return {
            "amount": self.amount,
            "currency": CURRENCY,
            "payer": self.payer,
            "metadata": {"key": key},
            **named,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. `pick` chooses, from 0 to 1, among what there is by then."""

    kind: str
    key: str
    order: Order
    pause_s: float
    patience_s: float
    pick: float


@dataclass(frozen=True, slots=True)
class Script:
    """All that one client may do."""

    client: str
    tenant: str
    steps: tuple[Step, ...]


def write_scripts(
    draw: Random, *, tenants: Sequence[str], clients_per_tenant: int, seconds: float
) -> tuple[Script, ...]:
    """A script for each client."""
    count = max(10, round(seconds * _STEPS_PER_S))
    return tuple(
        Script(
            client=f"{tenant}-{number}",
            tenant=tenant,
            steps=tuple(_step(draw) for _ in range(count)),
        )
        for tenant in tenants
        for number in range(1, clients_per_tenant + 1)
    )


def _step(draw: Random) -> Step:
    key = str(UUID(int=draw.getrandbits(128), version=4))
    patience = _IMPATIENT_S if draw.random() < _IMPATIENT_PART else _PATIENT_S
    return Step(
        kind=draw.choices(tuple(_WEIGHTS), weights=tuple(_WEIGHTS.values()))[0],
        key=key,
        order=_order(draw, key),
        pause_s=round(draw.uniform(*_PAUSE_S), 3),
        patience_s=round(draw.uniform(*patience), 4),
        pick=draw.random(),
    )


def _order(draw: Random, key: str) -> Order:
    return Order(
        amount=draw.randint(100, 50_000),
        payer=_payer(draw),
        external_id=f"order-{key[:8]}" if draw.random() < 0.5 else None,  # noqa: PLR2004
    )


def masked(payer: str) -> str:
    """As the gateway writes a number where it may be read: its last three digits."""
    return "*" * (len(payer) - 3) + payer[-3:]


def _payer(draw: Random) -> str:
    kind = draw.choices(("pays", "fails", "late", "silent"), weights=(78, 14, 6, 2))[0]
    special = {"fails": draw.choice(FAILING_PAYERS), "late": LATE_PAYER, "silent": SILENT_PAYER}
    return special.get(kind, f"25677{draw.randint(2_000_000, 2_999_999)}")
