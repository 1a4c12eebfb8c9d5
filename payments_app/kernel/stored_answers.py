"""Stored responses by idempotency key: stored with a change, found again, purged later."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from payments_app.kernel.database import database_now
from payments_app.kernel.idempotency import (
    CURRENT_VERSION,
    Attempt,
    IdempotencyKey,
    KeyRow,
    StoredAnswer,
    field_digests,
    fingerprint,
)


def keep_answer(
    session: Session,
    attempt: Attempt,
    *,
    resource_path: str,
    answer: StoredAnswer,
    keep_for: timedelta,
) -> bool:
    """Insert the key for a change that made no payment, in its transaction; False if it exists.

    If another transaction has inserted the key without committing yet, this waits for it. Raises
    sqlalchemy's OperationalError (LockNotAvailable) if that takes too long.
    """
    row = (
        insert(IdempotencyKey)
        .values(
            tenant_id=attempt.tenant_id,
            mode=str(attempt.mode),
            key=attempt.key,
            fingerprint=fingerprint(attempt, CURRENT_VERSION),
            fingerprint_version=CURRENT_VERSION,
            field_digests=field_digests(attempt, CURRENT_VERSION),
            resource_path=resource_path,
            status=answer.status,
            headers=dict(answer.headers),
            body=answer.body,
            expires_at=database_now() + keep_for,
        )
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    )
    return session.execute(row).first() is not None


def find_row(session: Session, attempt: Attempt) -> KeyRow | None:
    """The row of the attempt's key, if the key was used before."""
    query = select(IdempotencyKey, IdempotencyKey.expires_at <= database_now()).where(
        IdempotencyKey.tenant_id == attempt.tenant_id,
        IdempotencyKey.mode == str(attempt.mode),
        IdempotencyKey.key == attempt.key,
    )
    found = session.execute(query).first()
    if found is None:
        return None
    row, is_past_expiry = found
    names = (one.name for one in fields(KeyRow) if one.name != "is_past_expiry")
    return KeyRow(**{name: getattr(row, name) for name in names}, is_past_expiry=is_past_expiry)


def drop_answers(session: Session, keys: list[tuple[UUID, str, UUID]]) -> None:
    """Turn these (tenant, mode, key) into tombstones."""
    for tenant_id, mode, key in keys:
        session.execute(
            update(IdempotencyKey)
            .where(
                IdempotencyKey.tenant_id == tenant_id,
                IdempotencyKey.mode == mode,
                IdempotencyKey.key == key,
            )
            .values(body=None, headers=None, field_digests=None)
        )
