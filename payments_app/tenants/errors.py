"""Errors of tenants, their API keys and their provider accounts."""

from __future__ import annotations

from payments_app.kernel.errors import GatewayError


class TenantNotFound(GatewayError):
    """No tenant has this slug or id."""

    code = "tenant_not_found"


class TenantExists(GatewayError):
    """Another tenant has this slug."""

    code = "tenant_exists"


class TenantSlugInvalid(GatewayError):
    """The slug can't be part of a host name, or looks like an id."""

    code = "tenant_slug_invalid"


class TenantSettingInvalid(GatewayError):
    """One of a tenant's settings is malformed."""

    code = "tenant_setting_invalid"


class TenantSuspended(GatewayError):
    """The key is right, but its tenant is suspended."""

    code = "tenant_suspended"


class ApiKeyExpired(GatewayError):
    """The key is right, but it has expired."""

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
    """A live key would have only sandbox accounts to use."""

    code = "key_mode_unusable"


class ProviderNotEnabled(GatewayError):
    """Neither the tenant nor the platform has an account at the provider for this mode."""

    code = "provider_not_enabled"


class ProviderAccountInvalid(GatewayError):
    """The account is invalid and was not stored."""

    code = "provider_account_invalid"


class ProviderAccountMoved(GatewayError):
    """The change would move an account's address or environment while payments may be in flight."""

    code = "provider_account_moved"


class ProviderAccountUnreadable(GatewayError):
    """The stored credentials can't be decrypted with the keys that this process has."""

    code = "provider_account_unreadable"


class TenantHeld(GatewayError):
    """The tenant is held: nothing new is accepted for it at present."""

    code = "tenant_held"


class ViolationsOpen(GatewayError):
    """The violations that caused the hold are not resolved."""

    code = "breaks_open"


class ReasonMissing(GatewayError):
    """A hold, and the resolution of a violation, need a reason."""

    code = "reason_missing"
