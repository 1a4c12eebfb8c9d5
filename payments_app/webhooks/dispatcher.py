"""From a claim to its result, top to bottom: sign and POST, record. Like a payment's processor.

The network is only ever between two transactions. A delivery whose worker died is due again when
its lease ends: the same id, the same bytes; its attempt stays open, as nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import Connection, select, text
from sqlalchemy.orm import Session

from payments_app.kernel import metrics, tracing
from payments_app.kernel.database import after_commit
from payments_app.kernel.egress import LOOKUP_BUSY, Egress
from payments_app.kernel.postgres import is_transient
from payments_app.kernel.retry_after import retry_after_s
from payments_app.kernel.secrets import Cipher, SecretUnreadable
from payments_app.kernel.tracing import Kind
from payments_app.kernel.wire import Answer, LeaseLost, Silence
from payments_app.webhooks import schedule
from payments_app.webhooks.claims import EXCHANGE_MAX_S, ClaimKey, DeliveryClaim, by_index
from payments_app.webhooks.concurrency import SLOW_S
from payments_app.webhooks.endpoints import note_by_system
from payments_app.webhooks.model import DeliveryStatus, WebhookEndpoint, about_secret
from payments_app.webhooks.signature import signed_headers

log = structlog.get_logger(__name__)

# Of an answer, what is kept to be looked at.
ANSWER_KEPT_BYTES: Final = 4096
_OK: Final = range(200, 300)
_GONE: Final = 410
# Our own faults, which are no failure of the endpoint's.
_UNREADABLE: Final = "secret_unreadable"
_INTERNAL: Final = "internal_error"
_LEASE_LOST: Final = "lease_lost"
_OURS: Final = frozenset({_UNREADABLE, _INTERNAL, _LEASE_LOST, LOOKUP_BUSY})

# One that somebody else has locked, a tenant who removes it or another process that records, is left
# out: nobody waits for it, and what is to be recorded of it is recorded later.
_LOCK_ENDPOINTS: Final = text(
    """
    SELECT id, clock_timestamp() AS now,
           failing_since IS NOT NULL OR warned_days > 0 OR timeouts > 0 AS is_failing
    FROM webhook_endpoints WHERE id = ANY (CAST(:ids AS uuid[]))
    FOR NO KEY UPDATE SKIP LOCKED
    """
)
# Whoever has lost its claim changes nothing, nor does a result that is recorded already. One that was
# removed meanwhile keeps its status.
_RECORD: Final = text(
    """
    UPDATE webhook_deliveries d
    SET lease_until = NULL, attempts = d.attempts - r.uncounted,
        status = CASE d.status WHEN 'pending' THEN r.status ELSE d.status END,
        delivered_at = CASE WHEN d.status = 'pending' AND r.status = 'delivered' THEN :now
                            ELSE d.delivered_at END,
        next_attempt_at = CASE WHEN d.status = 'pending' AND r.status = 'pending'
                               THEN :now + make_interval(secs => r.pause_s)
                               ELSE d.next_attempt_at END
    FROM unnest(CAST(:ids AS uuid[]), CAST(:generations AS integer[]), CAST(:statuses AS text[]),
                CAST(:pauses_s AS double precision[]), CAST(:uncounted AS integer[]))
         AS r(id, generation, status, pause_s, uncounted)
    WHERE d.id = r.id AND d.generation = r.generation AND d.lease_until IS NOT NULL
    RETURNING d.id, d.generation, d.status
    """
)
# A claim that was lost has an open row here, which whoever took it over has added.
_RECORD_ATTEMPTS: Final = text(
    """
    INSERT INTO webhook_attempts (tenant_id, delivery_id, generation, trigger, url, started_at,
                                  finished_at, outcome, http_status, answer, elapsed_ms)
    SELECT r.tenant_id, r.delivery_id, r.generation, r.trigger, r.url, r.started_at,
           :now, r.outcome, r.http_status, r.answer, r.elapsed_ms
    FROM unnest(CAST(:tenant_ids AS uuid[]), CAST(:ids AS uuid[]), CAST(:generations AS integer[]),
                CAST(:triggers AS text[]), CAST(:urls AS text[]), CAST(:started AS timestamptz[]),
                CAST(:outcomes AS text[]), CAST(:http_statuses AS integer[]),
                CAST(:answers AS bytea[]), CAST(:elapsed_ms AS integer[]))
         AS r(tenant_id, delivery_id, generation, trigger, url, started_at, outcome, http_status,
              answer, elapsed_ms)
    ON CONFLICT (delivery_id, generation) DO UPDATE
    SET finished_at = excluded.finished_at, outcome = excluded.outcome,
        http_status = excluded.http_status, answer = excluded.answer,
        elapsed_ms = excluded.elapsed_ms
    WHERE webhook_attempts.finished_at IS NULL
    """
)
# What waited behind an ended delivery is due, and keeps its place among all that wait. It is locked
# before it is looked at: claims.py may just be moving it behind the one that has ended.
_RELEASE_NEXT: Final = text(
    """
    WITH following AS (
        SELECT n.id, n.next_attempt_at, n.lease_until, greatest(n.created_at, r.due_at) AS due_at
        FROM unnest(CAST(:endpoint_ids AS uuid[]), CAST(:payment_ids AS uuid[]),
                    CAST(:due AS timestamptz[])) AS r(endpoint_id, payment_id, due_at)
        CROSS JOIN LATERAL (
            SELECT id, next_attempt_at, lease_until, created_at FROM webhook_deliveries
            WHERE endpoint_id = r.endpoint_id AND payment_id = r.payment_id AND status = 'pending'
            ORDER BY sequence LIMIT 1 FOR NO KEY UPDATE
        ) n
    )
    UPDATE webhook_deliveries d SET next_attempt_at = f.due_at FROM following f
    WHERE d.id = f.id AND f.next_attempt_at > :now AND f.lease_until IS NULL
    """
)


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What came of one claim: the receiver's answer, or the word for why there is none."""

    claim: DeliveryClaim
    seen: Answer | Silence

    @property
    def outcome(self) -> str:
        """One of a few words: a receiver chooses among them, and makes none."""
        if isinstance(self.seen, Silence):
            return self.seen.why
        return "delivered" if self.is_delivered else "http_error"

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has taken it."""
        return isinstance(self.seen, Answer) and self.seen.status in _OK

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants nothing more, ever."""
        return isinstance(self.seen, Answer) and self.seen.status == _GONE

    @property
    def is_ours(self) -> bool:
        """Whether a fault of our own kept it from being sent or known."""
        return isinstance(self.seen, Silence) and self.seen.why in _OURS

    @property
    def was_never_tried(self) -> bool:
        """Whether it is no attempt at all, for want of something of ours."""
        return self.outcome == LOOKUP_BUSY


