"""The operator's command line: `flask tenants|keys|providers|payments|payers|webhooks|audit|…`."""

from __future__ import annotations

from flask import Flask

from payments_app.commands.audit import audit
from payments_app.commands.doctor.command import doctor
from payments_app.commands.group import TopLevel
from payments_app.commands.invariants import invariants
from payments_app.commands.keys import keys
from payments_app.commands.payers import payers
from payments_app.commands.payments import payments
from payments_app.commands.providers import providers
from payments_app.commands.recovery import recovery
from payments_app.commands.secrets import secrets
from payments_app.commands.tenants import tenants
from payments_app.commands.webhook_feed import webhooks


def register_commands(app: Flask) -> None:
    """Register every command group under `flask`."""
    # With the commands that extensions have registered already.
    app.cli = TopLevel(app.cli.name, commands=app.cli.commands)
    record = (audit, invariants, recovery, secrets)
    for group in (tenants, keys, providers, payments, payers, webhooks, *record):
        app.cli.add_command(group)
    app.cli.add_command(doctor)
