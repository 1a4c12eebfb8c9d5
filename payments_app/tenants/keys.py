"""A key is shown once; afterwards only its hash is known, and a revoked one opens nothing.

`mara_live_<prefix>_<secret><checksum>`: what stands before the secret is public and finds the
row; the fixed start and the checksum (CRC32 in base 62, over all before it) let a secret
scanner tell a key from noise, and let us refuse noise without asking the database.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, database_now, snapshot, transaction
from payments_app.providers.contract import Mode
from payments_app.tenants.errors import KeyNameInvalid, KeyNotFound, TenantSuspended
from payments_app.tenants.model import ApiKey, Tenant
from payments_app.tenants.registry import as_id, checked_line

ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
# 62**10 prefixes: two alike are not to be expected, and the database would refuse the second.
PREFIX_LENGTH: Final = 10
# log2(62**32) = 190 bits: not to be guessed, so a fast hash is enough to keep it.
SECRET_LENGTH: Final = 32
# 62**6 > 2**32: every CRC32 fits.
CHECKSUM_LENGTH: Final = 6
KEY_PATTERN: Final = re.compile(
    rf"(mara_(?:live|test)_[0-9A-Za-z]{{{PREFIX_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
)
_PREFIX_PATTERN: Final = re.compile(rf"mara_(?:live|test)_[0-9A-Za-z]{{{PREFIX_LENGTH}}}")
NAME_LENGTH_MAX: Final = 100
# What an unknown prefix is compared with, so that it costs what a wrong secret costs.
_NO_HASH: Final = bytes(32)

# The function opens the wall for the one key with this prefix and its tenant, and no further.
_CALLER: Final = text(
    "SELECT (key).key_hash, (key).revoked_at, (key).id AS key_id, (key).mode,"
    " (tenant).id AS tenant_id, (tenant).slug, (tenant).status,"
    " (tenant).require_idempotency_key, (tenant).rate_limit, (tenant).default_provider"
    " FROM key_and_tenant(:prefix)"
)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. `key` exists here and nowhere else: show it, then forget it."""

    id: UUID
    prefix: str
    key: str = field(repr=False)
    mode: Mode
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, proven by a key, with what the request path needs to know of the tenant."""

    tenant_id: UUID
    tenant_slug: str
    key_id: UUID
    mode: Mode
    require_idempotency_key: bool
    rate_limit: str | None
    default_provider: str | None


def issue_key(tenant: Tenant, *, mode: Mode, name: str = "", actor: str) -> IssuedKey:
    """A new key for `tenant`. Raises KeyNameInvalid."""
    name = _checked_name(name)
    prefix, key = new_key(mode)
    fresh = (
        insert(ApiKey)
        .values(
            id=uuid7(),
            tenant_id=tenant.id,
            prefix=prefix,
            key_hash=_hash(key),
            mode=mode.value,
            name=name,
        )
        .returning(ApiKey)
    )
    with transaction(tenant.id) as session:
        row = session.scalars(fresh).one()
        _record(session, row, actor=actor, action="key.issued")
    return IssuedKey(
        id=row.id, prefix=prefix, key=key, mode=mode, name=name, created_at=row.created_at
    )


def list_keys(tenant: Tenant) -> list[ApiKey]:
    """The tenant's keys, newest first, revoked ones included."""
    newest_first = (ApiKey.created_at.desc(), ApiKey.id.desc())
    wanted = select(ApiKey).where(ApiKey.tenant_id == tenant.id).order_by(*newest_first)
    with transaction(tenant.id) as session:
        return list(session.scalars(wanted))


def revoke_key(id_or_prefix: str, *, actor: str) -> ApiKey:
    """From now on the key opens nothing. Revoking it again changes nothing.

    Takes the id, the prefix, or a whole key that was found where it shouldn't be.
    Raises KeyNotFound.
    """
    key_id = as_id(id_or_prefix)
    public = _PREFIX_PATTERN.match(id_or_prefix)
    if key_id is None and public is None:
        # What was given isn't repeated: it may be most of a key.
        raise KeyNotFound("That is neither the id nor the prefix of an API key.")
    wanted = ApiKey.prefix == public[0] if public else ApiKey.id == key_id
    with transaction(EVERY_TENANT) as session:
        row = session.scalar(select(ApiKey).where(wanted).with_for_update())
        if row is None:
            raise KeyNotFound("There is no such API key.")
        if row.revoked_at is None:
            row = _revoke(session, row, actor=actor)
        return row


def verify_key(presented: str) -> Caller | None:
    """Whose key this is, or None for one that opens nothing; one round trip at most.

    Raises TenantSuspended, but only once the key has proved right: nobody else learns it.
    """
    prefix = prefix_of(presented)
    if prefix is None:
        return None
    with snapshot() as connection:
        row = connection.execute(_CALLER, {"prefix": prefix}).one_or_none()
    proven = hmac.compare_digest(_NO_HASH if row is None else row[0], _hash(presented))
    if row is None or not proven:
        return None
    _, revoked_at, key_id, mode, tenant_id, slug, status, require_key, rate_limit, provider = row
    if revoked_at is not None:
        return None
    if status != "active":
        raise TenantSuspended("This tenant is suspended.")
    return Caller(
        tenant_id=tenant_id,
        tenant_slug=slug,
        key_id=key_id,
        mode=Mode(mode),
        require_idempotency_key=require_key,
        rate_limit=rate_limit,
        default_provider=provider,
    )


def new_key(mode: Mode) -> tuple[str, str]:
    """A random prefix and the whole key that starts with it."""
    prefix = f"mara_{mode.value}_{_random_text(PREFIX_LENGTH)}"
    unsigned = f"{prefix}_{_random_text(SECRET_LENGTH)}"
    return prefix, unsigned + checksum(unsigned)


def prefix_of(presented: str) -> str | None:
    """The public part of what has a key's form and a right checksum, else None."""
    found = KEY_PATTERN.fullmatch(presented)
    if found is None or checksum(presented[:-CHECKSUM_LENGTH]) != presented[-CHECKSUM_LENGTH:]:
        return None
    return found[1]


def checksum(unsigned: str) -> str:
    """CRC32 in base 62, padded. It finds typing errors; it proves nothing."""
    rest = zlib.crc32(unsigned.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


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
    record(
        session,
        tenant_id=row.tenant_id,
        actor=actor,
        action=action,
        subject_type="api_key",
        subject_id=row.id,
        detail={"prefix": row.prefix, "mode": row.mode, "name": row.name},
    )
