"""What each client does, step by step. Pure: drawn from a random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final
from uuid import UUID

# The simulator's special payers: those that fail, one that pays late, one that never answers. Any
# other number pays.
FAILING_PAYERS: Final = tuple(f"467331234{ending}" for ending in (51, 52, 55, 57, 61, 62, 63))
LATE_PAYER: Final = "46733123454"
SILENT_PAYER: Final = "46733123453"
# MTN's sandbox accepts one currency.
CURRENCY: Final = "EUR"

# pay: a new key until there is an answer. twins: the same from two threads at once.
# replay: an earlier key again. mutate: an earlier key with another amount. borrow: a new payment
# under a key of another tenant. peek: read another tenant's payment. look: read an own payment
# again. page: list the newest own payments.
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
# A client that waits for less time than an answer takes: its outcome is unknown, and it retries.
_IMPATIENT_PART: Final = 0.15
_IMPATIENT_S: Final = (0.004, 0.08)
_PATIENT_S: Final = (3.0, 8.0)
_PAUSE_S: Final = (0.05, 0.9)
# More steps than any client can do: it stops when the time is over, not at the script's end.
_STEPS_PER_S: Final = 6


@dataclass(frozen=True, slots=True)
class Order:
    """What a client requests."""

    amount: int
    payer: str
    external_id: str | None

    def body(self, key: str) -> dict[str, object]:
        """The request body. The metadata has the key, so that each payment can be matched to it."""
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
    """One step. `pick`, from 0 to 1, chooses among the payments that exist by then."""

    kind: str
    key: str
    order: Order
    pause_s: float
    patience_s: float
    pick: float


@dataclass(frozen=True, slots=True)
class Script:
    """All steps that one client may do."""

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
    """A number as the gateway shows it: masked but for its last three digits."""
    return "*" * (len(payer) - 3) + payer[-3:]


def _payer(draw: Random) -> str:
    kind = draw.choices(("pays", "fails", "late", "silent"), weights=(78, 14, 6, 2))[0]
    special = {"fails": draw.choice(FAILING_PAYERS), "late": LATE_PAYER, "silent": SILENT_PAYER}
    return special.get(kind, f"25677{draw.randint(2_000_000, 2_999_999)}")
