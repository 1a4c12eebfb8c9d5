"""Open payments whose payer can't be decrypted: none can be sent, none ends by itself."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Row, text

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.encryption import DataKeyUnreadable, TenantKeyring
from payments_app.kernel.secrets import Cipher
from payments_app.payments.payers import decrypt_payer
from payments_app.tenants.data_keys import KeptDataKeys

# Only the oldest are read, which takes a second; more open payments are another kind of fault.
OPEN_MAX: Final = 100_000
_OPEN: Final = text("""
SELECT p.id, p.tenant_id, t.slug, p.payer FROM payments p JOIN tenants t ON t.id = p.tenant_id
WHERE p.status = 'PENDING' ORDER BY p.id LIMIT :most
""")


class Unreadable(NamedTuple):
    """A tenant's open payments that can't be decrypted, with the id of the oldest."""

    tenant_id: UUID
    slug: str
    payments: int
    oldest: UUID


def unreadable_payments(cipher: Cipher) -> list[Unreadable]:
    """By tenant. It creates nothing: no data key for a tenant without one."""
    keyring = TenantKeyring(cipher, KeptDataKeys())
    with transaction(EVERY_TENANT) as session:
        rows = session.execute(_OPEN, {"most": OPEN_MAX}).all()
    found = []
    for tenant_id, group in groupby(sorted(rows, key=_tenant), key=_tenant):
        own = list(group)
        ids = _unreadable(keyring, tenant_id, [(row.id, row.payer) for row in own])
        if ids:
            found.append(Unreadable(tenant_id, own[0].slug, len(ids), min(ids)))
    return found


def _unreadable(
    keyring: TenantKeyring, tenant_id: UUID, payers: list[tuple[UUID, bytes]]
) -> list[UUID]:
    try:
        keyring.key_for(tenant_id)
    except DataKeyUnreadable:
        return [payment_id for payment_id, _ in payers]
    return [
        payment_id
        for payment_id, sealed in payers
        if not _opens(keyring, tenant_id, payment_id, sealed)
    ]


def _opens(keyring: TenantKeyring, tenant_id: UUID, payment_id: UUID, sealed: bytes) -> bool:
    try:
        decrypt_payer(keyring, tenant_id=tenant_id, payment_id=payment_id, sealed=sealed)
    except DataKeyUnreadable:
        return False
    return True


def _tenant(row: Row[Any]) -> UUID:
    found: UUID = row.tenant_id
    return found
