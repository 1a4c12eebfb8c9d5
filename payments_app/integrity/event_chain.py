"""Verifies the event chains: each event is chained to the one before it, the first to its payment,
and all to the checkpoints in the audit trail. Compares the payment and the provider's answer that
ended it with what its events cover. Stops at the first bad row.

An event gets its hash when it is published: for some tenths of a second before that it has none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import text
from sqlalchemy.orm import Session

from payments_app.audit.chain import Fault, Problem, TamperDetected, chain_hash
from payments_app.audit.model import SEALED, UNCOVERED
from payments_app.audit.stream import stream
from payments_app.payments.event_hashes import (
    COVERED,
    EVENT_FIELDS,
    EVENTS,
    EVIDENCE,
    EXCHANGES,
    PAYMENT_FIELDS,
    PAYMENTS,
    differences,
)
from payments_app.payments.states import Status
from payments_app.providers.contract import Verdict
from payments_app.webhooks.contents import CONTENT_FIELDS, content_hash

# PAYMENT_FIELDS are read with a payment's first event only.
_STORIES: Final = f"""
SELECT encode(e.previous_hash, 'hex'), {EVENT_FIELDS}, encode(e.hash, 'hex') AS hash,
       p.sequence AS told, p.status AS status_now, e.mode = p.mode AS is_in_its_mode,
       CASE WHEN e.sequence = 1 THEN ARRAY[{PAYMENT_FIELDS}] END AS asked,
       ARRAY[{CONTENT_FIELDS}] AS contents, encode(e.content_hash, 'hex') AS content_hash,
       e.covers, {COVERED}, p.stage AS stage_now, p.payer_masked, p.external_id,
       p.evidence_id::text AS evidence_id, x.payment_id::text AS evidence_of, x.verdict
FROM events e LEFT JOIN payments p ON p.id = e.payment_id {EVIDENCE}
WHERE e.payment_id IS NOT NULL {{where}} ORDER BY e.payment_id, e.sequence
"""  # noqa: S608  no value of anyone's
_WITHOUT_STORY: Final = """
SELECT p.tenant_id::text, p.id::text FROM payments p
WHERE NOT EXISTS (SELECT FROM events e WHERE e.payment_id = p.id) {where} LIMIT 1
"""
# The previous release may have written a checkpoint over an event before it was published.
_EVENT_HASHES: Final = (
    "SELECT id, tenant_id::text AS tenant, coalesce(hash, previous_release_hash(e)) AS hash,"
    " coalesce(content_hash, '') AS content_hash"
    " FROM events e WHERE payment_id IS NOT NULL {where} ORDER BY id"
)
_SEALS: Final = f"""
SELECT id, tenant_id::text AS tenant, position, detail FROM audit_entries
WHERE action = '{SEALED}' {{where}} ORDER BY id
"""  # noqa: S608  a constant
# Each tenant's last one: the content hashes under its checkpoints up to there no longer exist.
_UNCOVERED: Final = f"""
SELECT DISTINCT ON (tenant_id) tenant_id::text AS tenant, id, detail FROM audit_entries
WHERE action = '{UNCOVERED}' {{where}} ORDER BY tenant_id, id DESC
"""  # noqa: S608  a constant
_HASHED: Final = 13
# The index of the event's feed data in CONTENT_FIELDS.
_WORDS: Final = 3
# The verdicts that may end a payment, by its status.
_ENDING: Final = {
    Status.SUCCESSFUL: {Verdict.SUCCESSFUL},
    Status.FAILED: {Verdict.FAILED, Verdict.REFUSED},
}


class Place(NamedTuple):
    """The position of a verification: the payment, and the last event read, with its hash."""

    payment_id: str
    tenant_id: str
    sequence: int
    # None: it isn't published yet.
    hash: str | None
    status: str
    told: int
    status_now: str
    stage: str
    stage_now: str
    # The event's feed data (JSON in hexadecimal), if that is covered. Then what the row says now.
    words: str | None
    payer_now: str | None
    external_id_now: str | None

    @property
    def is_as_it_ended(self) -> bool:
        """Whether the row agrees with the last event. An open payment's stage may be later."""
        is_open = self.status == Status.PENDING
        return self.status == self.status_now and (is_open or self.stage == self.stage_now)


