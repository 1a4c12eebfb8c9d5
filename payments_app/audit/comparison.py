"""Rows that may change against the audit trail: each is what its entries say, and no more.

No hash of such a row is chained. But each change of it has its entry, and the entries are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from payments_app.audit.chain import Fault, Problem, TamperDetected
from payments_app.audit.stream import stream

# In one statement, so that a row and its entries are of one moment.
_ROWS: Final = """
WITH told AS (
    SELECT tenant_id, subject_id, array_agg(action ORDER BY position) AS actions,
           array_agg(detail ORDER BY position) AS details
    FROM audit_entries WHERE subject_type = '{subject}' AND action IN ({actions}) {where}
    GROUP BY tenant_id, subject_id
), kept AS (SELECT * FROM {rows} AS r WHERE true {where})
SELECT coalesce(k.tenant_id, t.tenant_id)::text AS tenant, coalesce(k.id::text, t.subject_id) AS named,
       t.actions, t.details, k.*
FROM kept k FULL JOIN told t ON t.tenant_id = k.tenant_id AND t.subject_id = k.id::text
ORDER BY 1, 2
"""


class _Untold:
    """What no entry tells: earlier releases told less."""


UNTOLD: Final = _Untold()
Detail = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What a row's entries say of it, oldest first."""

    actions: Sequence[str]
    details: Sequence[Detail]

    def __iter__(self) -> Iterator[tuple[str, Detail]]:
        return zip(self.actions, self.details, strict=True)

    def of(self, *actions: str) -> list[Detail]:
        """The entries with one of these actions."""
        return [detail for action, detail in self if action in actions]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table, the actions of the entries that tell of its rows, and how a row differs from them.

    `rows`: the table, or a query in brackets, with the columns `id` and `tenant_id`. `differences`
    gives the names of what differs.
    """

    table: str
    rows: str
    subject: str
    actions: Sequence[str]
    differences: Callable[[Any, Told], Iterator[str]]

    def statement(self, where: str) -> str:
        """Each row beside its entries; nothing on one side where there is only the other."""
        actions = ", ".join(f"'{action}'" for action in self.actions)
        return _ROWS.format(rows=self.rows, subject=self.subject, actions=actions, where=where)


def verify_rows(
    session: Session,
    tenant_id: UUID | None,
    comparisons: Iterable[Comparison],
    *,
    on_row: Callable[[], None],
) -> None:
    """Walk all rows of these tables. Raises TamperDetected at the first that isn't as it is told."""
    where = "" if tenant_id is None else "AND tenant_id = :tenant"
    values = {} if tenant_id is None else {"tenant": tenant_id}
    for comparison in comparisons:
        with stream(session, comparison.statement(where), **values) as rows:
            for row in rows:
                _compare(comparison, row)
                on_row()


def _compare(comparison: Comparison, row: Any) -> None:
    def raise_fault(problem: Problem, told: str) -> None:
        raise TamperDetected(Fault(row.tenant, comparison.table, f"id {row.named}", problem, told))

    if row.id is None:
        raise_fault(Problem.MISSING, "the audit trail has it, and it is not there")
    if row.actions is None:
        raise_fault(Problem.INSERTED, "no entry of its tenant's audit trail tells of it")
    # Whoever may add entries may write anything into them.
    details = [one if isinstance(one, dict) else {} for one in row.details]
    wrong = list(comparison.differences(row, Told(row.actions, details)))
    if wrong:
        told = f"not what its entries in the audit trail say: {', '.join(wrong)}"
        raise_fault(Problem.ALTERED, told)


def unequal(stored: Mapping[str, object], told: Mapping[str, object]) -> Iterator[str]:
    """The names in `told` of which `stored` has another value; what is UNTOLD differs from nothing."""
    for name, value in told.items():
        if value is not UNTOLD and stored[name] != value:
            yield name


def fingerprint(stored: bytes | str) -> str:
    """What an entry says of a stored hash or ciphertext: whether it is still the same, and no more."""
    text = stored.encode() if isinstance(stored, str) else stored
    return hashlib.sha256(text).hexdigest()[:32]


def fingerprint_or_none(stored: bytes | str | None) -> str | None:
    """The same, of what may be missing."""
    return None if stored is None else fingerprint(stored)


def words_of(at: datetime | None) -> str | None:
    """An instant as an entry has it."""
    return None if at is None else at.isoformat()


def instant(words: object) -> datetime | _Untold | None:
    """The instant that an entry has. What is no instant, in a forged entry, equals none."""
    if words is None:
        return None
    if isinstance(words, _Untold):
        return words
    try:
        return datetime.fromisoformat(str(words))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
