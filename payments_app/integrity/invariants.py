"""Checks the rows for what must always hold; a violation holds the tenant.

A payment is checked whenever it has changed, and all once a day with the whole record. The first
two find duplicates, the next four a wrong status, RECORD_UNBENT a tampered record. The last finds
open payments that nobody can decrypt, and so nobody sends: it holds no tenant, others may go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from payments_app.audit.stream import take_time
from payments_app.integrity.unreadable import unreadable_payments
from payments_app.integrity.verification import verify_record
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.secrets import Cipher
from payments_app.payments.model import InvariantViolation
from payments_app.tenants.holds import hold_in
from payments_app.tenants.registry import list_tenants
from payments_app.tenants.rotation import ENCRYPTED_COLUMNS, opens_newest_secrets
from payments_app.webhooks.encrypted_columns import WEBHOOK_ENCRYPTED_COLUMNS

log = structlog.get_logger(__name__)

ACTOR: Final = "system:invariants"


class Invariant(StrEnum):
    """The invariants. The values are those of the metric's label."""

    ONE_REFERENCE = "one_reference"
    ONE_PAYMENT_A_TRANSACTION = "one_payment_a_transaction"
    END_HAS_EVIDENCE = "end_has_evidence"
    REFUSAL_OF_ONLY_REQUEST = "refusal_of_only_request"
    END_STANDS = "end_stands"
    STORY_AGREES = "story_agrees"
    RECORD_UNBENT = "record_unbent"
    OPEN_PAYMENT_READABLE = "open_payment_readable"


# These hold no tenant, or a process started without one of SECRET_KEYS would stop tenants.
_WITHOUT_HOLD: Final = {Invariant.OPEN_PAYMENT_READABLE}


class Break(NamedTuple):
    """A violation. `subject`: a payment's id, or a row of the record."""

    tenant_id: UUID
    invariant: Invariant
    subject: str
    detail: str


_CHANGED: Final = "(SELECT payment_id FROM events WHERE id > :after AND id <= :through)"
# Each returns tenant, subject and detail of its violations. `{which}` limits it to some payments.
_QUERIES: Final = {
    Invariant.ONE_REFERENCE: """
        SELECT DISTINCT p.tenant_id, p.id::text,
               'something was sent under reference ' || x.reference
        FROM payments p JOIN provider_exchanges x ON x.payment_id = p.id
        WHERE x.reference <> p.reference {which}
    """,
    Invariant.END_HAS_EVIDENCE: """
        SELECT p.tenant_id, p.id::text,
               p.status || ', and the evidence says ' || coalesce(x.verdict, 'nothing')
        FROM payments p
        LEFT JOIN provider_exchanges x ON x.id = p.evidence_id AND x.payment_id = p.id
        WHERE p.status <> 'PENDING' AND x.verdict IS DISTINCT FROM p.status
          AND NOT (p.status = 'FAILED' AND coalesce(x.verdict, '') = 'REFUSED') {which}
    """,
    Invariant.REFUSAL_OF_ONLY_REQUEST: """
        SELECT p.tenant_id, p.id::text, 'FAILED by a refusal, and another request had left'
        FROM payments p
        JOIN provider_exchanges x ON x.id = p.evidence_id AND x.payment_id = p.id
        WHERE p.status = 'FAILED' AND x.kind = 'submit' AND x.verdict IN ('REFUSED', 'FAILED')
          AND NOT refusal_ends_payment(p.id, x.id)
          -- Nobody counted before migration 0010.
          AND EXISTS (SELECT FROM provider_exchanges y
                      WHERE y.payment_id = p.id AND y.requests_left IS NOT NULL) {which}
    """,
    Invariant.END_STANDS: """
        SELECT DISTINCT p.tenant_id, p.id::text,
               p.status || ', and later the provider said ' || (e.data->>'verdict')
        FROM payments p JOIN events e ON e.payment_id = p.id
        WHERE e.type = 'payment.contradicted' {which}
    """,
    Invariant.STORY_AGREES: """
        SELECT p.tenant_id, p.id::text,
               p.status || ', and its last event says ' || coalesce(e.status, 'nothing')
        FROM payments p
        LEFT JOIN events e ON e.payment_id = p.id AND e.sequence = p.sequence
        WHERE e.status IS DISTINCT FROM p.status {which}
    """,
}
# Over all payments only: it has no index. Live mode only: a sandbox invents its transaction ids.
_SHARED: Final = """
    SELECT tenant_id, id::text, 'transaction ' || provider_transaction_id || ' ended others too'
    FROM (
        SELECT tenant_id, id, provider_transaction_id,
               count(*) OVER (PARTITION BY provider, target_environment, provider_transaction_id) AS n
        FROM payments
        WHERE status = 'SUCCESSFUL' AND provider_transaction_id IS NOT NULL AND mode = 'live'
    ) AS ended WHERE n > 1
"""


