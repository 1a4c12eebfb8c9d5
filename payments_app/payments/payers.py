"""Who pays, sealed: each payment's payer rests together with a key of its own.

Under that key rests all else that names the payer: the stored answer, the provider's words,
callbacks. Whoever forgets the payer forgets the key, and with it those, wherever they are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from payments_app.kernel.msisdn import Msisdn
from payments_app.kernel.vault import KEY_BYTES, Box, Vault, VaultClosed
from payments_app.payments.model import Payment

_PAYER: Final = "payer"


class Payer(NamedTuple):
    """A payer's number, and the box of all that names it in this payment."""

    msisdn: Msisdn
    box: Box


@dataclass(frozen=True, slots=True)
class SealedPayer:
    """A payer as the row has it, and the box of all that names it in this payment."""

    payer: bytes
    index: bytes
    masked: str
    box: Box


def seal_payer(vault: Vault, *, tenant_id: UUID, payment_id: UUID, msisdn: Msisdn) -> SealedPayer:
    """Make a new payment's key, and seal it and the number. Raises VaultClosed."""
    key = os.urandom(KEY_BYTES)
    return SealedPayer(
        vault.box_of(tenant_id).seal(key + msisdn.digits.encode(), about=_about(payment_id)),
        payer_index(vault, tenant_id, msisdn),
        msisdn.masked,
        Box(key),
    )


def open_payer(
    vault: Vault, *, tenant_id: UUID, payment_id: UUID, sealed: bytes | None
) -> Payer | None:
    """None once the payer has been erased. Raises VaultClosed."""
    if sealed is None:
        return None
    plain = vault.box_of(tenant_id).open(sealed, about=_about(payment_id))
    return Payer(Msisdn(plain[KEY_BYTES:].decode()), Box(plain[:KEY_BYTES]))


def payer_of(vault: Vault, payment: Payment) -> Payer | None:
    """See open_payer."""
    return open_payer(
        vault, tenant_id=payment.tenant_id, payment_id=payment.id, sealed=payment.payer
    )


def known_payer_of(vault: Vault, payment: Payment) -> Payer:
    """For an open payment, which always has its payer. Raises VaultClosed."""
    payer = payer_of(vault, payment)
    if payer is None:
        raise VaultClosed("The payer of this payment has been erased.")
    return payer


def payer_index(vault: Vault, tenant_id: UUID, msisdn: Msisdn) -> bytes:
    """By this a tenant's payments of one number are found. Raises VaultClosed."""
    return vault.box_of(tenant_id).digest(msisdn.digits.encode(), about=_PAYER)


def _about(payment_id: UUID) -> str:
    return f"{_PAYER} {payment_id}"
