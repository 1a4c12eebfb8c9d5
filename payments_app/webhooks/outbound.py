"""Delivering, top to bottom: claim and write down, sign and POST, record. Like a payment's life.

The network is only ever between two transactions. A delivery whose worker died is due again when
its lease ends: the same id, the same bytes; the attempt that stays open says that nobody knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session, aliased

from payments_app.kernel import metrics, tracing
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import (
    EVERY_TENANT,
    after_commit,
    database_now,
    narrow,
    transaction,
)
from payments_app.kernel.egress import Egress
from payments_app.kernel.secrets import Cipher, SecretUnreadable
from payments_app.kernel.tracing import Kind
from payments_app.kernel.wire import Answer, LeaseLost, Silence
from payments_app.webhooks import schedule
from payments_app.webhooks.endpoints import note_by_system
from payments_app.webhooks.model import (
    DeliveryStatus,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)
from payments_app.webhooks.signature import signed_headers

log = structlog.get_logger(__name__)

# The whole exchange; and a lease that outlasts it with its write-back.
EXCHANGE_MAX_S: Final = 15.0
LEASE: Final = timedelta(seconds=30)
LEASE_MARGIN_S: Final = 2.0
# At once: to an endpoint, to one that lately timed out, and to all of a tenant's together.
PER_ENDPOINT: Final = 4
PER_SLOW_ENDPOINT: Final = 1
SLOW_AFTER_TIMEOUTS: Final = 3
# An exchange that takes this long counts as one; a connection that hangs is given up by then.
SLOW_S: Final = 3.0
PER_TENANT: Final = 8
# Of an answer, what is kept to be looked at.
ANSWER_KEPT_BYTES: Final = 4096
_OK: Final = range(200, 300)
_GONE: Final = 410
# Our own faults, which are no failure of the endpoint's.
_SEALED: Final = "secret_unreadable"
_INTERNAL: Final = "internal_error"
_LATE: Final = "lease_lost"
_OURS: Final = frozenset({_SEALED, _INTERNAL, _LATE})

# The endpoint whose turn it is among those for which something is due. Its row is locked: who claims
# beside us takes another. LIMIT in a lateral query keeps the planner from joining all there is.
_TURN: Final = text(
    """
    SELECT e.id FROM webhook_endpoints e
    CROSS JOIN LATERAL (
        SELECT FROM webhook_deliveries d
        WHERE d.endpoint_id = e.id AND d.status = 'pending'
          AND d.next_attempt_at <= statement_timestamp()
          AND (d.lease_until IS NULL OR d.lease_until <= statement_timestamp())
        LIMIT 1
    ) d
    WHERE e.status = 'enabled'
      AND (SELECT count(*) FROM webhook_deliveries f
           WHERE f.endpoint_id = e.id AND f.lease_until > statement_timestamp())
          < CASE WHEN e.timeouts >= :slow_after THEN :slow ELSE :per_endpoint END
      AND (SELECT count(*) FROM webhook_deliveries f
           JOIN webhook_endpoints o ON o.id = f.endpoint_id
           WHERE o.tenant_id = e.tenant_id AND f.lease_until > statement_timestamp())
          < :per_tenant
    ORDER BY e.served_at NULLS FIRST LIMIT 1
    FOR NO KEY UPDATE OF e SKIP LOCKED
    """
)
# With the trace that the payment was accepted in: its tenant's own.
_NOW: Final = text(
    "SELECT clock_timestamp(), (SELECT traceparent FROM payments WHERE id = :payment_id)"
)
# Those of an endpoint that are due longest, each with the first about the same payment that is
# still on its way: an earlier one, or itself.
_LOOK: Final = """
    SELECT d.id, d.next_attempt_at, coalesce(h.id, d.id) AS first_id,
           h.next_attempt_at AS first_at, h.lease_until AS first_lease_until
    FROM (
        SELECT id, payment_id, next_attempt_at FROM webhook_deliveries
        WHERE endpoint_id = :endpoint_id AND status = 'pending'
          AND next_attempt_at <= statement_timestamp()
          AND (lease_until IS NULL OR lease_until <= statement_timestamp())
        ORDER BY next_attempt_at LIMIT :look
    ) d
    LEFT JOIN LATERAL (
        SELECT id, next_attempt_at, lease_until FROM webhook_deliveries
        WHERE endpoint_id = :endpoint_id AND payment_id = d.payment_id AND status = 'pending'
        ORDER BY sequence LIMIT 1
    ) h ON true