def check_changed(*, after: int, through: int) -> int:
    """Check the payments that these events changed; how many new violations."""
    which = {"after": after, "through": through}
    with transaction(EVERY_TENANT) as session:
        found = [
            found
            for invariant, query in _QUERIES.items()
            for found in _asked(session, invariant, query, f"AND p.id IN {_CHANGED}", which)
        ]
    return _note(found)


def check_everything(cipher: Cipher) -> int:
    """Check every payment and verify each tenant's whole record; how many new violations."""
    with transaction(EVERY_TENANT) as session:
        take_time(session)
        found = [
            found
            for invariant, query in _QUERIES.items()
            for found in _asked(session, invariant, query, "", {})
        ]
        found += _asked(session, Invariant.ONE_PAYMENT_A_TRANSACTION, _SHARED, "", {})
    for tenant in list_tenants():
        fault = verify_record(tenant.id, on_row=lambda: None).fault
        if fault is not None:
            subject = f"{fault.table} {fault.row}"
            found.append(Break(tenant.id, Invariant.RECORD_UNBENT, subject, fault.detail))
    return _note([*found, *_unreadable(cipher)])


def _unreadable(cipher: Cipher) -> list[Break]:
    """One violation per tenant: a lost data key makes all its open payments unreadable."""
    if not opens_newest_secrets(cipher, (*ENCRYPTED_COLUMNS, *WEBHOOK_ENCRYPTED_COLUMNS)):
        # The keys are another installation's: /health/ready reports it, and no payment is at fault.
        log.error("invariants.secret_keys_foreign")
        return []
    return [
        Break(
            some.tenant_id,
            Invariant.OPEN_PAYMENT_READABLE,
            str(some.oldest),
            f"{some.payments} open payments can't be read (data_key_unreadable); this is the oldest",
        )
        for some in unreadable_payments(cipher)
    ]


def _asked(
    session: Session, invariant: Invariant, query: str, which: str, values: dict[str, int]
) -> list[Break]:
    rows = session.execute(text(query.format(which=which)), values)
    return [Break(tenant_id, invariant, subject, detail) for tenant_id, subject, detail in rows]


def _note(found: Iterable[Break]) -> int:
    """Store what is new, and hold the tenant in the same transaction."""
    of_tenant: dict[UUID, list[Break]] = defaultdict(list)
    for broken in found:
        of_tenant[broken.tenant_id].append(broken)
    return sum(_note_of(tenant_id, breaks) for tenant_id, breaks in of_tenant.items())


def _note_of(tenant_id: UUID, breaks: list[Break]) -> int:
    with transaction(tenant_id) as session:
        new = session.execute(
            insert(InvariantViolation)
            .values([broken._asdict() for broken in breaks])
            # A known violation was found before, and perhaps resolved.
            .on_conflict_do_nothing()
            .returning(InvariantViolation.invariant, InvariantViolation.subject)
        ).all()
        if broken := sorted({row.invariant for row in new} - _WITHOUT_HOLD):
            hold_in(session, tenant_id, why=f"broken: {', '.join(broken)}", actor=ACTOR)
    for row in new:
        log.error("invariant.broken", invariant=row.invariant, subject=row.subject)
    return len(new)
