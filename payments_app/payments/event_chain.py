"""Walks the payments' histories: each event chained to the one before it, the first to its payment,
and all of them to the seals in the audit trail. Stops at the first bad row.

An event gets its hash when it is published: until then, for some tenths of a second, it has none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from payments_app.audit.chain import MICROSECONDS, Fault, Problem, TamperDetected, chain_hash
from payments_app.audit.model import SEALED
from payments_app.audit.stream import stream

# What stands before their fields in a hash, and what they are called in the record.
EVENTS: Final = "payment_events"
PAYMENTS: Final = "payments"
# Everything as text, as it is hashed: of an event `e`, behind the hash before it, and of a payment `p`.
EVENT_FIELDS: Final = f"""
    e.tenant_id::text, e.payment_id::text, e.sequence::text, e.id::text, e.type, e.status, e.stage,
    e.actor, e.request_id, e.data::text, e.transaction_id::text, {MICROSECONDS.format("e.created_at")}
""".strip()
PAYMENT_FIELDS: Final = f"""
    p.id::text, p.tenant_id::text, p.mode, p.flow, p.provider, p.account_id::text, p.base_url,
    p.target_environment, p.merchant, p.reference::text, p.amount_minor::text, p.currency,
    {MICROSECONDS.format("p.created_at")}
""".strip()
# What the payment is for comes with its first event only.
_STORIES: Final = f"""
SELECT encode(e.previous_hash, 'hex'), {EVENT_FIELDS}, encode(e.hash, 'hex') AS hash,
       p.sequence AS told, p.status AS status_now, e.mode = p.mode AS is_in_its_mode,
       CASE WHEN e.sequence = 1 THEN ARRAY[{PAYMENT_FIELDS}] END AS asked
FROM events e LEFT JOIN payments p ON p.id = e.payment_id
WHERE e.payment_id IS NOT NULL {{where}} ORDER BY e.payment_id, e.sequence
"""  # noqa: S608  no value of anyone's
_WITHOUT_STORY: Final = """
SELECT p.tenant_id::text, p.id::text FROM payments p
WHERE NOT EXISTS (SELECT FROM events e WHERE e.payment_id = p.id) {where} LIMIT 1
"""
# The release before this one may have sealed an event that is published a moment later.
_EVENT_HASHES: Final = (
    "SELECT id, tenant_id::text AS tenant, coalesce(hash, previous_release_hash(e)) AS hash"
    " FROM events e WHERE payment_id IS NOT NULL {where} ORDER BY id"
)
_SEALS: Final = f"""
SELECT tenant_id::text AS tenant, position, detail FROM audit_entries
WHERE action = '{SEALED}' {{where}} ORDER BY id
"""  # noqa: S608  a constant
_HASHED: Final = 13


class Place(NamedTuple):
    """Where a walk is: in which payment, behind which event with which hash."""

    payment_id: str
    tenant_id: str
    sequence: int
    # None: it isn't published yet.
    hash: str | None
    status: str
    told: int
    status_now: str


@dataclass(slots=True)
class ChainVerifier:
    """One walk through the histories, payment after payment. `events`: how many in each tenant."""

    events: Counter[str] = field(default_factory=Counter)
    _at: Place | None = None

    def through(self, rows: Iterable[Any], on_row: Callable[[], None]) -> None:
        """Walk to the end. Raises TamperDetected at the first row that isn't as it was written."""
        for row in rows:
            self._step(row)
            on_row()
        self._end_payment()

    def _step(self, row: Any) -> None:
        _, tenant, payment, sequence, *_ = row
        if self._at is None or self._at.payment_id != payment:
            self._end_payment()
            self._at = None
        due = 1 if self._at is None else self._at.sequence + 1
        if int(sequence) > due:
            raise _bent(row, Problem.MISSING, "it was removed, or moved", sequence=due)
        if int(sequence) < due:
            raise _bent(row, Problem.INSERTED, "its number is another event's")
        # One that isn't published yet has none, and then nor has any after it.
        if row.hash is not None and chain_hash(EVENTS, *row[:_HASHED]) != row.hash:
            raise _bent(row, Problem.ALTERED, "its hash is not that of what it holds")
        if row.told is None:
            told = "its events are there, and it is not"
            raise TamperDetected(Fault(tenant, PAYMENTS, f"id {payment}", Problem.MISSING, told))
        if row.hash is not None:
            self._check_link(row)
        if not row.is_in_its_mode:
            raise _bent(row, Problem.ALTERED, "its mode is not its payment's")
        place = Place(payment, tenant, due, row.hash, row.status, row.told, row.status_now)
        self._at = place
        self.events[tenant] += 1

    def _check_link(self, row: Any) -> None:
        if self._at is not None and row[0] != self._at.hash:
            told = "the event before it was replaced, with a hash that fits, or this one was put in"
            raise _bent(row, Problem.BROKEN_LINK, told)
        if self._at is None and row[0] != chain_hash(PAYMENTS, *row.asked):
            told = "what it is for is not what its first event is linked to"
            raise TamperDetected(Fault(row[1], PAYMENTS, f"id {row[2]}", Problem.ALTERED, told))

    def _end_payment(self) -> None:
        if (at := self._at) is None:
            return
        row = f"payment {at.payment_id} sequence {at.sequence + 1}"
        if at.sequence < at.told:
            told = f"the payment counts {at.told} events"
            raise TamperDetected(Fault(at.tenant_id, EVENTS, row, Problem.MISSING, told))
        if at.sequence > at.told or at.status != at.status_now:
            told = f"its last event is {at.sequence}, {at.status}: the row says something else"
            named = f"id {at.payment_id}"
            raise TamperDetected(Fault(at.tenant_id, PAYMENTS, named, Problem.ALTERED, told))