# --- send -----------------------------------------------------------------------------------------


def send(claim: DeliveryClaim, *, egress: Egress, cipher: Cipher) -> DeliveryResult:
    """POST it, signed. On any thread, in an application context; never fails."""
    with tracing.span("webhook post", Kind.CLIENT, parent=claim.traceparent) as span:
        span.note(
            {
                tracing.TENANT: str(claim.tenant_id),
                tracing.PAYMENT: str(claim.payment_id or ""),
                "maramoja.event_type": claim.event_type,
                "maramoja.delivery_id": str(claim.delivery_id),
                "maramoja.attempt": claim.attempts,
            }
        )
        result = DeliveryResult(claim, _seen(claim, egress, cipher))
        tracing.note_answer(result.seen)
    metrics.webhook_posts.labels(result.outcome).inc()
    metrics.webhook_post_seconds.observe(result.seen.elapsed_s)
    return result


def unknown_result(claim: DeliveryClaim) -> DeliveryResult:
    """For one that a fault of ours has kept from being sent, or known."""
    return DeliveryResult(claim, Silence(_INTERNAL, sent=True))


def _seen(claim: DeliveryClaim, egress: Egress, cipher: Cipher) -> Answer | Silence:
    try:
        return _post(claim, egress, cipher)
    except LeaseLost:
        return Silence(_LEASE_LOST, sent=False)
    except SecretUnreadable:
        log.error("webhook.secret_unreadable", endpoint_id=str(claim.endpoint_id))
        return Silence(_UNREADABLE, sent=False)
    except Exception:
        # A fault of ours: the attempt is closed, and the schedule goes on.
        log.exception("webhook.delivery_failed", delivery_id=str(claim.delivery_id))
        return Silence(_INTERNAL, sent=True)


