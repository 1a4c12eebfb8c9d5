"""Compares tenants, API keys and provider accounts with the audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from payments_app.audit.comparison import (
    UNTOLD,
    Comparison,
    Detail,
    Told,
    fingerprint,
    instant,
    unequal,
)

# The settings of `flask tenants create` and `set`, with a new tenant's defaults.
_SETTINGS: Final = {
    "require_idempotency_key": False,
    "rate_limit": None,
    "tenant_rate_limit": None,
    "default_provider": None,
}
_STATUS: Final = {"tenant.suspended": "suspended", "tenant.resumed": "active"}


def _of_tenant(row: Any, told: Told) -> Iterator[str]:
    created = told.of("tenant.created")
    if len(created) != 1:
        yield f"it was created {len(created)} times"
        return
    expected: dict[str, Any] = {
        "slug": created[0].get("slug"),
        "name": created[0].get("name"),
        "status": "active",
        "held_at": None,
        "held_why": None,
        "restored_at": None,
        **_SETTINGS,
    }
    for action, detail in told:
        expected |= _of_tenants_entry(action, detail)
    yield from unequal(row._mapping, expected)  # noqa: SLF001  SQLAlchemy's own name for it


def _of_tenants_entry(action: str, detail: Detail) -> dict[str, object]:
    """The columns that this entry sets, with their values."""
    match action:
        case "tenant.created" | "tenant.configured":
            return {name: value for name, value in detail.items() if name in _SETTINGS}
        case "tenant.suspended" | "tenant.resumed":
            return {"status": _STATUS[action]}
        case "tenant.held":
            held_at = instant(detail.get("held_at", UNTOLD))
            return {"held_why": detail.get("why"), "held_at": held_at}
        case "tenant.released":
            return {"held_why": None, "held_at": None}
        case "recovery.begun":
            return {"restored_at": instant(detail.get("restored_at", UNTOLD))}
        case _:
            return {}


def _of_key(row: Any, told: Told) -> Iterator[str]:
    issued = told.of("key.issued")
    if len(issued) != 1:
        # An attacker who can add entries must not be able to replace a key with a second one.
        yield f"it was issued {len(issued)} times"
        return
    first = issued[0]
    yield from (
        name for name in ("prefix", "mode", "name") if first.get(name) != getattr(row, name)
    )
    # Older entries have no fingerprint or scopes.
    own = fingerprint(row.key_hash)
    if first.get("fingerprint", own) != own:
        yield "key_hash"
    if _words(first.get("scopes", row.scopes)) != set(row.scopes):
        yield "scopes"
    if _words(first.get("networks", [])) != {str(network) for network in row.networks}:
        yield "networks"
    rotated = told.of("key.rotated")
    if instant((rotated or issued)[-1].get("expires_at")) != row.expires_at:
        yield "expires_at"
    if bool(told.of("key.revoked")) != (row.revoked_at is not None):
        yield "revoked_at"


def _of_account(row: Any, told: Told) -> Iterator[str]:
    # A `rewrapped` entry follows a `set` entry and has only the new fingerprint.
    last = (told.of("provider_account.set") or [{}])[-1]
    for name in ("provider", "mode", "base_url", "target_environment", "version"):
        if last.get(name) != getattr(row, name):
            yield name
    own = fingerprint(row.credentials)
    if told.details[-1].get("fingerprint", own) != own:
        yield "credentials"


def _words(listed: object) -> set[str]:
    return {str(one) for one in listed} if isinstance(listed, list) else {"?"}


COMPARISONS: Final = (
    Comparison(
        table="tenants",
        rows="(SELECT *, id AS tenant_id FROM tenants)",
        subject="tenant",
        actions=(
            *("tenant.created", "tenant.configured", "tenant.suspended", "tenant.resumed"),
            *("tenant.held", "tenant.released", "recovery.begun"),
        ),
        differences=_of_tenant,
    ),
    Comparison(
        table="api_keys",
        rows="api_keys",
        subject="api_key",
        actions=("key.issued", "key.rotated", "key.revoked"),
        differences=_of_key,
    ),
    Comparison(
        table="provider_accounts",
        rows="provider_accounts",
        subject="provider_account",
        actions=("provider_account.set", "provider_account.rewrapped"),
        differences=_of_account,
    ),
)