"""
_DUE: Final = text(
    f"""
    SELECT first_id FROM ({_LOOK}) AS d
    WHERE (first_id = id OR first_at <= statement_timestamp()
           AND coalesce(first_lease_until, first_at) <= statement_timestamp())
      AND (SELECT count(*) FROM webhook_deliveries
           WHERE endpoint_id = :endpoint_id AND lease_until > statement_timestamp()) < :slots
    ORDER BY next_attempt_at LIMIT 1
    """  # noqa: S608  both texts are ours
)
# What waits behind an earlier one is due with it. Thousands that wait behind the failures of an
# endpoint that is down must not be looked at again for each delivery that anybody gets.
_PARK: Final = text(
    f"""
    UPDATE webhook_deliveries w
    SET next_attempt_at = greatest(d.first_at, d.first_lease_until)
    FROM ({_LOOK}) AS d WHERE w.id = d.id AND d.first_id <> d.id
    """  # noqa: S608  both texts are ours
)
# Looked through at once for one that may go, and parked at once.
LOOKED_AT: Final = 50
PARKED: Final = 1000
_BOUNDS: Final = {
    "slow_after": SLOW_AFTER_TIMEOUTS,
    "slow": PER_SLOW_ENDPOINT,
    "per_endpoint": PER_ENDPOINT,
    "per_tenant": PER_TENANT,
}


@dataclass(frozen=True, slots=True)
class Post:
    """One delivery in hand, once: what to send, where, and until when it may leave."""

    delivery: WebhookDelivery
    url: str
    secrets: tuple[str, ...]
    leave_before: float
    # The same moment by the database's clock and by this machine's boot_seconds.
    claimed_at: datetime
    taken_at: float
    traceparent: str | None

    @property
    def stamp(self) -> int:
        """Seconds since 1970 by the database's clock: receivers refuse what is minutes aside."""
        return int(self.claimed_at.timestamp() + boot_seconds() - self.taken_at)


def claim_due() -> Post | None:
    """The delivery whose turn it is, with its attempt written down; None when nothing is due."""
    while True:
        taken_at = boot_seconds()
        with transaction(EVERY_TENANT) as session:
            endpoint_id = session.scalar(_TURN, _BOUNDS)
            if endpoint_id is None:
                return None
            endpoint = session.get_one(WebhookEndpoint, endpoint_id)
            narrow(session, endpoint.tenant_id)
            endpoint.served_at = database_now()
            delivery = _next_of(session, endpoint)
            if delivery is not None:
                return _take(session, delivery, endpoint, taken_at)


def _next_of(session: Session, endpoint: WebhookEndpoint) -> WebhookDelivery | None:
    """The one to send, asked for now that the endpoint is ours: another may have had it just before.

    None if whatever is due waits behind another; then it is due no more.
    """
    slots = PER_SLOW_ENDPOINT if endpoint.timeouts >= SLOW_AFTER_TIMEOUTS else PER_ENDPOINT
    values = {"endpoint_id": endpoint.id, "look": LOOKED_AT, "slots": slots}
    found = session.scalar(_DUE, values)
    if found is None:
        session.execute(_PARK, {"endpoint_id": endpoint.id, "look": PARKED})
        return None
    return session.get_one(WebhookDelivery, found)


