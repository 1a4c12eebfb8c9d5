"""Encrypts payers: each payment's payer is stored together with a data key of its own.

All else that names the payer is encrypted with that key: the stored response, the provider's
answers, callbacks. To erase the payer erases the key: none of those can be decrypted then.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from payments_app.kernel.encryption import KEY_BYTES, DataKey, DataKeyUnreadable, TenantKeyring
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments.model import Payment

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
