"""One accept per idempotency key: Postgres decides which request is first and stores its response.

Later requests with the key get that response. The rules are those of
draft-ietf-httpapi-idempotency-key-header-07; docs/idempotency.md says what the draft leaves open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, cast
from uuid import UUID

import orjson
from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from payments_app.kernel.database import Base
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.one_statement import insert_from, values_for

Fields = Mapping[str, str]
_DIGEST_CHARS: Final = 16


class IdempotencyKey(Base):
    """A key, the request that first used it, and its response. Never deleted.

    Once the response has expired, `body`, `headers` and `field_digests` are NULL and the row
    is a tombstone: a request with the key still can't create anything.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        CheckConstraint("mode IN ('live', 'test')", name="mode_known"),
        CheckConstraint("octet_length(fingerprint) = 32", name="fingerprint_is_sha256"),
        CheckConstraint(
            "num_nonnulls(resource_id, resource_path) = 1", name="stands_for_one_thing"
        ),
        Index(
            "ix_idempotency_keys_expiry", "expires_at", postgresql_where=text("body IS NOT NULL")
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    mode: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[UUID] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    fingerprint_version: Mapped[int]
    field_digests: Mapped[dict[str, str] | None] = mapped_column(JSONB(none_as_null=True))
    # The payment that was created, or the path of another resource that was created or changed.
    resource_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("payments.id", deferrable=True, initially="DEFERRED")
    )
    resource_path: Mapped[str | None] = mapped_column(Text)
    status: Mapped[int]
    headers: Mapped[dict[str, str] | None] = mapped_column(JSONB(none_as_null=True))
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(
        TIMESTAMP(timezone=True), server_default=text("clock_timestamp()")
    )
    expires_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True))


_TABLE: Final = cast(Table, IdempotencyKey.__table__)


class KeyMissing(GatewayError):
    """The tenant requires a key and the request has none."""

    code = "idempotency_key_missing"


class KeyInvalid(GatewayError):
    """The header is not one UUID, bare or quoted."""

    code = "idempotency_key_invalid"


class KeyReused(GatewayError):
    """The key was first used for another request. `fields` has the names that differ, no values."""

    code = "idempotency_key_reused"


class KeyInProgress(GatewayError):
    """The first request with this key is still running after our bounded wait."""

    code = "idempotency_key_in_progress"


class KeyExpired(GatewayError):
    """The stored response was purged. The first request had its effect; this one has none."""

    code = "idempotency_key_expired"


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A stored response that is sent again, byte for byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request with a key. `fields`: the validated request, each value in one canonical form.

    `digest`: HMAC-SHA256 with a key of the tenant, so that a phone number can't be found by trial.
    """

    tenant_id: UUID
    mode: str
    key: UUID
    fields: Fields = field(repr=False)
    digest: Callable[[bytes], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Earlier:
    """The result of the key's first request. `answer` is None once it has been purged."""

    resource_id: UUID | None
    answer: StoredAnswer | None
    is_past_expiry: bool
    resource_path: str | None = None

    @property
    def payment_id(self) -> UUID:
        """The payment. Raises RuntimeError if the key belongs to another resource."""
        if self.resource_id is None:
            # earlier_of has raised KeyReused before: no other request has a payment's fingerprint.
            raise RuntimeError("this key stands for no payment")
        return self.resource_id


def claim_from(source: str) -> str:
    """The part of an `execute_autocommit` that inserts the key: one row, or none if it exists.

    It waits for another transaction's uncommitted insert of the key, up to the lock timeout.
    """
    row = ("tenant_id", "mode", "key", "fingerprint", "fingerprint_version", "field_digests")
    until = f"clock_timestamp() + %({_TABLE.name}_keep_for)s::interval"
    answer = ("resource_id", "status", "headers", "body")
    inserted = insert_from(_TABLE, (*row, *answer), source, expires_at=until)
    return f"{inserted} ON CONFLICT DO NOTHING RETURNING key"


def claim_values(
    attempt: Attempt, *, resource_id: UUID, answer: StoredAnswer, keep_for: timedelta
) -> dict[str, Any]:
    """The values for `claim_from`."""
    return values_for(
        _TABLE,
        tenant_id=attempt.tenant_id,
        mode=str(attempt.mode),
        key=attempt.key,
        fingerprint=fingerprint(attempt, CURRENT_VERSION),
        fingerprint_version=CURRENT_VERSION,
        field_digests=orjson.dumps(field_digests(attempt, CURRENT_VERSION)).decode(),
        resource_id=resource_id,
        status=answer.status,
        headers=orjson.dumps(dict(answer.headers)).decode(),
        body=answer.body,
        keep_for=keep_for,
    )


@dataclass(frozen=True, slots=True)
class KeyRow:
    """The row of a key. Without `body` it is a tombstone."""

    fingerprint: bytes
    fingerprint_version: int
    field_digests: Mapping[str, str] | None
    resource_id: UUID | None
    status: int
    headers: Mapping[str, str] | None
    body: bytes | None = field(repr=False)
    is_past_expiry: bool
    resource_path: str | None = None


def place_of(attempt: Attempt) -> dict[str, Any]:
    """The values that find the key's row, under the names of `claim_values`."""
    return values_for(_TABLE, mode=str(attempt.mode), key=attempt.key)


def earlier_of(attempt: Attempt, row: KeyRow) -> Earlier:
    """The first request's result, for this attempt. Raises KeyReused if that request differed."""
    if fingerprint(attempt, row.fingerprint_version) != row.fingerprint:
        raise KeyReused(
            "This Idempotency-Key was first used for a different request.",
            fields=_differing(attempt, row),
        )
    answer = None
    if row.body is not None:
        answer = StoredAnswer(row.status, row.headers or {}, row.body)
    return Earlier(row.resource_id, answer, row.is_past_expiry, row.resource_path)


def fingerprint(attempt: Attempt, version: int) -> bytes:
    """SHA-256 over the validated request, by the algorithm of that version."""
    # The key is a salt: equal requests with two keys have different fingerprints.
    canonical = json.dumps(dict(attempt.fields), sort_keys=True, separators=(",", ":"))
    return _DIGESTS[version](attempt, f"{version}:{attempt.key}:{canonical}")


def _plain(_attempt: Attempt, canonical: str) -> bytes:
    return hashlib.sha256(canonical.encode()).digest()


def _keyed(attempt: Attempt, canonical: str) -> bytes:
    return attempt.digest(canonical.encode())


# An algorithm stays here as long as keys of its version exist. So a client's retry across a deploy
# is neither refused nor carried out twice.
_DIGESTS: Final[dict[int, Callable[[Attempt, str], bytes]]] = {1: _plain, 2: _keyed}
CURRENT_VERSION: Final = 2


def field_digests(attempt: Attempt, version: int) -> dict[str, str]:
    """A digest of each field, to find the fields in which a later request differs."""
    return {
        name: _DIGESTS[version](attempt, f"{attempt.key}:{name}={value}").hex()[:_DIGEST_CHARS]
        for name, value in attempt.fields.items()
    }


def _differing(attempt: Attempt, row: KeyRow) -> list[str]:
    stored = row.field_digests
    if stored is None:
        return []
    presented = field_digests(attempt, row.fingerprint_version)
    names = presented.keys() | stored.keys()
    return sorted(name for name in names if presented.get(name) != stored.get(name))