def _post(claim: DeliveryClaim, egress: Egress, cipher: Cipher) -> Answer | Silence:
    place = about_secret(claim.tenant_id, claim.endpoint_id)
    signed = signed_headers(
        [cipher.decrypt(secret, about=place) for secret in claim.secrets],
        message_id=claim.message_id,
        timestamp=int(claim.now().timestamp()),
        body=claim.body,
    )
    # Its own trace goes to the tenant with it.
    traced = {"traceparent": here} if (here := tracing.here()) else {}
    return egress.post(
        claim.url,
        {"Content-Type": "application/json", **signed, **traced},
        claim.body,
        owner=claim.tenant_id,
        timeout_s=EXCHANGE_MAX_S,
        leave_before=claim.leave_before,
    )


# --- record ---------------------------------------------------------------------------------------


def record(results: Sequence[DeliveryResult]) -> list[DeliveryResult]:
    """Write the results in one transaction; if that is refused, each in its own.

    Returns those that are to be recorded later, as somebody else has their endpoints locked. One
    that can't be written is logged: its lease ends, and it is sent again. Raises only what says
    nothing about the rows, such as a lost connection: the same may be written again.
    """
    if not results:
        return []
    try:
        return _record_together(results)
    except Exception as error:
        if is_transient(error):
            raise
        metrics.webhooks_recorded_one_by_one.inc(len(results))
        log.exception("webhooks.recorded_one_by_one", count=len(results))
        return _record_one_by_one(results)


def _record_one_by_one(results: Sequence[DeliveryResult]) -> list[DeliveryResult]:
    later = []
    for result in results:
        try:
            later += _record_together([result])
        except Exception as error:
            if is_transient(error):
                raise
            log.exception("webhook.not_recorded", delivery_id=str(result.claim.delivery_id))
    return later


def _record_together(results: Sequence[DeliveryResult]) -> list[DeliveryResult]:
    """Each statement is keyed by ids that came from a claim, so no narrower tenant is needed."""
    with by_index() as session:
        connection = session.connection()
        ids = {result.claim.endpoint_id for result in results}
        locked = connection.execute(_LOCK_ENDPOINTS, {"ids": list(ids)}).all()
        locked_ids = {row.id for row in locked}
        later = [result for result in results if result.claim.endpoint_id not in locked_ids]
        results = [result for result in results if result.claim.endpoint_id in locked_ids]
        if not results:
            return later
        now = max(row.now for row in locked)
        recorded = _record_deliveries(connection, results, now)
        _record_attempts(connection, results, now)
        ours = [result for result in results if result.claim.key in recorded]
        ended = [
            result.claim for result in ours if recorded[result.claim.key] != DeliveryStatus.PENDING
        ]
        _release_next(connection, ended, now)
        failing = {row.id for row in locked if row.is_failing}
        _judge_endpoints(session, ours, failing, now)
        _note_lost_claims(session, results, recorded)
    return later


def _record_deliveries(
    connection: Connection, results: Sequence[DeliveryResult], now: datetime
) -> Mapping[ClaimKey, str]:
    """The status of each whose claim was still ours."""
    decisions = [_decide(result) for result in results]
    values = {
        "now": now,
        "ids": [result.claim.delivery_id for result in results],
        "generations": [result.claim.generation for result in results],
        "statuses": [status for status, _ in decisions],
        "pauses_s": [pause_s for _, pause_s in decisions],
        "uncounted": [int(result.was_never_tried) for result in results],
    }
    rows = connection.execute(_RECORD, values)
    return {(row.id, row.generation): row.status for row in rows}


def _decide(result: DeliveryResult) -> tuple[DeliveryStatus, float]:
    """What becomes of the delivery, and the pause before its next attempt in seconds."""
    claim, seen = result.claim, result.seen
    if result.is_delivered:
        return DeliveryStatus.DELIVERED, 0.0
    if result.was_never_tried:
        return DeliveryStatus.PENDING, schedule.busy_pause_s()
    header = seen.headers.get("retry-after") if isinstance(seen, Answer) else None
    asked_s = retry_after_s(header, claim.now())
    pause_s = schedule.pause_s(claim.attempts, retry_after_s=asked_s)
    if pause_s is None or result.is_gone:
        log.warning("webhook.given_up", delivery_id=str(claim.delivery_id), attempts=claim.attempts)
        return DeliveryStatus.FAILED, 0.0
    return DeliveryStatus.PENDING, pause_s


