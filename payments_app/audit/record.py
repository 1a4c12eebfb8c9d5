"""Adds audit entries. An entry commits in one transaction with its change, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy.orm import Session

from payments_app.audit.model import AuditEntry
from payments_app.audit.origin import origin


def record(  # noqa: PLR0913  an entry has these columns, and no two may be mixed up
    session: Session,
    *,
    tenant_id: UUID,
    actor: str,
    action: str,
    subject_type: str,
    subject_id: UUID | str,
    request_id: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Add one entry in the caller's transaction. `detail` is plain JSON and holds no secret.

    The source comes from the thread's origin, and so does the request id if none is given.
    """
    session.add(
        AuditEntry(
            tenant_id=tenant_id,
            actor=actor,
            action=action,
            subject_type=subject_type,
            subject_id=str(subject_id),
            source=origin().source,
            request_id=request_id or origin().request_id,
            detail=dict(detail or {}),
        )
    )