def _take(
    session: Session,
    delivery: WebhookDelivery,
    endpoint: WebhookEndpoint,
    taken_at: float,
) -> Post:
    now, traceparent = session.execute(_NOW, {"payment_id": delivery.payment_id}).one()
    delivery.generation += 1
    delivery.attempts += 1
    delivery.lease_until = now + LEASE
    session.add(
        WebhookAttempt(
            tenant_id=delivery.tenant_id,
            delivery_id=delivery.id,
            generation=delivery.generation,
            trigger=delivery.trigger,
            url=endpoint.url,
            started_at=now,
        )
    )
    secrets = _secrets(endpoint, now)
    leave_before = taken_at + LEASE.total_seconds() - LEASE_MARGIN_S - EXCHANGE_MAX_S / 2
    return Post(delivery, endpoint.url, secrets, leave_before, now, taken_at, traceparent)


def deliver(post: Post, *, egress: Egress, cipher: Cipher) -> None:
    """Send it and write down what came of it."""
    with tracing.span("webhook post", Kind.CLIENT, parent=post.traceparent) as span:
        span.note(
            {
                tracing.TENANT: str(post.delivery.tenant_id),
                tracing.PAYMENT: str(post.delivery.payment_id or ""),
                "maramoja.event_type": post.delivery.event_type,
                "maramoja.delivery_id": str(post.delivery.id),
                "maramoja.attempt": post.delivery.attempts,
            }
        )
        came = _came(post, egress, cipher)
        tracing.note_answer(came)
        _record(post, came)
    metrics.webhook_posts.labels(_outcome(came)).inc()
    metrics.webhook_post_seconds.observe(came.elapsed_s)


def _came(post: Post, egress: Egress, cipher: Cipher) -> Answer | Silence:
    try:
        return _send(post, egress, cipher)
    except LeaseLost:
        return Silence(_LATE, sent=False)
    except SecretUnreadable:
        log.error("webhook.secret_unreadable", endpoint_id=str(post.delivery.endpoint_id))
        return Silence(_SEALED, sent=False)
    except Exception:
        # A fault of ours: the attempt is closed, and the schedule goes on.
        log.exception("webhook.delivery_failed", delivery_id=str(post.delivery.id))
        return Silence(_INTERNAL, sent=True)


def _send(post: Post, egress: Egress, cipher: Cipher) -> Answer | Silence:
    delivery = post.delivery
    secrets = [cipher.decrypt(secret) for secret in post.secrets]
    signed = signed_headers(
        secrets,
        message_id=delivery.message_id,
        timestamp=post.stamp,
        body=delivery.body,
    )
    # Its own trace goes to the tenant with it.
    traced = {"traceparent": here} if (here := tracing.here()) else {}
    return egress.post(
        post.url,
        {"Content-Type": "application/json", **signed, **traced},
        delivery.body,
        timeout_s=EXCHANGE_MAX_S,
        leave_before=post.leave_before,
    )


def _secrets(endpoint: WebhookEndpoint, now: datetime) -> tuple[str, ...]:
    """The current one, and the one before it for as long as it overlaps; encrypted."""
    current = (endpoint.secret,) if endpoint.secret else ()
    until = endpoint.previous_secret_until
    if endpoint.previous_secret and until and until > now:
        return (*current, endpoint.previous_secret)
    return current


def _record(post: Post, came: Answer | Silence) -> None:
    with transaction(post.delivery.tenant_id) as session:
        # In the order in which claiming locks them, and out of the publisher's way.
        mine = {"key_share": True}
        endpoint = session.get_one(WebhookEndpoint, post.delivery.endpoint_id, with_for_update=mine)
        delivery = session.get_one(WebhookDelivery, post.delivery.id, with_for_update=mine)
        now = session.execute(select(func.clock_timestamp())).scalar_one()
        _close_attempt(session, post, came, now)
        if delivery.generation != post.delivery.generation:
            # Taken over meanwhile: what we learned is kept as the attempt's, and no more.
            after_commit(session, metrics.fenced_writes.inc)
            log.warning("webhook.zombie_write", delivery_id=str(delivery.id))
            return
        delivery.lease_until = None
        if delivery.status != DeliveryStatus.PENDING:
            return
        if isinstance(came, Answer) and came.status in _OK:
            delivery.succeed(now)
            endpoint.note_success()
        else:
            _fail(session, delivery, endpoint, came, now)
        if delivery.status != DeliveryStatus.PENDING:
            _release_next(session, delivery, now)
        # One that takes what it is sent, but lets us wait for it, holds slots all the same.
        endpoint.timeouts = endpoint.timeouts + 1 if came.elapsed_s >= SLOW_S else 0