def _record_attempts(
    connection: Connection, results: Sequence[DeliveryResult], now: datetime
) -> None:
    claims = [result.claim for result in results]
    answers = [result.seen if isinstance(result.seen, Answer) else None for result in results]
    values: dict[str, Any] = {
        "now": now,
        "tenant_ids": [claim.tenant_id for claim in claims],
        "ids": [claim.delivery_id for claim in claims],
        "generations": [claim.generation for claim in claims],
        "triggers": [claim.trigger for claim in claims],
        "urls": [claim.url for claim in claims],
        "started": [claim.started_at for claim in claims],
        "outcomes": [result.outcome for result in results],
        "http_statuses": [answer.status if answer else None for answer in answers],
        "answers": [answer.body[:ANSWER_KEPT_BYTES] if answer else None for answer in answers],
        "elapsed_ms": [round(result.seen.elapsed_s * 1000) for result in results],
    }
    connection.execute(_RECORD_ATTEMPTS, values)


def _release_next(connection: Connection, ended: Sequence[DeliveryClaim], now: datetime) -> None:
    of_payments = [claim for claim in ended if claim.payment_id is not None]
    if not of_payments:
        return
    values = {
        "now": now,
        "endpoint_ids": [claim.endpoint_id for claim in of_payments],
        "payment_ids": [claim.payment_id for claim in of_payments],
        "due": [claim.due_at for claim in of_payments],
    }
    connection.execute(_RELEASE_NEXT, values)


def _note_lost_claims(
    session: Session, results: Sequence[DeliveryResult], recorded: Mapping[ClaimKey, str]
) -> None:
    for result in results:
        if result.claim.key not in recorded:
            # Taken over meanwhile: what we learned is kept as the attempt's, and no more.
            after_commit(session, metrics.fenced_writes.inc)
            log.warning("webhook.zombie_write", delivery_id=str(result.claim.delivery_id))


# --- endpoints ------------------------------------------------------------------------------------


def _judge_endpoints(
    session: Session, results: Sequence[DeliveryResult], failing: set[UUID], now: datetime
) -> None:
    """Note on each endpoint how it answered. One that is well and stays well is not read."""
    noted = [
        result
        for result in results
        if not result.is_ours and (result.claim.endpoint_id in failing or not _is_well(result))
    ]
    if not noted:
        return
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.id.in_({result.claim.endpoint_id for result in noted})
    )
    endpoints = {endpoint.id: endpoint for endpoint in session.scalars(query)}
    for result in noted:
        endpoint = endpoints[result.claim.endpoint_id]
        # One that takes what it is sent, but lets us wait for it, holds slots all the same.
        is_slow = result.seen.elapsed_s >= SLOW_S
        endpoint.timeouts = endpoint.timeouts + 1 if is_slow else 0
        if result.is_delivered:
            endpoint.note_success()
        else:
            endpoint.failing_since = endpoint.failing_since or now
            _judge(session, endpoint, result, now)


def _is_well(result: DeliveryResult) -> bool:
    return result.is_delivered and result.seen.elapsed_s < SLOW_S


def _judge(
    session: Session, endpoint: WebhookEndpoint, result: DeliveryResult, now: datetime
) -> None:
    """Warn of an endpoint that only fails, and end it when that goes on."""
    if endpoint.disabled_at is not None:
        return
    since = endpoint.failing_since or now
    days = (now - since).total_seconds() / schedule.DAY_S
    if result.is_gone or days >= schedule.DISABLE_AFTER_DAYS:
        reason = "gone" if result.is_gone else "failing"
        endpoint.disable(reason, now)
        note_by_system(session, endpoint, "disabled", reason)
        log.error("webhook.endpoint_disabled", endpoint_id=str(endpoint.id), reason=reason)
        return
    due = [limit for limit in schedule.WARN_AFTER_DAYS if endpoint.warned_days < limit <= days]
    if due:
        endpoint.warned_days = due[-1]
        note_by_system(session, endpoint, "failing", f"for {due[-1]} days")
        log.warning("webhook.endpoint_failing", endpoint_id=str(endpoint.id), days=due[-1])
