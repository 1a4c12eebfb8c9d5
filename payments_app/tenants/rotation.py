"""Closing what rests encrypted under the newest of SECRET_KEYS, while everything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.sql.elements import SQLCoreOperations

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, Base, transaction
from payments_app.kernel.secrets import Cipher, SecretUnreadable
from payments_app.tenants.model import ProviderCredentials, Tenant


class Shelf(NamedTuple):
    """A column of secrets, with its rows' ids and tenants. `kind`: for the audit trail."""

    kind: str
    table: type[Base]
    id: SQLCoreOperations[UUID]
    tenant_id: SQLCoreOperations[UUID]
    secret: SQLCoreOperations[str] | SQLCoreOperations[str | None]


SHELVES: Final = (
    Shelf(
        "provider_account",
        ProviderCredentials,
        ProviderCredentials.id,
        ProviderCredentials.tenant_id,
        ProviderCredentials.credentials,
    ),
    # Under it rest the payers' numbers, which therefore stay as they are.
    Shelf("tenant", Tenant, Tenant.id, Tenant.id, Tenant.data_key),
)


@dataclass(frozen=True, slots=True)
class Rotation:
    """`rewrapped`: closed anew; `current`: were so already; `unreadable`: ids no key opens."""

    rewrapped: int
    current: int
    unreadable: tuple[UUID, ...]


def rotate_secrets(cipher: Cipher, shelves: Sequence[Shelf], *, actor: str) -> Rotation:
    """Close every secret on these shelves under the newest key, however often it is called.

    Processes that have both keys read it before and after. One row at a time, so that nobody
    waits for it.
    """
    rewrapped, current, unreadable = 0, 0, []
    for shelf in shelves:
        for secret_id, tenant_id in _stored(shelf):
            try:
                changed = _rotate(shelf, secret_id, tenant_id, cipher, actor=actor)
            except SecretUnreadable:
                unreadable.append(secret_id)
                continue
            rewrapped += changed
            current += not changed
    return Rotation(rewrapped, current, tuple(unreadable))


def unreadable_secrets(cipher: Cipher, shelves: Sequence[Shelf]) -> list[tuple[str, UUID]]:
    """What none of the keys opens: its kind, and its id."""
    found = []
    for shelf in shelves:
        with transaction(EVERY_TENANT) as session:
            rows = session.execute(select(shelf.id, shelf.secret).where(shelf.secret.is_not(None)))
            stored = [(row[0], str(row[1])) for row in rows]
        for secret_id, secret in stored:
            try:
                cipher.decrypt(secret)
            except SecretUnreadable:
                found.append((shelf.kind, secret_id))
    return found


def _stored(shelf: Shelf) -> list[tuple[UUID, UUID]]:
    secrets = select(shelf.id, shelf.tenant_id).where(shelf.secret.is_not(None)).order_by(shelf.id)
    with transaction(EVERY_TENANT) as session:
        return [(row[0], row[1]) for row in session.execute(secrets)]


def _rotate(shelf: Shelf, secret_id: UUID, tenant_id: UUID, cipher: Cipher, *, actor: str) -> bool:
    there = (shelf.id == secret_id, shelf.secret.is_not(None))
    wanted = select(shelf.secret).where(*there).with_for_update()
    with transaction(tenant_id) as session:
        before = session.scalars(wanted).one_or_none()
        # None: its owner has taken it away since it was listed.
        if before is None or cipher.is_current(before):
            return False
        # Nothing else of the row changes: tokens got with the same credentials go on.
        change = update(shelf.table).where(shelf.id == secret_id)
        session.execute(change.values({shelf.secret: cipher.rotate(before)}))
        record(
            session,
            tenant_id=tenant_id,
            actor=actor,
            action=f"{shelf.kind}.rewrapped",
            subject_type=shelf.kind,
            subject_id=secret_id,
        )
        return True