@dataclass(slots=True)
class ChainVerifier:
    """Verifies the chains, payment by payment. `events`: how many in each tenant."""

    events: Counter[str] = field(default_factory=Counter)
    _at: Place | None = None

    def through(self, rows: Iterable[Any], on_row: Callable[[], None]) -> None:
        """Read all rows. Raises TamperDetected at the first row that isn't as it was written."""
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
        # An event that isn't published yet has no hash; then none after it has one either.
        if row.hash is not None and chain_hash(EVENTS, *row[:_HASHED]) != row.hash:
            raise _bent(row, Problem.ALTERED, "its hash is not that of what it holds")
        if row.told is None:
            told = "its events are there, and it is not"
            raise TamperDetected(Fault(tenant, PAYMENTS, f"id {payment}", Problem.MISSING, told))
        if row.hash is not None:
            self._check_link(row)
        if not row.is_in_its_mode:
            raise _bent(row, Problem.ALTERED, "its mode is not its payment's")
        _check_contents(row)
        _check_evidence(row)
        self._at = _place(row, due)
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
        if at.sequence > at.told or not at.is_as_it_ended:
            told = f"its last event is {at.sequence}, {at.status}: the row says something else"
            named = f"id {at.payment_id}"
            raise TamperDetected(Fault(at.tenant_id, PAYMENTS, named, Problem.ALTERED, told))
        if wrong := list(_unlike_what_was_told(at)):
            told = f"not what its last event told its tenant: {', '.join(wrong)}"
            named = f"id {at.payment_id}"
            raise TamperDetected(Fault(at.tenant_id, PAYMENTS, named, Problem.ALTERED, told))


def _place(row: Any, sequence: int) -> Place:
    return Place(
        payment_id=row[2],
        tenant_id=row[1],
        sequence=sequence,
        hash=row.hash,
        status=row.status,
        told=row.told,
        status_now=row.status_now,
        stage=row.stage,
        stage_now=row.stage_now,
        words=None if row.content_hash is None else row.contents[_WORDS],
        payer_now=row.payer_masked,
        external_id_now=row.external_id,
    )


def _check_contents(row: Any) -> None:
    """Check the event's contents, and its payment against them. Old releases' have no such hash."""
    if row.content_hash is None:
        if row.covers is not None:
            raise _bent(row, Problem.ALTERED, "the hash of what it says was taken from it")
        return
    if content_hash(row.hash, *row.contents) != row.content_hash:
        raise _bent(row, Problem.ALTERED, "what it says is not what its hash was made of")
    wrong = list(differences(row.covers, row))
    if wrong == ["evidence"]:
        told = f"not the provider's answer with which payment {row[2]} ended"
        raise _of_evidence(row, Problem.ALTERED, told)
    if wrong:
        told = f"not what its event {row[3]} covers: {', '.join(wrong)}"
        raise TamperDetected(Fault(row[1], PAYMENTS, f"id {row[2]}", Problem.ALTERED, told))


def _check_evidence(row: Any) -> None:
    """Check that a final payment's evidence exists, is about it, and says the same end.

    Not needed where an event covers the evidence: its hash was compared then.
    """
    if row.content_hash is not None or row.status == Status.PENDING:
        return
    if row.status_now != row.status:
        return
    if row.evidence_of is None:
        told = f"payment {row[2]} ended with it, and it is not there"
        raise _of_evidence(row, Problem.MISSING, told)
    if row.evidence_of != row[2] or row.verdict not in _ENDING[Status(row.status)]:
        raise _of_evidence(row, Problem.ALTERED, f"it does not say how payment {row[2]} ended")


