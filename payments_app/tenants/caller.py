"""Whose key this is, and what it may do: one look at the database for each request."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
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

# What an unknown prefix is compared with, so that it costs what a wrong secret costs.
_NO_HASH: Final = bytes(32)
# Nobody needs to know more exactly when a key was last used.
USE_NOTED_EVERY_S: Final = 60.0
# Keys remembered at once; more only means more notes.
REMEMBERED_MAX: Final = 10_000

# The function opens the wall for the one key with this prefix and its tenant, and no further.
_CALLER: Final = text(
    "SELECT (key).key_hash, (key).revoked_at, (key).id AS key_id, (key).mode, (key).scopes,"
    " (key).networks, (key).expires_at <= clock_timestamp() AS expired, (tenant).id AS tenant_id,"
    " (tenant).slug, (tenant).status, (tenant).require_idempotency_key, (tenant).rate_limit,"
    " (tenant).tenant_rate_limit, (tenant).default_provider, (tenant).held_at IS NOT NULL AS held"
    " FROM key_and_tenant(:prefix)"
)


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
    scopes: frozenset[Scope] = ALL_SCOPES
    tenant_rate_limit: str | None = None
    # The brake is on: see holds.py.
    held: bool = False


def hash_of(key: str) -> bytes:
    """What is stored of a key: SHA-256. A fast hash is enough for 190 random bits."""
    return hashlib.sha256(key.encode()).digest()


def verify_key(presented: str, *, source: str | None = None) -> Caller | None:
    """Whose key this is, or None for one that opens nothing; one round trip at most.

    `source` is the address that it comes from. Raises ApiKeyExpired, TenantSuspended and
    NetworkNotAllowed, but only once the key has proved right: nobody else learns it.
    """
    prefix = prefix_of(presented)
    if prefix is None:
        return None
    with snapshot() as connection:
        row = connection.execute(_CALLER, {"prefix": prefix}).one_or_none()
    proven = hmac.compare_digest(_NO_HASH if row is None else row.key_hash, hash_of(presented))
    if row is None or not proven or row.revoked_at is not None:
        return None
    if row.expired:
        raise ApiKeyExpired("The time of this API key is over.")
    if row.status != "active":
        raise TenantSuspended("This tenant is suspended.")
    if row.networks and not is_within(source, row.networks):
        raise NetworkNotAllowed("This API key may not be used from this address.")
    return Caller(
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


class UseNotes:
    """Notes when a key was last used, once a minute for each key and process and not oftener."""

    def __init__(self, seconds: Callable[[], float] = boot_seconds) -> None:
        self._seconds = seconds
        self._noted_at: dict[UUID, float] = {}

    def is_due(self, key_id: UUID) -> bool:
        """Whether it is time to note; who is told so notes."""
        now = self._seconds()
        if now - self._noted_at.get(key_id, float("-inf")) < USE_NOTED_EVERY_S:
            return False
        if len(self._noted_at) >= REMEMBERED_MAX:
            self._noted_at.clear()
        self._noted_at[key_id] = now
        return True


def note_use(caller: Caller) -> None:
    """Write down that the key was used. It is no reason for anything else to fail."""
    recent = database_now() - timedelta(seconds=USE_NOTED_EVERY_S)
    older = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < recent)
    noted = update(ApiKey).where(ApiKey.id == caller.key_id, older)
    try:
        with transaction(caller.tenant_id) as session:
            session.execute(noted.values(last_used_at=database_now()))
    except SQLAlchemyError as error:
        log.warning("key.use_not_noted", error=type(error).__name__)
