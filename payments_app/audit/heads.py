"""The newest entry's hash of each chain, said aloud: a log that leaves the host keeps what a superuser can't bend.

`flask audit verify --head` finds it in the chain, or the chain isn't the one that it was.
"""

from __future__ import annotations

import threading
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import text

from payments_app.kernel.database import EVERY_TENANT, transaction

log = structlog.get_logger(__name__)

# A look at the end of each chain, by its index.
_HEADS: Final = text(
    """
    SELECT t.id, e.position, encode(e.hash, 'hex') AS hash FROM tenants t CROSS JOIN LATERAL (
        SELECT position, hash FROM audit_entries
        WHERE tenant_id = t.id ORDER BY position DESC LIMIT 1
    ) e ORDER BY t.id
    """
)


class HeadPublisher:
    """Says each head that this process has not said yet."""

    def __init__(self) -> None:
        self._said: dict[UUID, str] = {}
        self._lock = threading.Lock()

    def publish(self) -> int:
        """A line for each chain that has grown since; how many. All of them at first."""
        with self._lock:
            with transaction(EVERY_TENANT) as session:
                heads = session.execute(_HEADS).all()
            new = [head for head in heads if self._said.get(head.id) != head.hash]
            for head in new:
                log.info(
                    "audit.head",
                    audited_tenant_id=str(head.id),
                    position=head.position,
                    hash=head.hash,
                )
            self._said = {head.id: head.hash for head in heads}
        return len(new)
