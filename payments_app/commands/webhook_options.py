"""Options that the webhook commands share: the tenant, the mode, the events."""

from __future__ import annotations

import click

from payments_app.providers.contract import Mode
from payments_app.tenants.keys import list_keys
from payments_app.tenants.registry import find_tenant
from payments_app.webhooks.endpoints import Owner

tenant_argument = click.argument("tenant", metavar="SLUG")
mode_option = click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    help="Of the payments that it is about. Left out: live, but test for a tenant whose keys are all"
    " test keys.",
)
events_option = click.option(
    "--event",
    "event_types",
    multiple=True,
    metavar="TYPE",
    help="Such as payment.successful or payment.*, given once for each; all if left out.",
)


def owner_of(tenant: str, mode: str | None) -> Owner:
    """The tenant in this mode; without a mode, in that of its keys."""
    found = find_tenant(tenant)
    if mode is None:
        modes = {key.mode for key in list_keys(found) if key.revoked_at is None}
        mode = Mode.TEST if modes == {Mode.TEST} else Mode.LIVE
    return Owner(found.id, mode)
