"""The evidence sorted by key: everything that concerns one idempotency key of one tenant."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

from chaos.evidence import (
    Creation,
    EventRow,
    Evidence,
    ExchangeRow,
    Movement,
    PaymentRow,
    Shown,
    WireRequest,
)
from chaos.history import Line

T = TypeVar("T")
K = TypeVar("K")

KeyName = tuple[str, str]


class Verdict(StrEnum):
    """The result for a key; the worst first."""

    DUPLICATE = "DUPLICATE"
    LOST = "LOST"
    LIE = "LIE"
    STUCK = "STUCK"
    OK = "OK"


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule. `key` is None when it is not about a single key."""

    verdict: Verdict
    rule: str
    text: str
    key: KeyName | None = None


@dataclass(frozen=True)
class Case:
    """One key with everything that was recorded about it."""

    key: KeyName
    taken_at: float
    lines: Sequence[Line] = ()
    payments: Sequence[PaymentRow] = ()
    creations: Sequence[Creation] = ()
    movements: Sequence[Movement] = ()
    exchanges: Sequence[ExchangeRow] = ()
    events: Sequence[EventRow] = ()
    wire: Sequence[WireRequest] = ()
    shown: Mapping[str, Shown] = field(default_factory=dict)

    @cached_property
    def order(self) -> Mapping[str, Any]:
        """The request body sent under this key, from the first line that sent it."""
        for line in self.lines:
            if line.act == "pay" and line.outcome == "asked":
                return read_body(line)
        return {}

    @cached_property
    def accepted(self) -> Sequence[Line]:
        """The 2xx answers to the key's requests."""
        return [line for line in self.lines if line.act == "pay" and line.outcome == "ok"]

    @cached_property
    def told_ids(self) -> Sequence[str]:
        """The payment ids that clients received, each once."""
        return list(dict.fromkeys(told_id(line) for line in self.accepted))

    @property
    def payment(self) -> PaymentRow | None:
        """The payment, if there is one."""
        return self.payments[0] if self.payments else None

    @property
    def creation(self) -> Creation | None:
        """The provider's payment, if there is one."""
        return self.creations[0] if self.creations else None


def sort_by_key(evidence: Evidence) -> list[Case]:
    """A case for each key that a client used or that a payment carries."""
    owner = owners(evidence)
    payments = _grouped(evidence.payments, lambda row: (row.tenant, row.chaos_key))
    asked = _grouped(evidence.lines, lambda line: (line.tenant, line.key))
    looks = _grouped(evidence.lines, lambda line: (line.tenant, line.payment_id))
    creations = _grouped(evidence.creations, lambda row: owner(row.reference, row.payment_id))
    movements = _grouped(evidence.movements, lambda row: owner(row.reference, row.payment_id))
    wire = _grouped(evidence.wire, lambda row: owner(row.reference, None))
    exchanges = _grouped(evidence.exchanges, lambda row: row.payment_id)
    events = _grouped(evidence.events, lambda row: row.payment_id)
    found = []
    for tenant, key in sorted((name for name in {*asked, *payments} if name[1]), key=str):
        rows = payments.get((tenant, key), [])
        ids = [row.id for row in rows]
        lines = [*asked.get((tenant, key), []), *_of(looks, [(tenant, one) for one in ids])]
        told = [told_id(line) for line in lines if line.outcome == "ok"]
        found.append(
            Case(
                key=(tenant, str(key)),
                taken_at=evidence.taken_at,
                lines=sorted(lines, key=lambda line: line.at),
                payments=rows,
                creations=_of(creations, ids),
                movements=_of(movements, ids),
                exchanges=_of(exchanges, ids),
                events=_of(events, ids),
                wire=_of(wire, ids),
                shown={one: evidence.shown[one] for one in [*ids, *told] if one in evidence.shown},
            )
        )
    return found


def owners(evidence: Evidence) -> Callable[[str | None, str | None], str | None]:
    """Maps a provider's row to our payment: by reference, else by the payment id that we sent."""
    by_reference = {row.reference: row.id for row in evidence.payments}
    ids = {row.id for row in evidence.payments}

    def owner(reference: str | None, payment_id: str | None) -> str | None:
        found = by_reference.get(reference or "")
        return found or (payment_id if payment_id in ids else None)

    return owner


def told_id(line: Line) -> str:
    """The payment id in a 2xx answer."""
    return str(read_body(line).get("id"))


def read_body(line: Line) -> dict[str, Any]:
    """A line's body as JSON; empty when it is not a JSON object."""
    try:
        found = json.loads(line.body or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _grouped(rows: Iterable[T], name: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = defaultdict(list)
    for row in rows:
        found[name(row)].append(row)
    return dict(found)


def _of(grouped: Mapping[K, list[T]], names: Iterable[K]) -> list[T]:
    return [row for name in names for row in grouped.get(name, [])]
