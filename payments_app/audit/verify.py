"""Verifies the tenants' chains of audit entries, and stops at the first bad row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from payments_app.audit.chain import (
    BEGINNING,
    MICROSECONDS,
    Fault,
    Problem,
    TamperDetected,
    chain_hash,
)
from payments_app.audit.stream import stream

TABLE: Final = "audit_entries"
# All columns as text, as they are hashed: so no value that a superuser wrote can make reading fail.
_ENTRIES: Final = f"""
SELECT encode(previous_hash, 'hex'), tenant_id::text, position::text, id::text, actor, action,
       subject_type, subject_id, source, request_id, detail::text,
       {MICROSECONDS.format("created_at")}, encode(hash, 'hex') AS hash
FROM audit_entries e {{where}} ORDER BY e.tenant_id, e.position
"""  # noqa: S608  no value of anyone's
_TENANTS: Final = "SELECT id::text FROM tenants {where} ORDER BY id"
OF_TENANT: Final = "WHERE tenant_id = :tenant"
Entry = Sequence[str | None]
_PREVIOUS, _TENANT, _POSITION, _ID, _HASH = 0, 1, 2, 3, -1


@dataclass(slots=True)
class Head:
    """The end of a tenant's chain so far: the number of entries, and the last one's hash."""

    entries: int = 0
    hash: str = BEGINNING


@dataclass(slots=True)
class EntryChainVerifier:
    """One pass over all chains. `sought`: hashes kept elsewhere that are not found yet."""

    sought: set[str] = field(default_factory=set)
    heads: dict[str, Head] = field(default_factory=dict)

    def through(self, entries: Iterable[Entry], on_row: Callable[[], None]) -> None:
        """Verify all entries. Raises TamperDetected at the first that is not as it was written."""
        for entry in entries:
            self._step(entry)
            on_row()

    def _step(self, entry: Entry) -> None:
        head = self.heads.setdefault(str(entry[_TENANT]), Head())
        position, due = int(entry[_POSITION] or 0), head.entries + 1
        if position > due:
            raise _bent(entry, Problem.MISSING, "it was removed, or moved", position=due)
        if position < due:
            raise _bent(entry, Problem.INSERTED, "its position is another entry's")
        if chain_hash(TABLE, *entry[:_HASH]) != entry[_HASH]:
            raise _bent(entry, Problem.ALTERED, "its hash is not that of what it holds")
        if entry[_PREVIOUS] != head.hash:
            told = "the entry before it was replaced, with a hash that fits, or this one was put in"
            raise _bent(entry, Problem.BROKEN_LINK, told)
        head.entries, head.hash = position, entry[_HASH] or ""
        self.sought.discard(head.hash)


def verify_entries(
    session: Session,
    tenant_id: UUID | None,
    *,
    sought: Iterable[str] = (),
    on_row: Callable[[], None],
) -> dict[str, Head]:
    """Verify each tenant's chain from its first entry to its last; returns the heads by tenant.

    Raises TamperDetected for the first bad entry, for a tenant without a first entry, and for a
    hash of `sought` that is in no chain.
    """
    walk = EntryChainVerifier(set(sought))
    # Read the tenants first: else one that is created meanwhile would seem to have no entry.
    where = "" if tenant_id is None else "WHERE id = :tenant"
    tenants = session.scalars(text(_TENANTS.format(where=where)), _value(tenant_id)).all()
    where = "" if tenant_id is None else OF_TENANT
    with stream(session, _ENTRIES.format(where=where), **_value(tenant_id)) as entries:
        walk.through(entries, on_row)
    for tenant in tenants:
        if tenant not in walk.heads:
            told = "a tenant begins with an entry, and this one has none"
            raise TamperDetected(Fault(tenant, TABLE, "position 1", Problem.MISSING, told))
    for kept in sorted(walk.sought):
        told = "no chain has this hash any more: what was there was removed or written anew"
        raise TamperDetected(
            Fault(str(tenant_id or ""), TABLE, f"hash {kept}", Problem.MISSING, told)
        )
    return walk.heads


def _value(tenant_id: UUID | None) -> dict[str, UUID]:
    return {} if tenant_id is None else {"tenant": tenant_id}


def _bent(
    entry: Entry, problem: Problem, told: str, *, position: int | None = None
) -> TamperDetected:
    row = f"position {entry[_POSITION]} (id {entry[_ID]})"
    if position is not None:
        row = f"position {position}"
    return TamperDetected(Fault(str(entry[_TENANT]), TABLE, row, problem, told))