def verify_event_chains(
    session: Session, tenant_id: UUID | None, *, on_row: Callable[[], None]
) -> Counter[str]:
    """Each payment's events from first to last; how many in each tenant. Raises TamperDetected."""
    walk = ChainVerifier()
    where, values = _of(tenant_id, "AND e.tenant_id = :tenant")
    with stream(session, _STORIES.format(where=where), **values) as rows:
        walk.through(rows, on_row)
    where, values = _of(tenant_id, "AND p.tenant_id = :tenant")
    bare = session.execute(text(_WITHOUT_STORY.format(where=where)), values).one_or_none()
    if bare is not None:
        named = f"payment {bare[1]} sequence 1"
        told = "the payment has no event at all"
        raise TamperDetected(Fault(bare[0], EVENTS, named, Problem.MISSING, told))
    return walk.events


# --- seals --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """A tenant's events since its last seal."""

    events: int = 0
    first: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, event: Any) -> None:
        """Count the next event."""
        self.first = self.first or event.id
        self.events += 1
        self.digest.update(event.hash)


def verify_checkpoints(
    session: Session, tenant_id: UUID | None, *, on_row: Callable[[], None]
) -> int:
    """Each seal against the events that it was made of; how many seals. Raises TamperDetected."""
    where, values = _of(tenant_id, "AND tenant_id = :tenant")
    # The seals first: an event that they speak of is then there.
    with (
        stream(session, _SEALS.format(where=where), **values) as seals,
        stream(session, _EVENT_HASHES.format(where=where), **values) as events,
    ):
        return _match(seals, events, on_row)


def _match(seals: Iterator[Any], events: Iterator[Any], on_row: Callable[[], None]) -> int:
    """Both in the order of ids, so that one tally for each tenant is all that is kept."""
    tallies: dict[str, Tally] = {}
    event, seen = next(events, None), 0
    for seal in seals:
        through = _number(seal.detail, "through")
        while event is not None and event.id <= through:
            tallies.setdefault(event.tenant, Tally()).add(event)
            event = next(events, None)
            on_row()
        _compare(seal, tallies.pop(seal.tenant, Tally()))
        seen += 1
    for tenant, tally in tallies.items():
        told = "events up to there were sealed already, and this one is in no seal"
        raise TamperDetected(Fault(tenant, EVENTS, f"id {tally.first}", Problem.INSERTED, told))
    return seen


def _compare(seal: Any, found: Tally) -> None:
    sealed = _number(seal.detail, "events")
    # A seal without a digest is an entry that only calls itself one.
    if isinstance(seal.detail, dict) and seal.detail.get("digest") == found.digest.hexdigest():
        return
    problem = Problem.ALTERED
    if found.events != sealed:
        problem = Problem.MISSING if found.events < sealed else Problem.INSERTED
    row = f"ids {_number(seal.detail, 'first')} to {_number(seal.detail, 'through')}"
    told = (
        f"entry {seal.position} of the audit trail sealed {sealed} events there, with another"
        f" digest; there are {found.events}"
    )
    raise TamperDetected(Fault(seal.tenant, EVENTS, row, problem, told))


def _number(detail: object, name: str) -> int:
    """A seal's number; 0 where there is none, as in an entry that only calls itself a seal."""
    value = detail.get(name) if isinstance(detail, dict) else None
    return value if isinstance(value, int) else 0


def _of(tenant_id: UUID | None, condition: str) -> tuple[str, dict[str, object]]:
    return ("", {}) if tenant_id is None else (condition, {"tenant": tenant_id})


def _bent(
    row: Sequence[Any], problem: Problem, told: str, *, sequence: int | None = None
) -> TamperDetected:
    named = f"payment {row[2]} sequence {row[3]} (id {row[4]})"
    if sequence is not None:
        named = f"payment {row[2]} sequence {sequence}"
    return TamperDetected(Fault(str(row[1]), EVENTS, named, problem, told))