def _of_evidence(row: Any, problem: Problem, told: str) -> TamperDetected:
    return TamperDetected(Fault(row[1], EXCHANGES, f"id {row.evidence_id}", problem, told))


def _unlike_what_was_told(at: Place) -> Iterator[str]:
    """The columns that differ from the feed data. A payer may be erased after the end."""
    if at.words is None:
        return
    words = _read(at.words)
    if at.payer_now not in (None, words.get("payer")):
        yield "payer_masked"
    if at.external_id_now != words.get("external_id"):
        yield "external_id"


def _read(words: str) -> dict[str, Any]:
    """Somebody who recomputed the hashes may have written anything here."""
    try:
        found = orjson.loads(bytes.fromhex(words))
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def verify_event_chains(
    session: Session, tenant_id: UUID | None, *, on_row: Callable[[], None]
) -> Counter[str]:
    """Verify each payment's events in order; how many per tenant. Raises TamperDetected."""
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


# --- checkpoints --------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """A tenant's events since its last checkpoint."""

    events: int = 0
    first: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    contents: Any = field(default_factory=hashlib.sha256)
    covered: int = 0

    def add(self, event: Any) -> None:
        """Add the next event."""
        self.first = self.first or event.id
        self.events += 1
        self.digest.update(event.hash)
        self.contents.update(event.content_hash)
        self.covered += bool(event.content_hash)


def verify_checkpoints(
    session: Session, tenant_id: UUID | None, *, on_row: Callable[[], None]
) -> int:
    """Verify each checkpoint against its events; how many checkpoints. Raises TamperDetected."""
    where, values = _of(tenant_id, "AND tenant_id = :tenant")
    found = session.execute(text(_UNCOVERED.format(where=where)), values)
    uncovered = {entry.tenant: entry for entry in found}
    # Read the checkpoints first: then every event that they cover is there.
    with (
        stream(session, _SEALS.format(where=where), **values) as seals,
        stream(session, _EVENT_HASHES.format(where=where), **values) as events,
    ):
        return _match(seals, events, uncovered, on_row)


def _match(
    seals: Iterator[Any],
    events: Iterator[Any],
    uncovered: Mapping[str, Any],
    on_row: Callable[[], None],
) -> int:
    """Both are in id order, so only one tally per tenant is kept."""
    tallies: dict[str, Tally] = {}
    event, seen = next(events, None), 0
    for seal in seals:
        through = _number(seal.detail, "through")
        while event is not None and event.id <= through:
            tallies.setdefault(event.tenant, Tally()).add(event)
            event = next(events, None)
            on_row()
        _compare(seal, tallies.pop(seal.tenant, Tally()), uncovered.get(seal.tenant))
        seen += 1
    for tenant, tally in tallies.items():
        told = "events up to there were sealed already, and this one is in no seal"
        raise TamperDetected(Fault(tenant, EVENTS, f"id {tally.first}", Problem.INSERTED, told))
    return seen


def _compare(seal: Any, found: Tally, uncovered: Any) -> None:
    sealed = _number(seal.detail, "events")
    # An entry without a digest is a forged checkpoint. Those of earlier releases have one digest.
    detail = seal.detail if isinstance(seal.detail, dict) else {}
    contents = found.contents.hexdigest()
    is_right = detail.get("digest") == found.digest.hexdigest()
    if is_right and (
        detail.get("contents", contents) == contents or _is_uncovered(seal, found, uncovered)
    ):
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


def _is_uncovered(seal: Any, found: Tally, uncovered: Any) -> bool:
    """Whether a later entry says that a migration removed all content hashes, and none is left."""
    return (
        uncovered is not None
        and seal.id < uncovered.id
        and _number(seal.detail, "through") <= _number(uncovered.detail, "through")
        and found.covered == 0
    )


def _number(detail: object, name: str) -> int:
    """A checkpoint's number; 0 if it is missing, as in a forged entry."""
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
