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
from sqlalchemy.orm import Session

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, narrow, transaction
from payments_app.kernel.egress import Egress
from payments_app.kernel.secrets import Cipher, SecretUnreadable
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

# The endpoint whose turn it is, and of its deliveries the one that is due longest, unless an
# earlier one about the same payment is still on its way. The endpoint's row is locked: who claims
# beside us takes another endpoint's.
_DUE: Final = text(
    """
    SELECT e.id AS endpoint_id, d.id AS delivery_id
    FROM webhook_endpoints e
    CROSS JOIN LATERAL (
        SELECT d.id FROM webhook_deliveries d
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

    @property
    def stamp(self) -> int:
        """Seconds since 1970 by the database's clock: receivers refuse what is minutes aside."""
        return int(self.claimed_at.timestamp() + boot_seconds() - self.taken_at)


def claim_due() -> Post | None:
    """The delivery whose turn it is, with its attempt written down; None when nothing is due."""
    taken_at = boot_seconds()
    with transaction(EVERY_TENANT) as session:
        found = session.execute(_DUE, _BOUNDS).one_or_none()
        if found is None:
            return None
        endpoint = session.get_one(WebhookEndpoint, found.endpoint_id)
        delivery = session.get_one(WebhookDelivery, found.delivery_id)
        narrow(session, delivery.tenant_id)
        now = session.execute(select(func.clock_timestamp())).scalar_one()
        endpoint.served_at = now
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
    return Post(delivery, endpoint.url, secrets, leave_before, now, taken_at)


def deliver(post: Post, *, egress: Egress, cipher: Cipher) -> None:
    """Send it and write down what came of it."""
    try:
        came = _send(post, egress, cipher)
    except LeaseLost:
        came = Silence("lease_lost", sent=False)
    except SecretUnreadable:
        log.error("webhook.secret_unreadable", endpoint_id=str(post.delivery.endpoint_id))
        came = Silence("secret_unreadable", sent=False)
    except Exception:
        # A fault of ours: the attempt is closed, and the schedule goes on.
        log.exception("webhook.delivery_failed", delivery_id=str(post.delivery.id))
        came = Silence("internal_error", sent=True)
    _record(post, came)


def _send(post: Post, egress: Egress, cipher: Cipher) -> Answer | Silence:
    delivery = post.delivery
    secrets = [cipher.decrypt(secret) for secret in post.secrets]
    signed = signed_headers(
        secrets,
        message_id=delivery.message_id,
        timestamp=post.stamp,
        body=delivery.body,
    )
    return egress.post(
        post.url,
        {"Content-Type": "application/json", **signed},
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
        # One that takes what it is sent, but lets us wait for it, holds slots all the same.
        endpoint.timeouts = endpoint.timeouts + 1 if came.elapsed_s >= SLOW_S else 0


def _close_attempt(session: Session, post: Post, came: Answer | Silence, now: datetime) -> None:
    if isinstance(came, Answer):
        outcome = "delivered" if came.status in _OK else "http_error"
        values = {"http_status": came.status, "answer": came.body[:ANSWER_KEPT_BYTES]}
    else:
        outcome, values = came.why, {}
    session.execute(
        update(WebhookAttempt)
        .where(
            WebhookAttempt.delivery_id == post.delivery.id,
            WebhookAttempt.generation == post.delivery.generation,
        )
        .values(outcome=outcome, finished_at=now, elapsed_ms=round(came.elapsed_s * 1000), **values)
    )


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
