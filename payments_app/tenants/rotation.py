"""Closing what rests encrypted under the newest of SECRET_KEYS, while everything runs."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select, update

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.secrets import Cipher, SecretUnreadable
from payments_app.tenants.model import ProviderCredentials


@dataclass(frozen=True, slots=True)
class Rotation:
    """`rewrapped`: closed anew; `current`: were so already; `unreadable`: ids no key opens."""

    rewrapped: int
    current: int
    unreadable: tuple[UUID, ...]


def rotate_secrets(cipher: Cipher, *, actor: str) -> Rotation:
    """Close every stored secret under the newest key; safe at any time and any number of times.

    Processes that have both keys read it before and after. One row at a time, so that nobody
    waits for it.
    """
    rewrapped, current, unreadable = 0, 0, []
    for account_id, tenant_id in _stored():
        try:
            changed = _rotate(account_id, tenant_id, cipher, actor=actor)
        except SecretUnreadable:
            unreadable.append(account_id)
            continue
        rewrapped += changed
        current += not changed
    return Rotation(rewrapped, current, tuple(unreadable))


def _stored() -> list[tuple[UUID, UUID]]:
    account = ProviderCredentials
    with transaction(EVERY_TENANT) as session:
        found = session.execute(select(account.id, account.tenant_id).order_by(account.id))
        return [(row.id, row.tenant_id) for row in found]


def _rotate(account_id: UUID, tenant_id: UUID, cipher: Cipher, *, actor: str) -> bool:
    account = ProviderCredentials
    wanted = select(account.credentials).where(account.id == account_id).with_for_update()
    with transaction(tenant_id) as session:
        before = session.scalars(wanted).one()
        if cipher.is_current(before):
            return False
        change = update(account).where(account.id == account_id)
        # The version stays: the credentials are the same, and tokens got with them go on.
        session.execute(change.values(credentials=cipher.rotate(before)))
        record(
            session,
            tenant_id=tenant_id,
            actor=actor,
            action="provider_account.rewrapped",
            subject_type="provider_account",
            subject_id=account_id,
        )
        return True
