"""The permissions of an API key. Each route names the scope that it needs."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from payments_app.tenants.errors import ScopeUnknown


class Scope(StrEnum):
    """One permission of an API key."""

    PAYMENTS_READ = "payments:read"
    PAYMENTS_WRITE = "payments:write"
    PAYOUTS_WRITE = "payouts:write"
    WEBHOOKS_MANAGE = "webhooks:manage"
    # Responses have payers' whole numbers; without this scope they are masked.
    PAYERS_READ = "payers:read"


ALL_SCOPES: Final = frozenset(Scope)
# The scopes of a key that is issued without any: all but those that pay money out.
DEFAULT_SCOPES: Final = ALL_SCOPES - {Scope.PAYOUTS_WRITE}


def read_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes of these names; DEFAULT_SCOPES if none is named. Raises ScopeUnknown."""
    wanted = frozenset(names)
    if unknown := sorted(wanted - ALL_SCOPES):
        known = ", ".join(Scope)
        raise ScopeUnknown(f"There is no scope {unknown[0]!r}. There are {known}.")
    return frozenset(Scope(name) for name in wanted) or DEFAULT_SCOPES
