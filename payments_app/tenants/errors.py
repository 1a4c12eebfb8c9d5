"""What can be wrong with a tenant, its keys or its provider accounts."""

from __future__ import annotations

from payments_app.kernel.errors import GatewayError


class TenantNotFound(GatewayError):
    """No tenant has this slug or id."""

    code = "tenant_not_found"


class TenantExists(GatewayError):
    """Another tenant has this slug."""

    code = "tenant_exists"


class TenantSlugInvalid(GatewayError):
    """The slug can't stand in an address, or could be taken for an id."""

    code = "tenant_slug_invalid"


class TenantSettingInvalid(GatewayError):
    """One of a tenant's settings is malformed."""

    code = "tenant_setting_invalid"


class TenantSuspended(GatewayError):
    """The key is right, but its tenant may do nothing at present."""

    code = "tenant_suspended"


class ApiKeyExpired(GatewayError):
    """The key was right, and its time is over."""

    code = "api_key_expired"


class NetworkNotAllowed(GatewayError):
    """The key is right, but may not be used from this address."""

    code = "network_not_allowed"


class ScopeUnknown(GatewayError):
    """No scope has this name."""

    code = "scope_unknown"


class KeyEnded(GatewayError):
    """A revoked or expired key can't be rotated: issue a new one."""

    code = "key_ended"


class KeyNotFound(GatewayError):
    """No API key has this id or prefix."""

    code = "key_not_found"


class KeyNameInvalid(GatewayError):
    """The name of an API key is too long or holds unprintable characters."""

    code = "key_name_invalid"


class KeyModeUnusable(GatewayError):
    """A live key would find sandboxes only."""

    code = "key_mode_unusable"


class ProviderNotEnabled(GatewayError):
    """Neither the tenant nor the platform has an account there that this mode may reach."""

    code = "provider_not_enabled"


class ProviderAccountInvalid(GatewayError):
    """The account can't be stored as given."""

    code = "provider_account_invalid"


class ProviderAccountMoved(GatewayError):
    """The change would point an account at another place while payments may be in flight."""

    code = "provider_account_moved"


class ProviderAccountUnreadable(GatewayError):
    """The stored credentials can't be decrypted with the keys that this process has."""

    code = "provider_account_unreadable"


class TenantHeld(GatewayError):
    """The brake is on: nothing new is taken for this tenant at present."""

    code = "tenant_held"


class BreaksOpen(GatewayError):
    """What put the brake on hasn't been resolved."""

    code = "breaks_open"


class ReasonMissing(GatewayError):
    """Nobody puts the brake on, or says that a break is resolved, without saying why."""

    code = "reason_missing"
