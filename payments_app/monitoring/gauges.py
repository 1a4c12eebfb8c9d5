"""Gauges from the rows: how much is open, what is due and how late. They name no tenant.

Each query uses an index over open rows: final payments cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from threading import Lock
from typing import Final

import structlog
from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from payments_app.integrity.invariants import Invariant
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.metrics import Reading
from payments_app.kernel.postgres import DatabaseRoleUnsafe
from payments_app.payments.claims import QUEUES, in_queue
from payments_app.payments.states import Stage

log = structlog.get_logger(__name__)

# A scraper gives up after ten seconds; a query that takes longer than this is itself a problem.
STATEMENT_MAX_MS: Final = 1_000
# One read at a time per process, or a frequent scraper could take all connections.
TURN_MAX_S: Final = 2.0
_turn = Lock()


def _count_and_age(stage: Stage) -> str:
    only = f"FILTER (WHERE stage = '{stage}')"
    return f"count(*) {only}, extract(epoch FROM statement_timestamp() - min(created_at) {only})"


_BOUNDED: Final = text(
    "SELECT set_config('transaction_read_only', 'on', true),"
    f" set_config('statement_timeout', '{STATEMENT_MAX_MS}', true)"
)
_STAGES: Final = tuple(stage for stage in Stage if stage is not Stage.FINAL)
# A column for each stage and no GROUP BY, which would sort all open payments.
_OPEN: Final = text(
    f"SELECT {', '.join(_count_and_age(stage) for stage in _STAGES)}"  # noqa: S608  our words
    " FROM payments WHERE status = 'PENDING'"
)
# Submissions and status checks apart. In each queue, the payment due longest comes first.
_DUE_LAG: Final = text(
    f"""{QUEUES}
    SELECT extract(epoch FROM statement_timestamp() - min(d.at) FILTER (WHERE q.lane = 0)),
           extract(epoch FROM statement_timestamp() - min(d.at) FILTER (WHERE q.lane > 0))
    FROM queues q CROSS JOIN LATERAL (
        SELECT next_action_at AS at FROM payments WHERE {in_queue()}
        ORDER BY next_action_at LIMIT 1
    ) d
    """  # noqa: S608  our own words
)
# The last position of each chain, by its index: the number of entries ever, if none was removed.
_AUDITED: Final = text(
    """
    SELECT sum(e.position) FROM tenants t CROSS JOIN LATERAL (
        SELECT position FROM audit_entries WHERE tenant_id = t.id ORDER BY position DESC LIMIT 1
    ) e
    """
)
_UNPUBLISHED: Final = text(
    """
    SELECT count(*), extract(epoch FROM statement_timestamp() - min(created_at))
    FROM events WHERE feed_data IS NULL
    """
)
# Without those of a disabled endpoint: they wait for its tenant.
_WEBHOOKS_PENDING: Final = text(
    """
    SELECT count(*) FROM webhook_endpoints e
    JOIN webhook_deliveries d ON d.endpoint_id = e.id AND d.status = 'pending'
    WHERE e.status = 'enabled'
    """
)
# As webhooks/claims.py claims: a delivery behind an earlier one of its payment is not due.
_WEBHOOK_LAG: Final = text(
    """
    SELECT extract(epoch FROM statement_timestamp() - min(d.next_attempt_at))
    FROM webhook_endpoints e
    CROSS JOIN LATERAL (
        SELECT d.next_attempt_at FROM webhook_deliveries d
        WHERE d.endpoint_id = e.id AND d.status = 'pending'
          AND d.next_attempt_at <= statement_timestamp()
          AND (d.lease_until IS NULL OR d.lease_until <= statement_timestamp())
          AND NOT EXISTS (
              SELECT FROM webhook_deliveries b
              WHERE b.endpoint_id = d.endpoint_id AND b.payment_id = d.payment_id
                AND b.sequence < d.sequence AND b.status = 'pending')
        ORDER BY d.next_attempt_at, d.id LIMIT 1
    ) d
    WHERE e.status = 'enabled'
    """
)
_BREAKS: Final = text(
    "SELECT invariant, count(*) FROM invariant_breaks WHERE resolved_at IS NULL GROUP BY invariant"
)
_HELD: Final = text("SELECT count(*) FROM tenants WHERE held_at IS NOT NULL")
_SIZE: Final = text("SELECT pg_database_size(current_database())")
# Exchanges of the last 5 minutes, among the newest 100, by provider: how many proved something.
_HEARD: Final = text(
    """
    SELECT provider, count(*) FILTER (WHERE verdict NOT IN ('UNKNOWN', 'NOT_SENT')) AS told
    FROM (SELECT (SELECT provider FROM payments WHERE id = x.payment_id) AS provider, verdict
          FROM (SELECT payment_id, verdict, finished_at FROM provider_exchanges
                WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 100) x
          WHERE finished_at > statement_timestamp() - interval '5 minutes') recent
    GROUP BY provider
    """
)


class ProviderHealth(StrEnum):
    """A provider's health, by its answers of the last minutes."""

    ANSWERS = "answers"
    # Requests were made, and none proved anything.
    SILENT = "silent"
    # No request was made.
    IDLE = "idle"
    # The database could not be queried.
    NOT_KNOWN = "not known"


