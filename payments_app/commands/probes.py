"""Checks of the provider accounts that payments would use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from payments_app.commands.parts import gateway
from payments_app.providers.contract import Mode, Observation, ProviderAccount, Verdict
from payments_app.tenants.errors import ProviderNotEnabled
from payments_app.tenants.model import Tenant


@dataclass(frozen=True, slots=True)
class Reached:
    """An account, and the mode of the keys that use it (None if checked for no tenant)."""

    account: ProviderAccount
    mode: Mode | None


def platform_accounts() -> list[Reached]:
    """The platform's own accounts."""
    return [Reached(account, None) for account in gateway().accounts.platform()]


def reached_by(tenant: Tenant, provider: str | None, modes: Sequence[Mode]) -> list[Reached]:
    """The accounts that the tenant's keys of these modes use, at one provider or at all.

    Raises ProviderNotEnabled if there are none.
    """
    registry = gateway().registry
    codes = registry.codes() if provider is None else [registry.get(provider).code]
    reached = [
        Reached(account, mode)
        for code in codes
        for mode in modes
        if (account := _found(tenant, code, mode)) is not None
    ]
    if not reached:
        raise ProviderNotEnabled(f"{tenant.slug} has no account there, and the platform neither.")
    return reached


def check_accounts(reached: list[Reached]) -> list[dict[str, object]]:
    """The provider's answer for each account; an account that several modes use is checked once."""
    accounts = {_identity(each.account): each.account for each in reached}
    seen = {identity: _probe(account) for identity, account in accounts.items()}
    return [_document(each, seen[_identity(each.account)]) for each in reached]


def _identity(account: ProviderAccount) -> tuple[str, ...]:
    return (account.provider, account.version, account.target_environment, account.base_url)


def _found(tenant: Tenant, code: str, mode: Mode) -> ProviderAccount | None:
    try:
        return gateway().accounts.find(tenant_id=tenant.id, provider=code, mode=mode)
    except ProviderNotEnabled:
        return None


def _probe(account: ProviderAccount) -> Observation:
    return gateway().registry.get(account.provider).probe(account, gateway().transport.unleased())


def _document(reached: Reached, seen: Observation) -> dict[str, object]:
    account = reached.account
    return {
        "id": account.id,
        "provider": account.provider,
        "owner": "platform" if account.id is None else "tenant",
        "mode": reached.mode.value if reached.mode else None,
        "base_url": account.base_url,
        "target_environment": account.target_environment,
        "works": seen.verdict is Verdict.PENDING,
        "reason": seen.reason,
        "http_status": seen.http_status,
        "elapsed_s": round(seen.elapsed_s, 3),
    }
