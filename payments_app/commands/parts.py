"""Access to the parts that create_app built, for commands."""

from __future__ import annotations

from flask import current_app
from redis import Redis

from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.http.egress import Egress
from payments_app.kernel.secrets import Cipher
from payments_app.payments.gateway import PaymentGateway
from payments_app.settings import Settings


def gateway() -> PaymentGateway:
    """The gateway: adapters, accounts and network."""
    found: PaymentGateway = current_app.extensions["maramoja"].gateway
    return found


def cipher() -> Cipher:
    """Encrypts credentials at rest."""
    found: Cipher = current_app.extensions["maramoja"].cipher
    return found


def keyring() -> TenantKeyring:
    """Decrypts payers' numbers."""
    found: TenantKeyring = current_app.extensions["maramoja"].keyring
    return found


def egress() -> Egress:
    """Sends to addresses that tenants gave."""
    found: Egress = current_app.extensions["maramoja"].egress
    return found


def settings() -> Settings:
    """The settings with which this process was started."""
    found: Settings = current_app.extensions["maramoja"].settings
    return found


def redis() -> Redis:
    """Redis: locks, limits and tokens."""
    found: Redis = current_app.extensions["maramoja"].redis
    return found
