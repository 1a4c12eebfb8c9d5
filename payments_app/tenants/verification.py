"""API keys and provider accounts against the audit trail: each is what its entries say, and no more.

The rows may change, so no hash of theirs is chained. But each change has its entry, and the entries are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from payments_app.audit.chain import Fault, Problem, TamperDetected
from payments_app.audit.stream import stream
from payments_app.tenants.keys import fingerprint

KEYS: Final = "api_keys"
ACCOUNTS: Final = "provider_accounts"
# In one statement, so that a row and its entries are of one moment.
_ROWS: Final = """
WITH told AS (
    SELECT tenant_id, subject_id, array_agg(action ORDER BY position) AS actions,
           array_agg(detail ORDER BY position) AS details
    FROM audit_entries WHERE subject_type = '{subject}' AND action IN ({actions}) {{where}}
    GROUP BY tenant_id, subject_id
), kept AS (SELECT * FROM {table} WHERE true {{where}})
SELECT coalesce(k.tenant_id, t.tenant_id)::text AS tenant, coalesce(k.id::text, t.subject_id) AS named,
       t.actions, t.details, k.*
FROM kept k FULL JOIN told t ON t.tenant_id = k.tenant_id AND t.subject_id = k.id::text
ORDER BY 1, 2
"""
_KEYS: Final = _ROWS.format(
    table=KEYS, subject="api_key", actions="'key.issued', 'key.rotated', 'key.revoked'"
)
_ACCOUNTS: Final = _ROWS.format(
    table=ACCOUNTS, subject="provider_account", actions="'provider_account.set'"
)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a row's entries say of it, oldest first."""

    actions: Sequence[str]
    details: Sequence[Mapping[str, Any]]

    def of(self, action: str) -> list[Mapping[str, Any]]:
        pairs = zip(self.actions, self.details, strict=True)
        return [detail for one, detail in pairs if one == action]


def verify_tenants_rows(
    session: Session, tenant_id: UUID | None, *, on_row: Callable[[], None]
) -> None:
    """Walk all keys and accounts. Raises TamperDetected at the first that isn't as its entries say."""
    for table, statement, differences in (
        (KEYS, _KEYS, _of_key),
        (ACCOUNTS, _ACCOUNTS, _of_account),
    ):
        where = "" if tenant_id is None else "AND tenant_id = :tenant"
        values = {} if tenant_id is None else {"tenant": tenant_id}
        with stream(session, statement.format(where=where), **values) as rows:
            for row in rows:
                _compare(table, row, differences)
                on_row()


def _compare(table: str, row: Any, differences: Callable[[Any, _Told], Iterator[str]]) -> None:
    def raise_fault(problem: Problem, told: str) -> None:
        raise TamperDetected(Fault(row.tenant, table, f"id {row.named}", problem, told))

    if row.id is None:
        raise_fault(Problem.MISSING, "the audit trail has it, and it is not there")
    if row.actions is None:
        raise_fault(Problem.INSERTED, "no entry of its tenant's audit trail tells of it")
    # Whoever may add entries may write anything into them.
    details = [one if isinstance(one, dict) else {} for one in row.details]
    wrong = list(differences(row, _Told(row.actions, details)))
    if wrong:
        told = f"not what its entries in the audit trail say: {', '.join(wrong)}"
        raise_fault(Problem.ALTERED, told)


def _of_key(row: Any, told: _Told) -> Iterator[str]:
    issued = told.of("key.issued")
    if len(issued) != 1:
        # Whoever may add entries may not make a key another one by them.
        yield f"it was issued {len(issued)} times"
        return
    first = issued[0]
    yield from (
        name for name in ("prefix", "mode", "name") if first.get(name) != getattr(row, name)
    )
    # Entries from before these two were written each time leave them out.
    own = fingerprint(row.key_hash)
    if first.get("fingerprint", own) != own:
        yield "key_hash"
    if _words(first.get("scopes", row.scopes)) != set(row.scopes):
        yield "scopes"
    if _words(first.get("networks", [])) != {str(network) for network in row.networks}:
        yield "networks"
    rotated = told.of("key.rotated")
    if _instant((rotated or issued)[-1].get("expires_at")) != row.expires_at:
        yield "expires_at"
    if bool(told.of("key.revoked")) != (row.revoked_at is not None):
        yield "revoked_at"


def _of_account(row: Any, told: _Told) -> Iterator[str]:
    last = told.details[-1]
    for name in ("provider", "mode", "base_url", "target_environment", "version"):
        if last.get(name) != getattr(row, name):
            yield name


def _words(listed: object) -> set[str]:
    return {str(one) for one in listed} if isinstance(listed, list) else {"?"}


def _instant(words: object) -> datetime | None:
    """An instant as an entry has it, or None. What is no instant, in a forged entry, equals none."""
    if words is None:
        return None
    try:
        return datetime.fromisoformat(str(words))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
