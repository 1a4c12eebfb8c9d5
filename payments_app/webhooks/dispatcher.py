"""One claimed delivery: sign and POST it, then record the result. Like a payment's processor.

No transaction is open during the POST. A delivery whose worker died is due again when its lease
ends, with the same id and bytes. Its attempt stays open, as its outcome is unknown.
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
from payments_app.kernel.http.egress import LOOKUP_BUSY, Egress
from payments_app.kernel.http.messages import HttpResponse, LeaseLost, NoResponse
from payments_app.kernel.http.retry_after import retry_after_s
from payments_app.kernel.postgres import is_transient
from payments_app.kernel.secrets import Cipher, SecretUnreadable
from payments_app.kernel.tracing import Kind
from payments_app.webhooks import schedule
from payments_app.webhooks.claims import EXCHANGE_MAX_S, ClaimKey, DeliveryClaim, by_index
from payments_app.webhooks.concurrency import SLOW_S
from payments_app.webhooks.endpoints import note_by_system
from payments_app.webhooks.model import DeliveryStatus, WebhookEndpoint, about_secret
from payments_app.webhooks.signature import signed_headers

log = structlog.get_logger(__name__)

# How much of a response body is stored for tenants to read.
ANSWER_KEPT_BYTES: Final = 4096
_OK: Final = range(200, 300)
_GONE: Final = 410
# Our own faults. They do not count as failures of the endpoint.
_UNREADABLE: Final = "secret_unreadable"
_INTERNAL: Final = "internal_error"
_LEASE_LOST: Final = "lease_lost"
_OURS: Final = frozenset({_UNREADABLE, _INTERNAL, _LEASE_LOST, LOOKUP_BUSY})

# An endpoint that is locked, by a tenant who removes it or by another process that records, is
# skipped without waiting. Its results are recorded later.
_LOCK_ENDPOINTS: Final = text(
    """
    SELECT id, clock_timestamp() AS now,
           failing_since IS NOT NULL OR warned_days > 0 OR timeouts > 0 AS is_failing
    FROM webhook_endpoints WHERE id = ANY (CAST(:ids AS uuid[]))
    FOR NO KEY UPDATE SKIP LOCKED
    """
)
# A result changes nothing if its claim was lost or it is recorded already; a delivery that ended with
# its endpoint keeps its status. Written so that rows are found by id, not among all that are leased.
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
    WHERE d.id = r.id AND d.id = ANY (CAST(:ids AS uuid[]))
      AND d.generation = r.generation AND num_nonnulls(d.lease_until) = 1
    RETURNING d.id, d.generation, d.status
    """
)
# For a claim that was lost, the next claimer has inserted an open row.
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
# The delivery that waited for the ended one becomes due, with the ended one's place in the queue.
# It is locked before it is read: claims.py may be moving it behind the ended one at this moment.
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
    """The result of one claim: the receiver's response, or the reason why there is none."""

    claim: DeliveryClaim
    seen: HttpResponse | NoResponse

    @property
    def outcome(self) -> str:
        """One label of a fixed set. A receiver can't add a new one."""
        if isinstance(self.seen, NoResponse):
            return self.seen.why
        return "delivered" if self.is_delivered else "http_error"

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver accepted it."""
        return isinstance(self.seen, HttpResponse) and self.seen.status in _OK

    @property
    def is_gone(self) -> bool:
        """Whether the receiver answered 410 Gone: it wants nothing more, ever."""
        return isinstance(self.seen, HttpResponse) and self.seen.status == _GONE

    @property
    def is_ours(self) -> bool:
        """Whether a fault of ours stopped the POST, or hides its outcome."""
        return isinstance(self.seen, NoResponse) and self.seen.why in _OURS

    @property
    def was_never_tried(self) -> bool:
        """Whether no attempt was made, because no DNS lookup slot was free."""
        return self.outcome == LOOKUP_BUSY


# --- send -----------------------------------------------------------------------------------------


def send(claim: DeliveryClaim, *, egress: Egress, cipher: Cipher) -> DeliveryResult:
    """POST it, signed. Runs on any thread, in an application context; never raises."""
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
    """The result when a fault of ours stopped the POST, or hides its outcome."""
    return DeliveryResult(claim, NoResponse(_INTERNAL, sent=True))


def _seen(claim: DeliveryClaim, egress: Egress, cipher: Cipher) -> HttpResponse | NoResponse:
    try:
        return _post(claim, egress, cipher)
    except LeaseLost:
        return NoResponse(_LEASE_LOST, sent=False)
    except SecretUnreadable:
        log.error("webhook.secret_unreadable", endpoint_id=str(claim.endpoint_id))
        return NoResponse(_UNREADABLE, sent=False)
    except Exception:
        # A fault of ours: the attempt is closed, and the retry schedule continues.
        log.exception("webhook.delivery_failed", delivery_id=str(claim.delivery_id))
        return NoResponse(_INTERNAL, sent=True)


def _post(claim: DeliveryClaim, egress: Egress, cipher: Cipher) -> HttpResponse | NoResponse:
    place = about_secret(claim.tenant_id, claim.endpoint_id)
    signed = signed_headers(
        [cipher.decrypt(secret, about=place) for secret in claim.secrets],
        message_id=claim.message_id,
        timestamp=int(claim.now().timestamp()),
        body=claim.body,
    )
    # The receiver gets the trace context of this POST.
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
    """Write the results in one transaction; if the database refuses, each in its own.

    Returns the results to record later, as their endpoints are locked elsewhere. One that can't be
    written is logged: its lease ends, and it is sent again. Raises only errors that are not about
    the rows, such as a lost connection: the same results may be written again.
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
    """Every statement is keyed by ids from a claim, so all tenants share one transaction."""
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
    """The new status of each delivery whose claim was still ours."""
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
    """The delivery's next status, and the pause before its next attempt in seconds."""
    claim, seen = result.claim, result.seen
    if result.is_delivered:
        return DeliveryStatus.DELIVERED, 0.0
    if result.was_never_tried:
        return DeliveryStatus.PENDING, schedule.busy_pause_s()
    header = seen.headers.get("retry-after") if isinstance(seen, HttpResponse) else None
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
    answers = [result.seen if isinstance(result.seen, HttpResponse) else None for result in results]
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
            # The claim was taken over: the result is kept in the attempt's row only.
            after_commit(session, metrics.fenced_writes.inc)
            log.warning("webhook.zombie_write", delivery_id=str(result.claim.delivery_id))


# --- endpoints ------------------------------------------------------------------------------------


def _judge_endpoints(
    session: Session, results: Sequence[DeliveryResult], failing: set[UUID], now: datetime
) -> None:
    """Update each endpoint's health, in the order of tenants: an entry locks their audit trail."""
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
    for result in sorted(noted, key=lambda one: one.claim.tenant_id):
        endpoint = endpoints[result.claim.endpoint_id]
        # An endpoint that accepts its deliveries slowly still occupies slots.
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
    """Warn about an endpoint that only fails, and disable it when that goes on."""
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
