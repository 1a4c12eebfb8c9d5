"""`flask tenants`: the tenants of this gateway, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.parts import gateway, keyring
from payments_app.commands.report import Report, fields, table
from payments_app.integrity.violations import release_tenant
from payments_app.tenants import holds, registry
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import TenantSettings

Command = TypeVar("Command", bound=Callable[..., Any])

# The value that resets a setting to the platform's.
PLATFORM: Final = "default"

tenants = GatewayGroup("tenants", help="Make tenants, and say what each may do.")

_settings = (
    click.option(
        "--require-idempotency-key/--no-require-idempotency-key",
        default=None,
        help="Refuse a payment that comes without an Idempotency-Key.",
    ),
    click.option(
        "--rate-limit",
        metavar="RATE",
        help=f"For each API key, such as '100 per minute'; '{PLATFORM}' for the platform's.",
    ),
    click.option(
        "--tenant-rate-limit",
        metavar="RATE",
        help=f"For all its API keys together; '{PLATFORM}' for the platform's.",
    ),
    click.option(
        "--default-provider",
        metavar="CODE",
        help=f"Used where a payment names none; '{PLATFORM}' to go by the payer's number.",
    ),
)


def takes_settings(command: Command) -> Command:
    """Add the options that `create` and `set` share."""
    for option in reversed(_settings):
        command = option(command)
    return command


@tenants.command("create", example="flask tenants create acme --name 'Acme Ltd'")
@click.argument("slug")
@click.option("--name", default="", help="How people call it. The slug, if left out.")
@takes_settings
def create(
    slug: str,
    name: str,
    *,
    require_idempotency_key: bool | None,
    rate_limit: str | None,
    tenant_rate_limit: str | None,
    default_provider: str | None,
) -> Report:
    """Make a tenant. SLUG: lower-case letters, digits and hyphens."""
    settings = _given(
        require_idempotency_key=require_idempotency_key,
        rate_limit=rate_limit,
        tenant_rate_limit=tenant_rate_limit,
        default_provider=default_provider,
    )
    tenant = registry.create_tenant(slug=slug, name=name, actor=actor(), **settings)
    # Created now, the data key is in the next backup: data encrypted with it is readable after a
    # restore.
    keyring().key_for(tenant.id)
    return _report(tenant)


@tenants.command("list", example="flask tenants list")
def list_all() -> Report:
    """List all tenants."""
    documents = [_document(tenant) for tenant in registry.list_tenants()]
    rows = [(d["slug"], d["status"], d["name"], d["id"]) for d in documents]
    text = table(("SLUG", "STATUS", "NAME", "ID"), rows, empty="There are no tenants yet.")
    return Report({"data": documents}, text)


@tenants.command("show", example="flask tenants show acme")
@click.argument("slug")
def show(slug: str) -> Report:
    """Show one tenant, by its slug or id."""
    return _report(registry.find_tenant(slug))


@tenants.command("suspend", example="flask tenants suspend acme")
@click.argument("slug")
def suspend(slug: str) -> Report:
    """Refuse all of a tenant's API keys. Payments in flight go on to their end."""
    return _report(registry.suspend_tenant(registry.find_tenant(slug), actor=actor()))


@tenants.command("resume", example="flask tenants resume acme")
@click.argument("slug")
def resume(slug: str) -> Report:
    """Take a suspended tenant's API keys again."""
    return _report(registry.resume_tenant(registry.find_tenant(slug), actor=actor()))


@tenants.command("hold", example="flask tenants hold acme --why 'asked to stop by Acme'")
@click.argument("slug")
@click.option("--why", required=True, help="Kept in the audit trail.")
def hold(slug: str, why: str) -> Report:
    """Hold the tenant: accept no new payments of it, and send none.

    What has been sent goes on to its end. A payment that a worker has claimed may still be
    sent, for half a minute.
    """
    holds.hold_tenant(registry.find_tenant(slug).id, why=why, actor=actor())
    return _report(registry.find_tenant(slug))


@tenants.command("release", example="flask tenants release acme")
@click.argument("slug")
def release(slug: str) -> Report:
    """Release the tenant. Violations of invariants have to be resolved before.

    After a restore, `flask recovery finish` releases tenants.
    """
    release_tenant(registry.find_tenant(slug).id, actor=actor())
    return _report(registry.find_tenant(slug))


@tenants.command("set", example="flask tenants set acme --rate-limit '600 per minute'")
@click.argument("slug")
@takes_settings
def configure(
    slug: str,
    *,
    require_idempotency_key: bool | None,
    rate_limit: str | None,
    tenant_rate_limit: str | None,
    default_provider: str | None,
) -> Report:
    """Change a tenant's settings; those left out stay as they are."""
    settings = _given(
        require_idempotency_key=require_idempotency_key,
        rate_limit=rate_limit,
        tenant_rate_limit=tenant_rate_limit,
        default_provider=default_provider,
    )
    if not settings:
        raise click.UsageError("Say what to set: see --help.")
    tenant = registry.find_tenant(slug)
    return _report(registry.configure_tenant(tenant, actor=actor(), **settings))


def _given(
    *,
    require_idempotency_key: bool | None,
    rate_limit: str | None,
    tenant_rate_limit: str | None,
    default_provider: str | None,
) -> TenantSettings:
    settings: TenantSettings = {}
    if require_idempotency_key is not None:
        settings["require_idempotency_key"] = require_idempotency_key
    if rate_limit is not None:
        settings["rate_limit"] = None if rate_limit == PLATFORM else rate_limit
    if tenant_rate_limit is not None:
        own = None if tenant_rate_limit == PLATFORM else tenant_rate_limit
        settings["tenant_rate_limit"] = own
    if default_provider == PLATFORM:
        settings["default_provider"] = None
    elif default_provider is not None:
        settings["default_provider"] = gateway().registry.get(default_provider).code
    return settings


def _report(tenant: Tenant) -> Report:
    document = _document(tenant)
    return Report(document, fields(document))


def _document(tenant: Tenant) -> dict[str, object]:
    return {
        "id": tenant.id,
        "slug": tenant.slug,
        "name": tenant.name,
        "status": tenant.status,
        "require_idempotency_key": tenant.require_idempotency_key,
        "rate_limit": tenant.rate_limit,
        "tenant_rate_limit": tenant.tenant_rate_limit,
        "default_provider": tenant.default_provider,
        "held_at": tenant.held_at,
        "held_why": tenant.held_why,
        "created_at": tenant.created_at,
    }