def _release_next(session: Session, ended: WebhookDelivery, now: datetime) -> None:
    """What waited behind it is due now."""
    behind = aliased(WebhookDelivery)
    following = (
        select(behind.id)
        .where(
            behind.endpoint_id == ended.endpoint_id,
            behind.payment_id == ended.payment_id,
            behind.id != ended.id,
            behind.status == DeliveryStatus.PENDING,
        )
        .order_by(behind.sequence)
        .limit(1)
        .scalar_subquery()
    )
    session.execute(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.id == following,
            WebhookDelivery.next_attempt_at > now,
            WebhookDelivery.lease_until.is_(None),
        )
        .values(next_attempt_at=now)
        .execution_options(synchronize_session=False)
    )


def _close_attempt(session: Session, post: Post, came: Answer | Silence, now: datetime) -> None:
    values: dict[str, object] = {}
    if isinstance(came, Answer):
        values = {"http_status": came.status, "answer": came.body[:ANSWER_KEPT_BYTES]}
    session.execute(
        update(WebhookAttempt)
        .where(
            WebhookAttempt.delivery_id == post.delivery.id,
            WebhookAttempt.generation == post.delivery.generation,
        )
        .values(
            outcome=_outcome(came),
            finished_at=now,
            elapsed_ms=round(came.elapsed_s * 1000),
            **values,
        )
    )


def _outcome(came: Answer | Silence) -> str:
    """One of a few words: a receiver chooses among them, and makes none."""
    if isinstance(came, Silence):
        return came.why
    return "delivered" if came.status in _OK else "http_error"


def _fail(
    session: Session,
    delivery: WebhookDelivery,
    endpoint: WebhookEndpoint,
    came: Answer | Silence,
    now: datetime,
) -> None:
    header = came.headers.get("retry-after") if isinstance(came, Answer) else None
    pause = schedule.pause_s(delivery.attempts, retry_after_s=schedule.retry_after_s(header))
    if isinstance(came, Answer) and came.status == _GONE:
        pause = None
    if pause is None:
        delivery.give_up()
        log.warning("webhook.given_up", delivery_id=str(delivery.id), attempts=delivery.attempts)
    else:
        delivery.next_attempt_at = now + timedelta(seconds=pause)
    if isinstance(came, Silence) and came.why in _OURS:
        return
    endpoint.failing_since = endpoint.failing_since or now
    _judge(session, endpoint, came, now)


def _judge(
    session: Session, endpoint: WebhookEndpoint, came: Answer | Silence, now: datetime
) -> None:
    """Warn of an endpoint that only fails, and end it when that goes on."""
    if endpoint.disabled_at is not None:
        return
    since = endpoint.failing_since or now
    days = (now - since).total_seconds() / schedule.DAY_S
    gone = isinstance(came, Answer) and came.status == _GONE
    if gone or days >= schedule.DISABLE_AFTER_DAYS:
        reason = "gone" if gone else "failing"
        endpoint.disable(reason, now)
        note_by_system(session, endpoint, "disabled", reason)
        log.error("webhook.endpoint_disabled", endpoint_id=str(endpoint.id), reason=reason)
        return
    due = [limit for limit in schedule.WARN_AFTER_DAYS if endpoint.warned_days < limit <= days]
    if due:
        endpoint.warned_days = due[-1]
        note_by_system(session, endpoint, "failing", f"for {due[-1]} days")
        log.warning("webhook.endpoint_failing", endpoint_id=str(endpoint.id), days=due[-1])
