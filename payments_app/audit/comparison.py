"""Compares rows that may change with the audit trail: each must be exactly as its entries say.

Such a row is in no hash chain. But each change of it has an audit entry, and those are chained.
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

# One statement, so that a row and its entries are read at the same moment.
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
    """A value that no entry has: earlier releases recorded less."""


UNTOLD: Final = _Untold()
Detail = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """A row's audit entries, oldest first."""

    actions: Sequence[str]
    details: Sequence[Detail]

    def __iter__(self) -> Iterator[tuple[str, Detail]]:
        return zip(self.actions, self.details, strict=True)

    def of(self, *actions: str) -> list[Detail]:
        """The entries with one of these actions."""
        return [detail for action, detail in self if action in actions]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table, the actions of its rows' audit entries, and how a row differs from them.

    `rows`: the table, or a query in brackets, with the columns `id` and `tenant_id`. `differences`
    gives the names of what differs.
    """

    table: str
    rows: str
    subject: str
    actions: Sequence[str]
    differences: Callable[[Any, Told], Iterator[str]]

    def statement(self, where: str) -> str:
        """The query for each row with its entries; NULLs if there is only one of the two."""
        actions = ", ".join(f"'{action}'" for action in self.actions)
        return _ROWS.format(rows=self.rows, subject=self.subject, actions=actions, where=where)


def verify_rows(
    session: Session,
    tenant_id: UUID | None,
    comparisons: Iterable[Comparison],
    *,
    on_row: Callable[[], None],
) -> None:
    """Compare all rows of these tables. Raises TamperDetected at the first that differs."""
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
    # An attacker who can add entries can write anything into them.
    details = [one if isinstance(one, dict) else {} for one in row.details]
    wrong = list(comparison.differences(row, Told(row.actions, details)))
    if wrong:
        told = f"not what its entries in the audit trail say: {', '.join(wrong)}"
        raise_fault(Problem.ALTERED, told)


def unequal(stored: Mapping[str, object], told: Mapping[str, object]) -> Iterator[str]:
    """The names in `told` for which `stored` has another value. UNTOLD never differs."""
    for name, value in told.items():
        if value is not UNTOLD and stored[name] != value:
            yield name


def fingerprint(stored: bytes | str) -> str:
    """A digest of a stored hash or ciphertext: in an entry it shows only whether that changed."""
    text = stored.encode() if isinstance(stored, str) else stored
    return hashlib.sha256(text).hexdigest()[:32]


def fingerprint_or_none(stored: bytes | str | None) -> str | None:
    """The fingerprint, or None for None."""
    return None if stored is None else fingerprint(stored)


def words_of(at: datetime | None) -> str | None:
    """An instant in the form of an entry: ISO 8601."""
    return None if at is None else at.isoformat()


def instant(words: object) -> datetime | _Untold | None:
    """The instant in an entry. A malformed one, in a forged entry, becomes one that no row has."""
    if words is None:
        return None
    if isinstance(words, _Untold):
        return words
    try:
        return datetime.fromisoformat(str(words))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
