"""`flask providers`: the accounts that payments use."""

from __future__ import annotations

from functools import partial
from typing import Final, TypedDict, Unpack

import click

from payments_app.commands.credentials import read_credentials
from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.parts import cipher, gateway
from payments_app.commands.probes import Reached, check_accounts, platform_accounts, reached_by
from payments_app.commands.report import Report, fields, table
from payments_app.payments.operations import refuse_other_merchant
from payments_app.providers.contract import Mode, Provider, ProviderAccount
from payments_app.tenants.accounts import (
    AccountView,
    NewAccount,
    check_account,
    list_accounts,
    masked,
    merchant_of,
    mode_of,
    set_account,
)
from payments_app.tenants.errors import ProviderAccountInvalid
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import find_tenant

_MODES: Final = [mode.value for mode in Mode]

providers = GatewayGroup("providers", help="Set and try the accounts that payments go through.")


class AccountOptions(TypedDict):
    """The options of `set`."""

    mode: str | None
    target_environment: str
    base_url: str | None
    credential: tuple[str, ...]
    may_move: bool


@providers.command(
    "set",
    example="flask providers set acme mtn_momo --target-environment mtnuganda"
    " --base-url https://proxy.momoapi.mtn.com",
)
@click.argument("slug")
@click.argument("provider")
@click.option(
    "--mode",
    type=click.Choice(_MODES),
    help="The API keys that use this account: test for a sandbox, live for all else. It need not be"
    " said.",
)
@click.option("--target-environment", required=True, help="Such as mtnuganda, or sandbox.")
@click.option(
    "--base-url", help="The provider's address. Left out: that of the account as it is now."
)
@click.option(
    "--credential",
    multiple=True,
    metavar="NAME[=-|=env:VARIABLE]",
    help="Where to read one credential from: the terminal or the next line of stdin (-), or an"
    " environment variable. On a terminal, those left out are asked for.",
)
@click.option(
    "--may-move",
    is_flag=True,
    help="Allow another address, environment or merchant: open payments can't be sent or asked for"
    " then.",
)
def set_one(slug: str, provider: str, **options: Unpack[AccountOptions]) -> Report:
    """Set the account of the tenant SLUG at PROVIDER.

    Credentials never stand on the command line, where the shell's history would keep them.
    """
    tenant = find_tenant(slug)
    adapter = gateway().registry.get(provider)
    new = _new_account(tenant, adapter, options)
    check_account(new, adapter)
    may_move = options["may_move"]
    same = partial(refuse_other_merchant, merchant=merchant_of(new, adapter))
    view = set_account(
        tenant,
        new,
        cipher=cipher(),
        actor=actor(),
        may_move=may_move,
        before_change=None if may_move else same,
    )
    document = _of_tenant(view)
    hint = (
        "New payments go through it from now on. Try it with:"
        f" flask providers check {tenant.slug} {provider}"
    )
    return Report(document, f"{fields(_one_line(document))}\n\n{hint}")


@providers.command("list", example="flask providers list acme")
@click.argument("slug", required=False)
def list_all(slug: str | None) -> Report:
    """List the accounts that the tenant SLUG may use, or only the platform's."""
    own = list_accounts(find_tenant(slug), cipher()) if slug else []
    documents = [_of_tenant(view) for view in own]
    documents += [_of_platform(account) for account in gateway().accounts.platform()]
    headings = ("PROVIDER", "OWNER", "MODE", "ENVIRONMENT", "BASE URL", "CREDENTIALS")
    names = ("provider", "owner", "mode", "target_environment", "base_url", "credentials")
    rows = [[_one_line(d)[name] for name in names] for d in documents]
    return Report(
        {"data": documents}, table(headings, rows, empty="No provider account is set up.")
    )


@providers.command("check", example="flask providers check acme mtn_momo")
@click.argument("slug", required=False)
@click.argument("provider", required=False)
@click.option("--mode", type=click.Choice(_MODES), help="Only where API keys of this mode lead.")
def check(slug: str | None, provider: str | None, mode: str | None) -> Report:
    """Try the credentials, without moving money.

    With SLUG those that the tenant's payments would go through, else the platform's. The exit
    code is 1 if any of them doesn't work.
    """
    if slug is None:
        return _checked(platform_accounts())
    modes = [Mode(mode)] if mode else list(Mode)
    return _checked(reached_by(find_tenant(slug), provider, modes))


def _checked(reached: list[Reached]) -> Report:
    documents = check_accounts(reached)
    headings = ("PROVIDER", "OWNER", "MODE", "ENVIRONMENT", "WORKS", "WHY", "HTTP")
    names = ("provider", "owner", "mode", "target_environment", "works", "reason", "http_status")
    rows = [[d[name] for name in names] for d in documents]
    return Report(
        {"data": documents},
        table(headings, rows, empty="No provider account is set up."),
        well=all(d["works"] for d in documents),
    )


def _new_account(tenant: Tenant, adapter: Provider, options: AccountOptions) -> NewAccount:
    environment = options["target_environment"]
    mode = Mode(options["mode"] or mode_of(environment))
    return NewAccount(
        provider=adapter.code,
        mode=mode,
        base_url=options["base_url"] or _present_base_url(tenant, adapter.code, mode, environment),
        target_environment=environment,
        credentials=read_credentials(options["credential"], adapter.credential_names),
    )


def _present_base_url(tenant: Tenant, provider: str, mode: Mode, target_environment: str) -> str:
    """The tenant's present address; else the platform's, if the environment is the same."""
    for view in list_accounts(tenant, cipher()):
        if (view.provider, view.mode) == (provider, mode):
            return view.base_url
    for account in gateway().accounts.platform(provider):
        if account.target_environment == target_environment:
            return account.base_url
    raise ProviderAccountInvalid("The account is new: say where it is with --base-url.")


def _of_tenant(view: AccountView) -> dict[str, object]:
    return {
        "id": view.id,
        "provider": view.provider,
        "owner": "tenant",
        "mode": view.mode.value,
        "base_url": view.base_url,
        "target_environment": view.target_environment,
        "credentials": dict(view.credentials),
        "version": view.version,
        "updated_at": view.updated_at,
    }


def _of_platform(account: ProviderAccount) -> dict[str, object]:
    """A platform account serves keys of its mode: test keys if it is a sandbox."""
    return {
        "id": None,
        "provider": account.provider,
        "owner": "platform",
        "mode": account.mode.value,
        "base_url": account.base_url,
        "target_environment": account.target_environment,
        "credentials": {name: masked(value) for name, value in account.credentials.items()},
        "version": None,
        "updated_at": None,
    }


def _one_line(document: dict[str, object]) -> dict[str, object]:
    credentials = document["credentials"]
    told = credentials.items() if isinstance(credentials, dict) else ()
    return {**document, "credentials": ", ".join(f"{name} {value}" for name, value in told)}
