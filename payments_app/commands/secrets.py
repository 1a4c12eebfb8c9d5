"""`flask secrets`: the keys that encrypt credentials at rest."""

from __future__ import annotations

from cryptography.fernet import Fernet

from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.parts import cipher
from payments_app.commands.report import Report
from payments_app.tenants.rotation import ENCRYPTED_COLUMNS, rotate_secrets
from payments_app.webhooks.encrypted_columns import WEBHOOK_ENCRYPTED_COLUMNS

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


@secrets.command("rotate", example="flask secrets rotate")
def rotate() -> Report:
    """Close all stored secrets under the first of SECRET_KEYS, while everything runs.

    First start all processes with the new key before the old one; then rotate; then leave the
    old key out. May be repeated at any time.
    """
    done = rotate_secrets(cipher(), (*ENCRYPTED_COLUMNS, *WEBHOOK_ENCRYPTED_COLUMNS), actor=actor())
    document = {
        "rewrapped": done.rewrapped,
        "current": done.current,
        "unreadable": list(done.unreadable),
    }
    text = f"{done.rewrapped} closed under the newest key, {done.current} were already."
    if done.unreadable:
        ids = ", ".join(map(str, done.unreadable))
        text += f"\nNo key of SECRET_KEYS opens {len(done.unreadable)}: {ids}"
    else:
        text += "\nThe older keys in SECRET_KEYS are needed no longer."
    return Report(document, text, well=not done.unreadable)
