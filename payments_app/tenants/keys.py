"""Issue, rotate and revoke API keys. A key is shown once; only its hash is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from payments_app.audit.comparison import fingerprint
from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, database_now, set_tenant, transaction
from payments_app.providers.contract import Mode
from payments_app.tenants.caller import hash_of
from payments_app.tenants.errors import KeyEnded, KeyNameInvalid, KeyNotFound
from payments_app.tenants.key_format import PREFIX_PATTERN, new_key
from payments_app.tenants.model import ApiKey, Tenant
from payments_app.tenants.registry import as_id, checked_line
from payments_app.tenants.scopes import DEFAULT_SCOPES, Scope

NAME_LENGTH_MAX: Final = 100


class _AsLongAgain(Enum):
    VALUE = "as long as the key before it"


# A new key's lifetime in a rotation: the same as that of the key that it replaces.
AS_LONG_AGAIN: Final = _AsLongAgain.VALUE


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be issued. `lifetime` None: until it is revoked; no `networks`: from anywhere."""

    mode: Mode
    name: str = ""
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    networks: Sequence[IPv4Network | IPv6Network] = ()
    lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. `key` is stored nowhere: show it once, then drop it."""

    id: UUID
    prefix: str
    key: str = field(repr=False)
    mode: Mode
    name: str
    created_at: datetime
    scopes: frozenset[Scope]
    networks: Sequence[IPv4Network | IPv6Network]
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class RotatedKey:
    """A new key that replaces another one, which works until `old_expires_at`."""

    issued: IssuedKey
    replaces: UUID
    old_expires_at: datetime


def issue_key(tenant: Tenant, wanted: NewKey, *, actor: str) -> IssuedKey:
    """A new key for `tenant`. Raises KeyNameInvalid."""
    wanted = replace(wanted, name=_checked_name(wanted.name))
    with transaction(tenant.id) as session:
        return _issue(session, tenant.id, wanted, actor=actor)


def list_keys(tenant: Tenant) -> list[ApiKey]:
    """The tenant's keys, newest first, revoked ones included."""
    newest_first = (ApiKey.created_at.desc(), ApiKey.id.desc())
    wanted = select(ApiKey).where(ApiKey.tenant_id == tenant.id).order_by(*newest_first)
    with transaction(tenant.id) as session:
        return list(session.scalars(wanted))


def rotate_key(
    id_or_prefix: str,
    *,
    overlap: timedelta,
    actor: str,
    lifetime: timedelta | Literal[_AsLongAgain.VALUE] | None = AS_LONG_AGAIN,
) -> RotatedKey:
    """A new key with the same rights. The old key ends after `overlap`, or at its own earlier end.

    `lifetime`: the new key's, None for no end. Raises KeyNotFound, KeyEnded.
    """
    with transaction(EVERY_TENANT) as session:
        old = _locked(session, id_or_prefix)
        set_tenant(session, old.tenant_id)
        now: datetime = session.scalars(select(database_now())).one()
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise KeyEnded("This API key has ended already: issue a new one.")
        same = NewKey(
            mode=Mode(old.mode),
            name=old.name,
            scopes=frozenset(Scope(name) for name in old.scopes),
            networks=tuple(old.networks),
            lifetime=_lifetime(old) if lifetime is AS_LONG_AGAIN else lifetime,
        )
        issued = _issue(session, old.tenant_id, same, actor=actor)
        ending = update(ApiKey).where(ApiKey.id == old.id)
        ending = ending.values(expires_at=func.least(ApiKey.expires_at, now + overlap))
        ended = session.scalars(ending.returning(ApiKey)).one()
        _record(session, ended, actor=actor, action="key.rotated")
        if ended.expires_at is None:
            raise RuntimeError("the old key has no end")
        return RotatedKey(issued, old.id, ended.expires_at)


def revoke_key(id_or_prefix: str, *, actor: str) -> ApiKey:
    """Revoke the key: from now on it is refused. Revoking it again changes nothing.

    Takes the id, the prefix, or a whole key that was leaked. Raises KeyNotFound.
    """
    with transaction(EVERY_TENANT) as session:
        row = _locked(session, id_or_prefix)
        set_tenant(session, row.tenant_id)
        if row.revoked_at is None:
            row = _revoke(session, row, actor=actor)
        return row


def _issue(session: Session, tenant_id: UUID, wanted: NewKey, *, actor: str) -> IssuedKey:
    prefix, key = new_key(wanted.mode)
    ends = None if wanted.lifetime is None else database_now() + wanted.lifetime
    fresh = insert(ApiKey).values(
        id=uuid7(),
        tenant_id=tenant_id,
        prefix=prefix,
        key_hash=hash_of(key),
        mode=wanted.mode.value,
        name=wanted.name,
        scopes=sorted(wanted.scopes),
        networks=list(wanted.networks),
        expires_at=ends,
    )
    row = session.scalars(fresh.returning(ApiKey)).one()
    _record(session, row, actor=actor, action="key.issued")
    return IssuedKey(
        id=row.id,
        prefix=prefix,
        key=key,
        mode=wanted.mode,
        name=row.name,
        created_at=row.created_at,
        scopes=wanted.scopes,
        networks=tuple(row.networks),
        expires_at=row.expires_at,
    )


def _lifetime(row: ApiKey) -> timedelta | None:
    """The key's lifetime from its issue; for a rotated key, until the end of the overlap."""
    return None if row.expires_at is None else row.expires_at - row.created_at


def _locked(session: Session, id_or_prefix: str) -> ApiKey:
    key_id = as_id(id_or_prefix)
    public = PREFIX_PATTERN.match(id_or_prefix)
    if key_id is None and public is None:
        # The message doesn't repeat the input: it may be most of a key.
        raise KeyNotFound("That is neither the id nor the prefix of an API key.")
    wanted = ApiKey.prefix == public[0] if public else ApiKey.id == key_id
    row = session.scalar(select(ApiKey).where(wanted).with_for_update(key_share=True))
    if row is None:
        raise KeyNotFound("There is no such API key.")
    return row


def _checked_name(name: str) -> str:
    try:
        return checked_line(name, length_max=NAME_LENGTH_MAX)
    except ValueError as error:
        raise KeyNameInvalid(f"The name of a key {error}.") from None


def _revoke(session: Session, row: ApiKey, *, actor: str) -> ApiKey:
    change = update(ApiKey).where(ApiKey.id == row.id).values(revoked_at=database_now())
    revoked = session.scalars(change.returning(ApiKey)).one()
    _record(session, revoked, actor=actor, action="key.revoked")
    return revoked


def _record(session: Session, row: ApiKey, *, actor: str, action: str) -> None:
    detail: dict[str, object] = {
        "prefix": row.prefix,
        "mode": row.mode,
        "name": row.name,
        "scopes": sorted(row.scopes),
        "fingerprint": fingerprint(row.key_hash),
    }
    if row.networks:
        detail["networks"] = [str(network) for network in row.networks]
    if row.expires_at is not None:
        detail["expires_at"] = row.expires_at.isoformat()
    record(
        session,
        tenant_id=row.tenant_id,
        actor=actor,
        action=action,
        subject_type="api_key",
        subject_id=row.id,
        detail=detail,
    )
