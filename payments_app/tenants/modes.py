"""Which API keys a tenant can use: a live key needs an account that moves real money."""

from __future__ import annotations

from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import Mode
from payments_app.tenants.accounts import AccountView, ProviderAccounts, list_accounts, mode_of
from payments_app.tenants.errors import KeyModeUnusable
from payments_app.tenants.model import Tenant


def refuse_unusable_mode(
    tenant: Tenant, mode: Mode, accounts: ProviderAccounts, cipher: Cipher
) -> None:
    """Raises KeyModeUnusable if a live key of the tenant would have only sandbox accounts.

    No account at all is allowed: the operator may add one later.
    """
    own = [view for view in list_accounts(tenant, cipher) if view.mode is mode]
    found = _modes_of(own, accounts)
    if mode is Mode.LIVE and found == {Mode.TEST}:
        raise KeyModeUnusable(
            "All accounts that a live key could use are sandboxes, whose money is none. Issue a key"
            " with --mode test, or set a live account up first: flask providers set"
            f" {tenant.slug} PROVIDER --mode live."
        )


def has_live_only(tenant: Tenant, accounts: ProviderAccounts, cipher: Cipher) -> bool:
    """Whether the tenant has an account for live keys, and none for test keys."""
    return _modes_of(list_accounts(tenant, cipher), accounts) == {Mode.LIVE}


def _modes_of(own: list[AccountView], accounts: ProviderAccounts) -> set[Mode]:
    """The key modes that there are accounts for, the tenant's and the platform's."""
    environments = [view.target_environment for view in own]
    environments += [account.target_environment for account in accounts.platform()]
    return {mode_of(environment) for environment in environments}
