"""`flask secrets`: what encrypts the credentials at rest."""

from __future__ import annotations

from cryptography.fernet import Fernet

from payments_app.commands.group import GatewayGroup
from payments_app.commands.report import Report

secrets = GatewayGroup("secrets", help="Keys for SECRET_KEYS.")


@secrets.command(
    "generate-key",
    with_appcontext=False,
    example='SECRET_KEYS="$(flask secrets generate-key),$SECRET_KEYS"',
)
def generate_key() -> Report:
    """Make a new encryption key. Put it first in SECRET_KEYS, before the older ones."""
    key = Fernet.generate_key().decode()
    return Report({"key": key}, key)
