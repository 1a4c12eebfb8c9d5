"""`flask payers`: find a person's payments, and erase their number."""

from __future__ import annotations

import click

from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.msisdns import Number
from payments_app.commands.parts import keyring
from payments_app.commands.report import Report, table
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments.payers import erase_payer, payments_of_payer
from payments_app.tenants.registry import find_tenant

payers = GatewayGroup("payers", help="Find a payer's payments; forget who paid.")


@payers.command("find", example="flask payers find acme 256772123456")
@click.argument("tenant", metavar="SLUG")
@click.argument("msisdn", type=Number())
def find(tenant: str, msisdn: Msisdn) -> Report:
    """List a tenant's payments of one phone number, of both modes, newest first."""
    found = payments_of_payer(find_tenant(tenant).id, msisdn, keyring())
    names = ("created_at", "status", "amount", "currency", "mode", "id")
    documents = [
        {
            "created_at": payment.created_at,
            "status": payment.status,
            "amount": str(payment.money),
            "currency": payment.currency,
            "mode": payment.mode,
            "id": payment.id,
        }
        for payment in found
    ]
    rows = [[document[name] for name in names] for document in documents]
    headings = ("CREATED", "STATUS", "AMOUNT", "CURRENCY", "MODE", "ID")
    empty = "This tenant has no payments of that number, or they have been erased."
    return Report({"data": documents}, table(headings, rows, empty=empty))


@payers.command("erase", example="flask payers erase acme 256772123456 --yes")
@click.argument("tenant", metavar="SLUG")
@click.argument("msisdn", type=Number())
@click.confirmation_option(prompt="The number can't be brought back. Erase it?")
def erase(tenant: str, msisdn: Msisdn) -> Report:
    """Forget a phone number in all of a tenant's ended payments.

    The payments stay, with their amounts, ends and events; who paid is gone, and so are the stored
    answers, the provider's words and the callbacks, which name the number. An open payment needs
    its number: exits with 1 while there are any, so run it again once they have ended.
    """
    done = erase_payer(find_tenant(tenant).id, msisdn, keyring(), actor=actor())
    text = f"Erased in {done.erased} payments."
    if done.open:
        text += f" {done.open} are still open and need it: run this again once they have ended."
    return Report({"erased": done.erased, "open": done.open}, text, well=not done.open)
