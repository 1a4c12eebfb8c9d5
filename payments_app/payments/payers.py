"""Encrypts payers: each payment's payer is stored together with a data key of its own.

All else that names the payer is encrypted with that key: the stored response, the provider's
answers, callbacks. To erase the payer erases the key: none of those can be decrypted then.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, set_tenant, transaction
from payments_app.kernel.encryption import KEY_BYTES, DataKey, DataKeyUnreadable, TenantKeyring
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments.model import Payment
from payments_app.payments.states import Status

_PAYER: Final = "payer"


class Payer(NamedTuple):
    """A payer's number, and the data_key of all that names it in this payment."""

    msisdn: Msisdn
    data_key: DataKey


@dataclass(frozen=True, slots=True)
class EncryptedPayer:
    """A payer as the row stores it, and the data_key of all that names it in this payment."""

    payer: bytes
    index: bytes
    masked: str
    data_key: DataKey


def encrypt_payer(
    keyring: TenantKeyring, *, tenant_id: UUID, payment_id: UUID, msisdn: Msisdn
) -> EncryptedPayer:
    """Create a new payment's key, encrypt it and the number. Raises DataKeyUnreadable."""
    key = os.urandom(KEY_BYTES)
    return EncryptedPayer(
        keyring.key_for(tenant_id).encrypt(key + msisdn.digits.encode(), about=_about(payment_id)),
        payer_index(keyring, tenant_id, msisdn),
        msisdn.masked,
        DataKey(key),
    )


def decrypt_payer(
    keyring: TenantKeyring, *, tenant_id: UUID, payment_id: UUID, sealed: bytes | None
) -> Payer | None:
    """None once the payer has been erased. Raises DataKeyUnreadable."""
    if sealed is None:
        return None
    plain = keyring.key_for(tenant_id).decrypt(sealed, about=_about(payment_id))
    return Payer(Msisdn(plain[KEY_BYTES:].decode()), DataKey(plain[:KEY_BYTES]))


def payer_of(keyring: TenantKeyring, payment: Payment) -> Payer | None:
    """See decrypt_payer."""
    return decrypt_payer(
        keyring, tenant_id=payment.tenant_id, payment_id=payment.id, sealed=payment.payer
    )


def known_payer_of(keyring: TenantKeyring, payment: Payment) -> Payer:
    """For an open payment, which always has its payer. Raises DataKeyUnreadable."""
    payer = payer_of(keyring, payment)
    if payer is None:
        raise DataKeyUnreadable("The payer of this payment has been erased.")
    return payer


def payer_index(keyring: TenantKeyring, tenant_id: UUID, msisdn: Msisdn) -> bytes:
    """A digest to find a tenant's payments of one number by. Raises DataKeyUnreadable."""
    return keyring.key_for(tenant_id).digest(msisdn.digits.encode(), about=_PAYER)


def _about(payment_id: UUID) -> str:
    return f"{_PAYER} {payment_id}"


log = structlog.get_logger(__name__)

BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Erasure:
    """`erased`: payments whose payer is erased now. `open`: those that have to end first."""

    erased: int
    open: int


def payments_of_payer(tenant_id: UUID, msisdn: Msisdn, keyring: TenantKeyring) -> list[Payment]:
    """Both modes' payments of this number, newest first. Raises DataKeyUnreadable."""
    index = payer_index(keyring, tenant_id, msisdn)
    wanted = (
        select(Payment)
        .where(Payment.tenant_id == tenant_id, Payment.payer_index == index)
        .order_by(Payment.created_at.desc())
    )
    with transaction(tenant_id) as session:
        return list(session.scalars(wanted))


def erase_payer(tenant_id: UUID, msisdn: Msisdn, keyring: TenantKeyring, *, actor: str) -> Erasure:
    """Erase the number in all of the tenant's ended payments. Raises DataKeyUnreadable.

    This erases each payment's key too: the stored responses, the provider's answers and the
    callbacks can't be decrypted any more. Open payments need the number: call it again later.
    """
    theirs = Payment.payer_index == payer_index(keyring, tenant_id, msisdn)
    erased = 0
    while True:
        with transaction(tenant_id) as session:
            batch = _erase_batch(session, tenant_id, theirs)
            if batch:
                _record(session, tenant_id, batch, actor=actor, payer=msisdn.masked)
        if not batch:
            break
        erased += batch
    with transaction(tenant_id) as session:
        left = session.execute(
            select(func.count()).select_from(Payment).where(Payment.tenant_id == tenant_id, theirs)
        ).scalar_one()
    return Erasure(erased, left)


def erase_old_payers(after_days: int | None) -> int:
    """Erase the payers of all payments that ended longer ago than this; how many payments.

    None: they are kept for ever.
    """
    if after_days is None:
        return 0
    erased = 0
    ended_before = func.statement_timestamp() - timedelta(days=after_days)
    while batch := _erase_old_batch(Payment.final_at < ended_before):
        erased += batch
    if erased:
        log.info("payers.erased", payments=erased)
    return erased


def _erase_old_batch(old: ColumnElement[bool]) -> int:
    """Of any one tenant that has some: each tenant has its own entry in the audit trail."""
    with transaction(EVERY_TENANT) as session:
        tenant_id = session.scalars(
            select(Payment.tenant_id).where(Payment.payer.is_not(None), old).limit(1)
        ).first()
        if tenant_id is None:
            return 0
        set_tenant(session, tenant_id)
        batch = _erase_batch(session, tenant_id, old)
        if batch:
            _record(session, tenant_id, batch, actor="system:retention", payer=None)
        return batch


def _erase_batch(session: Session, tenant_id: UUID, whose: ColumnElement[bool]) -> int:
    ended = (
        select(Payment.id)
        .where(Payment.tenant_id == tenant_id, Payment.payer.is_not(None), whose)
        .where(Payment.status != Status.PENDING)
    )
    # Found first, then locked in id order, as all lock several payments: two erasures, or one and
    # results that come late, do not wait for each other. What another has erased meanwhile is not
    # locked; then others are looked for.
    ids: list[UUID] = []
    while not ids and (found := session.scalars(ended.limit(BATCH)).all()):
        locked = ended.where(Payment.id.in_(found)).order_by(Payment.id)
        ids = list(session.scalars(locked.with_for_update(key_share=True)))
    if not ids:
        return 0
    session.execute(
        update(Payment)
        .where(Payment.id.in_(ids))
        .values(payer=None, payer_index=None, payer_masked=None)
    )
    return len(ids)


def _record(
    session: Session, tenant_id: UUID, payments: int, *, actor: str, payer: str | None
) -> None:
    record(
        session,
        tenant_id=tenant_id,
        actor=actor,
        action="payer.erased",
        subject_type="tenant",
        subject_id=tenant_id,
        detail={"payments": payments, "payer": payer},
    )