def read_gauges() -> list[Reading]:
    """All gauges as of one transaction, or only that the database failed: nothing stale."""
    if not _turn.acquire(timeout=TURN_MAX_S):
        return [_up(0)]
    try:
        with transaction(EVERY_TENANT) as session:
            session.execute(_BOUNDED)
            return [_up(1), *_read(session)]
    except (SQLAlchemyError, DatabaseRoleUnsafe) as error:
        log.warning("survey.failed", error=type(error).__name__)
        return [_up(0)]
    finally:
        _turn.release()


def provider_health(codes: Iterable[str]) -> dict[str, ProviderHealth]:
    """The health of each provider."""
    try:
        with transaction(EVERY_TENANT, by_index=True) as session:
            session.execute(_BOUNDED)
            told: dict[str, int] = {row.provider: row.told for row in session.execute(_HEARD)}
    except SQLAlchemyError:
        return dict.fromkeys(codes, ProviderHealth.NOT_KNOWN)
    words = {
        code: ProviderHealth.ANSWERS if told.get(code) else ProviderHealth.SILENT for code in codes
    }
    return {code: word if code in told else ProviderHealth.IDLE for code, word in words.items()}


def _read(session: Session) -> list[Reading]:
    """One query gives one gauge, or several."""
    return [
        *_open_payments(session),
        *_unpublished(session),
        _breaks(session),
        _one(session, "held_tenants", "Tenants that are held.", _HELD),
        *_due_lag(session),
        _one(session, "webhooks_pending", "Deliveries that are open.", _WEBHOOKS_PENDING),
        _one(session, "webhook_lag_seconds", "How long the oldest is due.", _WEBHOOK_LAG),
        _one(session, "audit_entries", "Entries of all audit trails.", _AUDITED),
        _one(session, "database_size_bytes", "The database on its disk.", _SIZE),
    ]


def _open_payments(session: Session) -> list[Reading]:
    row = session.execute(_OPEN).one()
    counts = {str(stage): float(count) for stage, count in zip(_STAGES, row[::2], strict=True)}
    ages = {str(stage): float(age or 0) for stage, age in zip(_STAGES, row[1::2], strict=True)}
    return [
        Reading("open_payments", "Payments that have not ended.", counts, "stage"),
        _plain("oldest_open_payment_seconds", "Since its acceptance.", max(ages.values())),
        _plain("oldest_unsent_seconds", "Since its acceptance.", ages[Stage.ACCEPTED]),
        _plain("unknown_payments", "Sent, and nobody knows yet.", counts[Stage.UNKNOWN]),
        _plain("oldest_unknown_seconds", "Since its acceptance.", ages[Stage.UNKNOWN]),
    ]


def _unpublished(session: Session) -> list[Reading]:
    count, age = session.execute(_UNPUBLISHED).one()
    return [
        _plain("unpublished_events", "Events that have no place in the feed yet.", count),
        _plain("oldest_unpublished_seconds", "Since it happened.", age or 0),
    ]


def _due_lag(session: Session) -> list[Reading]:
    submissions, questions = session.execute(_DUE_LAG).one()
    return [
        _plain("due_lag_seconds", "How long the first submission is due.", submissions or 0),
        _plain("check_lag_seconds", "How long the first question is due.", questions or 0),
    ]


def _breaks(session: Session) -> Reading:
    found: dict[str, float] = {str(invariant): 0.0 for invariant in Invariant}
    found.update({name: float(count) for name, count in session.execute(_BREAKS)})
    return Reading("invariant_breaks", "What can't be, and is not resolved.", found, "invariant")


def _one(session: Session, name: str, words: str, question: TextClause) -> Reading:
    """For a query that returns one number; null counts as 0."""
    return _plain(name, words, session.scalar(question) or 0)


def _up(up: int) -> Reading:
    return _plain("survey_up", "Whether the database could be asked.", up)


def _plain(name: str, words: str, number: float) -> Reading:
    return Reading(name, words, {"": max(0.0, float(number))})
