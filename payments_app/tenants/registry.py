"""Creates and changes tenants. Each change commits together with its audit entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypedDict, Unpack
from uuid import UUID

from limits import parse_many
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.tenants.errors import (
    TenantExists,
    TenantNotFound,
    TenantSettingInvalid,
    TenantSlugInvalid,
)
from payments_app.tenants.model import Tenant

# A slug is a DNS label, so that it can become a host name.
_SLUG: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PROVIDER: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
# A name must fit in one line of a table.
NAME_LENGTH_MAX: Final = 200
# Longer than any sensible list of limits.
_RATE_LENGTH_MAX: Final = 200


class TenantSettings(TypedDict, total=False):
    """A tenant's settings. A key that is left out stays as it is. None: the platform's value."""

    require_idempotency_key: bool
    rate_limit: str | None
    tenant_rate_limit: str | None
    default_provider: str | None


def create_tenant(
    *, slug: str, name: str = "", actor: str, **settings: Unpack[TenantSettings]
) -> Tenant:
    """Create an active tenant; an empty `name` becomes the slug.

    Raises TenantSlugInvalid, TenantExists, TenantSettingInvalid.
    """
    _check_slug(slug)
    name = _checked_name(name or slug)
    _check_settings(settings)
    tenant_id = uuid7()
    fresh = (
        insert(Tenant)
        .values(id=tenant_id, slug=slug, name=name, **settings)
        # If two transactions insert one slug, the second waits for the first, and gets no row.
        .on_conflict_do_nothing(index_elements=[Tenant.slug])
        .returning(Tenant)
    )
    with transaction(tenant_id) as session:
        tenant = session.scalar(fresh)
        if tenant is None:
            raise TenantExists(f"There is a tenant {slug!r} already.")
        detail = {"slug": slug, "name": name, **settings}
        _record(session, tenant, actor=actor, action="tenant.created", detail=detail)
        return tenant


def list_tenants() -> list[Tenant]:
    """All tenants by slug."""
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(select(Tenant).order_by(Tenant.slug)))


def find_tenant(slug_or_id: str) -> Tenant:
    """One tenant. Raises TenantNotFound."""
    tenant_id = as_id(slug_or_id)
    wanted = Tenant.slug == slug_or_id if tenant_id is None else Tenant.id == tenant_id
    # PostgreSQL accepts no NUL in a text, and no slug has one.
    with transaction(EVERY_TENANT) as session:
        tenant = None if "\0" in slug_or_id else session.scalar(select(Tenant).where(wanted))
    if tenant is None:
        raise TenantNotFound(f"There is no tenant {slug_or_id[:64]!r}.")
    return tenant


def suspend_tenant(tenant: Tenant, *, actor: str) -> Tenant:
    """Suspend the tenant: its keys are refused from now on; payments in flight continue."""
    return _change_status(tenant, "suspended", actor=actor, action="tenant.suspended")


def resume_tenant(tenant: Tenant, *, actor: str) -> Tenant:
    """End a suspension: the tenant's keys work again."""
    return _change_status(tenant, "active", actor=actor, action="tenant.resumed")


def configure_tenant(tenant: Tenant, *, actor: str, **settings: Unpack[TenantSettings]) -> Tenant:
    """Change the given settings, and no others. Raises TenantSettingInvalid."""
    _check_settings(settings)
    if not settings:
        return tenant
    change = update(Tenant).where(Tenant.id == tenant.id).values(**settings).returning(Tenant)
    with transaction(tenant.id) as session:
        changed = session.scalars(change).one()
        _record(session, tenant, actor=actor, action="tenant.configured", detail=settings)
        return changed


def as_id(text: str) -> UUID | None:
    """`text` as an id if it is a UUID in canonical form, else None. No slug has that form."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if str(found) == text.lower() else None


def checked_line(text: str, *, length_max: int) -> str:
    """`text` without surrounding space. Raises ValueError unless it is a short printable line."""
    text = text.strip()
    if len(text) > length_max or not text.isprintable():
        raise ValueError(f"must be one line of at most {length_max} printable characters")
    return text


def _change_status(tenant: Tenant, status: str, *, actor: str, action: str) -> Tenant:
    """Set the status. If the tenant has it already, nothing changes and no entry is written."""
    change = (
        update(Tenant)
        .where(Tenant.id == tenant.id, Tenant.status != status)
        .values(status=status)
        .returning(Tenant)
    )
    with transaction(tenant.id) as session:
        changed = session.scalar(change)
        if changed is not None:
            _record(session, tenant, actor=actor, action=action, detail={})
            return changed
        return session.scalars(select(Tenant).where(Tenant.id == tenant.id)).one()


def _record(
    session: Session, tenant: Tenant, *, actor: str, action: str, detail: Mapping[str, object]
) -> None:
    record(
        session,
        tenant_id=tenant.id,
        actor=actor,
        action=action,
        subject_type="tenant",
        subject_id=tenant.id,
        detail=detail,
    )


def _check_slug(slug: str) -> None:
    if _SLUG.fullmatch(slug) is None:
        raise TenantSlugInvalid(
            "A slug has 1 to 63 lower-case letters, digits and hyphens,"
            " and neither starts nor ends with a hyphen."
        )
    if as_id(slug) is not None:
        raise TenantSlugInvalid("A slug may not look like an id (UUID).")


def _checked_name(name: str) -> str:
    try:
        return checked_line(name, length_max=NAME_LENGTH_MAX)
    except ValueError as error:
        raise TenantSettingInvalid(f"The name {error}.") from None


def _check_settings(settings: TenantSettings) -> None:
    for rate in (settings.get("rate_limit"), settings.get("tenant_rate_limit")):
        if rate is not None and not _is_rate(rate):
            raise TenantSettingInvalid(
                "The rate limit must be in Flask-Limiter's notation, such as 100 per minute."
            )
    provider = settings.get("default_provider")
    if provider is not None and _PROVIDER.fullmatch(provider) is None:
        raise TenantSettingInvalid("The default provider must be a code such as mtn_momo.")


def _is_rate(text: str) -> bool:
    try:
        limits = parse_many(text)
    except ValueError:
        return False
    fits = text.isprintable() and len(text) <= _RATE_LENGTH_MAX
    return fits and all(limit.amount > 0 for limit in limits)
