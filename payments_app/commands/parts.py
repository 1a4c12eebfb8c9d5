"""What create_app joined, for commands that need it."""

from __future__ import annotations

from flask import current_app
from redis import Redis

from payments_app.kernel.egress import Egress
from payments_app.kernel.secrets import Cipher
from payments_app.kernel.vault import Vault
from payments_app.payments.gateway import PaymentGateway
from payments_app.settings import Settings


def rails() -> PaymentGateway:
    """The adapters, the accounts and the network."""
    found: PaymentGateway = current_app.extensions["maramoja"].gateway
    return found


def cipher() -> Cipher:
    """What encrypts credentials at rest."""
    found: Cipher = current_app.extensions["maramoja"].cipher
    return found


def vault() -> Vault:
    """What opens payers' numbers."""
    found: Vault = current_app.extensions["maramoja"].vault
    return found


def egress() -> Egress:
    """What sends to addresses that tenants gave."""
    found: Egress = current_app.extensions["maramoja"].egress
    return found


def settings() -> Settings:
    """What this process was started with."""
    found: Settings = current_app.extensions["maramoja"].settings
    return found


def redis() -> Redis:
    """Locks, limits and tokens."""
    found: Redis = current_app.extensions["maramoja"].redis
    return found
