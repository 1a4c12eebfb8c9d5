"""Authenticates a request's API key: whose key it is, and what it may do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import or_, text, update
from sqlalchemy.exc import SQLAlchemyError

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import database_now, snapshot, transaction
from payments_app.kernel.networks import is_within
from payments_app.providers.contract import Mode
from payments_app.tenants.errors import ApiKeyExpired, NetworkNotAllowed, TenantSuspended
from payments_app.tenants.key_format import prefix_of
from payments_app.tenants.model import ApiKey
from payments_app.tenants.scopes import ALL_SCOPES, Scope

log = structlog.get_logger(__name__)

# An unknown prefix is compared with this, so that it takes as long as a wrong secret.
_NO_HASH: Final = bytes(32)
# A key's last use is recorded with this precision.
USE_NOTED_EVERY_S: Final = 60.0
# A revoked key or a suspended tenant is refused everywhere after this. A busy key costs the
# database ten queries a second for each process.
KNOWN_FOR_S: Final = 0.1
# Keys cached at once; beyond that there are more queries and updates.
REMEMBERED_MAX: Final = 10_000

# A SECURITY DEFINER lookup: it returns only the key with this prefix, and its tenant.
_CALLER: Final = text(
    "SELECT (key).key_hash, (key).revoked_at, (key).id AS key_id, (key).mode, (key).scopes,"
    " (key).networks, (key).expires_at <= clock_timestamp() AS expired, (tenant).id AS tenant_id,"
    " (tenant).slug, (tenant).status, (tenant).require_idempotency_key, (tenant).rate_limit,"
    " (tenant).tenant_rate_limit, (tenant).default_provider, (tenant).held_at IS NOT NULL AS held"
    " FROM key_and_tenant(:prefix)"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller of a request, with the tenant's data that the request path needs."""

    tenant_id: UUID
    tenant_slug: str
    key_id: UUID
    mode: Mode
    require_idempotency_key: bool
    rate_limit: str | None
    default_provider: str | None
    scopes: frozenset[Scope] = ALL_SCOPES
    tenant_rate_limit: str | None = None
    # The tenant is held: see holds.py.
    held: bool = False


def hash_of(key: str) -> bytes:
    """The stored hash of a key: SHA-256. A fast hash is enough for 190 random bits."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class Known:
    """A key's row. The request must still prove, by the hash, that it has the whole key."""

    key_hash: bytes
    is_revoked: bool
    has_expired: bool
    tenant_is_active: bool
    networks: tuple[IPv4Network | IPv6Network, ...]
    caller: Caller


def look_up(prefix: str) -> Known | None:
    """The key with this prefix, in one round trip."""
    with snapshot() as connection:
        row = connection.execute(_CALLER, {"prefix": prefix}).one_or_none()
    if row is None:
        return None
    caller = Caller(
        tenant_id=row.tenant_id,
        tenant_slug=row.slug,
        key_id=row.key_id,
        mode=Mode(row.mode),
        require_idempotency_key=row.require_idempotency_key,
        rate_limit=row.rate_limit,
        default_provider=row.default_provider,
        scopes=frozenset(Scope(name) for name in row.scopes),
        tenant_rate_limit=row.tenant_rate_limit,
        held=row.held,
    )
    return Known(
        key_hash=row.key_hash,
        is_revoked=row.revoked_at is not None,
        has_expired=bool(row.expired),
        tenant_is_active=row.status == "active",
        networks=tuple(row.networks or ()),
        caller=caller,
    )


def verify_key(
    presented: str,
    *,
    source: str | None = None,
    look_up: Callable[[str], Known | None] = look_up,
) -> Caller | None:
    """The caller whose key this is, or None for an unknown, wrong or revoked key.

    `source` is the client's address. Raises ApiKeyExpired, TenantSuspended and NetworkNotAllowed,
    but only after the hash has matched: a request with a wrong key doesn't learn these.
    """
    prefix = prefix_of(presented)
    if prefix is None:
        return None
    known = look_up(prefix)
    proven = hmac.compare_digest(_NO_HASH if known is None else known.key_hash, hash_of(presented))
    if known is None or not proven or known.is_revoked:
        return None
    if known.has_expired:
        raise ApiKeyExpired("The time of this API key is over.")
    if not known.tenant_is_active:
        raise TenantSuspended("This tenant is suspended.")
    if known.networks and not is_within(source, known.networks):
        raise NetworkNotAllowed("This API key may not be used from this address.")
    return known.caller


class Keys:
    """Caches keys: each is looked up at most once in KNOWN_FOR_S, and is never older than that."""

    def __init__(self, seconds: Callable[[], float] = boot_seconds) -> None:
        self._seconds = seconds
        self._known: dict[str, tuple[float, Known]] = {}

    def has_seen(self, prefix: str) -> bool:
        """Whether the cache has a key with this prefix."""
        return prefix in self._known

    def look_up(self, prefix: str) -> Known | None:
        """See look_up. An unknown prefix is not cached."""
        now = self._seconds()
        read_at, known = self._known.get(prefix, (float("-inf"), None))
        if known is not None and now - read_at < KNOWN_FOR_S:
            return known
        known = look_up(prefix)
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()
        if known is not None:
            # The age counts from before the query.
            self._known[prefix] = (now, known)
        return known


class UseNotes:
    """Limits updates of a key's last use to one a minute for each key and process."""

    def __init__(self, seconds: Callable[[], float] = boot_seconds) -> None:
        self._seconds = seconds
        self._noted_at: dict[UUID, float] = {}

    def is_due(self, key_id: UUID) -> bool:
        """Whether an update is due. After True the caller must write it: see `note_use`."""
        now = self._seconds()
        if now - self._noted_at.get(key_id, float("-inf")) < USE_NOTED_EVERY_S:
            return False
        if len(self._noted_at) >= REMEMBERED_MAX:
            self._noted_at.clear()
        self._noted_at[key_id] = now
        return True


def note_use(caller: Caller) -> None:
    """Record that the key was used. A failure is logged only: the request must not fail for it."""
    recent = database_now() - timedelta(seconds=USE_NOTED_EVERY_S)
    older = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < recent)
    noted = update(ApiKey).where(ApiKey.id == caller.key_id, older)
    try:
        with transaction(caller.tenant_id) as session:
            session.execute(noted.values(last_used_at=database_now()))
    except SQLAlchemyError as error:
        log.warning("key.use_not_noted", error=type(error).__name__)
