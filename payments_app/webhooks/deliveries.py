"""List and read deliveries, and send them again: one, a range of time, or all that failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement, Select, delete, func, or_, select, text, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.elements import SQLCoreOperations

from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.webhooks import feed
from payments_app.webhooks.claims import LEASE
from payments_app.webhooks.endpoints import (
    Keep,
    Owner,
    find_endpoint,
    keep_nothing,
    own_endpoint,
)
from payments_app.webhooks.errors import DeliveryNotFound, EndpointDisabled
from payments_app.webhooks.model import (
    DeliveryStatus,
    EndpointStatus,
    PaymentEvent,
    Trigger,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)
from payments_app.webhooks.patterns import matches

log = structlog.get_logger(__name__)

# Ended deliveries are kept so long for tenants to read; events are kept.
KEPT: Final = timedelta(days=30)
BATCH: Final = 500
# A PostgreSQL statement takes at most 65,535 parameters.
RESENT_AT_ONCE: Final = 10_000
# To count missed events, only the first so many since the endpoint was disabled are read.
MISSED_AMONG: Final = 100_000


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Some deliveries, newest first, and the id after which the next page begins."""

    deliveries: list[WebhookDelivery]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class DeliveryDetail:
    """A delivery with all attempts, in their order."""

    delivery: WebhookDelivery
    attempts: list[WebhookAttempt]


@dataclass(frozen=True, slots=True)
class ResendRange:
    """What to send again: events from `since` (included) until `until`; all, or the failed ones.

    With `failed_only` no new delivery is created for an event that was never sent.
    """

    since: datetime | None = None
    until: datetime | None = None
    failed_only: bool = False


def list_deliveries(
    owner: Owner,
    endpoint_id: UUID,
    *,
    limit: int,
    before: UUID | None = None,
    status: DeliveryStatus | None = None,
) -> DeliveryPage:
    """One page of an endpoint's deliveries. Raises EndpointNotFound."""
    find_endpoint(owner, endpoint_id)
    query = _own(owner).where(WebhookDelivery.endpoint_id == endpoint_id)
    if before is not None:
        query = query.where(WebhookDelivery.id < before)
    if status is not None:
        query = query.where(WebhookDelivery.status == status)
    with transaction(owner.tenant_id) as session:
        found = list(session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(limit + 1)))
    page = found[:limit]
    return DeliveryPage(page, str(page[-1].id) if len(found) > limit else None)


def find_delivery(owner: Owner, delivery_id: UUID) -> DeliveryDetail:
    """Raises DeliveryNotFound."""
    attempts = select(WebhookAttempt).where(WebhookAttempt.delivery_id == delivery_id)
    with transaction(owner.tenant_id) as session:
        found = session.scalars(_own(owner).where(WebhookDelivery.id == delivery_id)).first()
        if found is None:
            raise DeliveryNotFound("There is no such webhook delivery.")
        recorded = list(session.scalars(attempts.order_by(WebhookAttempt.generation)))
        endpoint = session.get_one(WebhookEndpoint, found.endpoint_id)
        return DeliveryDetail(found, recorded + _under_way(found, recorded, endpoint.url))


def _under_way(
    delivery: WebhookDelivery, recorded: list[WebhookAttempt], url: str
) -> list[WebhookAttempt]:
    """The attempt under way, as its claim shows it: its row is written with its result."""
    if delivery.lease_until is None or delivery.generation in [one.generation for one in recorded]:
        return []
    return [
        WebhookAttempt(
            tenant_id=delivery.tenant_id,
            delivery_id=delivery.id,
            generation=delivery.generation,
            trigger=delivery.trigger,
            url=url,
            started_at=delivery.lease_until - LEASE,
        )
    ]


def send_test(owner: Owner, endpoint_id: UUID, *, keep: Keep = keep_nothing) -> WebhookDelivery:
    """Send a test event now. Raises EndpointNotFound, EndpointDisabled."""
    with transaction(owner.tenant_id) as session:
        endpoint = own_endpoint(session, owner, endpoint_id)
        if endpoint.status == EndpointStatus.DISABLED:
            raise EndpointDisabled("This endpoint is disabled: enable it first.")
        delivery = feed.trial_delivery(session, endpoint)
        session.flush()
        session.refresh(delivery)
        keep(session, delivery)
        return delivery


def resend_one(
    owner: Owner,
    delivery_id: UUID,
    *,
    actor: str,
    to: UUID | None = None,
    keep: Keep = keep_nothing,
) -> WebhookDelivery:
    """Send the same id and bytes again now. If `to` is given, the delivery must be this endpoint's.

    Raises DeliveryNotFound, EndpointDisabled.
    """
    endpoint_id = find_delivery(owner, delivery_id).delivery.endpoint_id
    if to not in (None, endpoint_id):
        raise DeliveryNotFound("This endpoint has no such webhook delivery.")

    def keep_it(session: Session, _count: int) -> None:
        again = _own(owner).where(WebhookDelivery.id == delivery_id)
        keep(session, session.scalars(again).one())

    _send_again(owner, endpoint_id, [delivery_id], actor=actor, keep=keep_it)
    return find_delivery(owner, delivery_id).delivery


def resend_range(
    owner: Owner, endpoint_id: UUID, span: ResendRange, *, actor: str, keep: Keep = keep_nothing
) -> int:
    """Send again the deliveries in the range, and send its missed events; returns how many.

    A delivery that waits for its next attempt is sent now, as its receiver is taken to be well
    again. Raises EndpointNotFound, EndpointDisabled.
    """
    made = 0 if span.failed_only else _make_missing(owner, endpoint_id, span)
    query = _within(
        select(WebhookDelivery.id)
        .join(PaymentEvent, PaymentEvent.id == WebhookDelivery.event_number)
        .where(
            WebhookDelivery.tenant_id == owner.tenant_id,
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.status
            == (DeliveryStatus.FAILED if span.failed_only else WebhookDelivery.status),
            # One that was created just now, or is due already, is sent anyway.
            or_(
                WebhookDelivery.status != DeliveryStatus.PENDING,
                WebhookDelivery.next_attempt_at > func.clock_timestamp(),
            ),
        ),
        span,
    )
    with transaction(owner.tenant_id) as session:
        ids = list(session.scalars(query.order_by(WebhookDelivery.id)))
    return _send_again(owner, endpoint_id, ids, actor=actor, made=made, keep=keep)


def missed(owner: Owner, endpoint_id: UUID, since: datetime) -> int:
    """How many events since then the endpoint subscribed to and was never sent.

    Counted among the first MISSED_AMONG only, because the request that enables the endpoint waits.
    """
    with transaction(owner.tenant_id) as session:
        return count_missed(session, owner, own_endpoint(session, owner, endpoint_id), since)


def count_missed(session: Session, owner: Owner, endpoint: WebhookEndpoint, since: datetime) -> int:
    """The same, in the caller's transaction."""
    first = (
        _within(
            select(PaymentEvent.id, PaymentEvent.type).where(*_published(owner)), ResendRange(since)
        )
        .order_by(PaymentEvent.created_at)
        .limit(MISSED_AMONG)
        .subquery()
    )
    counted = select(first.c.type, func.count()).group_by(first.c.type)
    unsent = counted.where(~_deliveries_of(first.c.id, endpoint.id).exists())
    return sum(
        count for kind, count in session.execute(unsent) if matches(endpoint.event_types, kind)
    )


def purge_deliveries() -> int:
    """Delete ended deliveries that are older than KEPT, with their attempts; returns how many.

    Attempts go first, by whole weekly partitions, so that few are left to be deleted row by row.
    """
    with transaction(EVERY_TENANT) as session:
        made, weeks = session.execute(text("SELECT * FROM turn_webhook_attempts()")).one()
    if made or weeks:
        log.info("webhook_attempts.turned", made=made, dropped=weeks)
    while end_deliveries_of_removed():
        pass
    dropped = 0
    while batch := _forget_batch():
        dropped += batch
    return dropped


def end_deliveries_of_removed() -> int:
    """End deliveries that remove_endpoint left pending; at most BATCH. Returns how many."""
    pending = (
        select(WebhookDelivery.id)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            WebhookEndpoint.deleted_at.is_not(None),
            WebhookDelivery.status == DeliveryStatus.PENDING,
        )
        .limit(BATCH)
        .with_for_update(of=WebhookDelivery, skip_locked=True, key_share=True)
    )
    with transaction(EVERY_TENANT) as session:
        ids = session.scalars(pending).all()
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id.in_(ids))
            .values(status=DeliveryStatus.FAILED)
        )
        return len(ids)


def _forget_batch() -> int:
    old = (
        select(WebhookDelivery.id)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            WebhookDelivery.created_at < func.clock_timestamp() - KEPT,
            # After so long, what a disabled endpoint still waits for is outdated.
            or_(
                WebhookDelivery.status != DeliveryStatus.PENDING,
                WebhookEndpoint.status == EndpointStatus.DISABLED,
            ),
            func.coalesce(WebhookDelivery.lease_until, WebhookDelivery.created_at)
            <= func.clock_timestamp(),
        )
        .limit(BATCH)
        # Locked, so that a delivery that is being sent again at this moment is not deleted.
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    )
    with transaction(EVERY_TENANT) as session:
        ids = session.scalars(old).all()
        session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(ids)))
        return len(ids)


def _make_missing(owner: Owner, endpoint_id: UUID, span: ResendRange) -> int:
    """Create a delivery for each event that the endpoint subscribed to and has none for."""
    made = 0
    after = 0
    while True:
        with transaction(owner.tenant_id) as session:
            endpoint = own_endpoint(session, owner, endpoint_id, lock=True)
            if endpoint.status == EndpointStatus.DISABLED:
                raise EndpointDisabled("This endpoint is disabled: enable it first.")
            query = _unsent(owner, endpoint_id, span).where(PaymentEvent.id > after)
            events = session.scalars(query.order_by(PaymentEvent.id).limit(BATCH)).all()
            wanted = [one for one in events if matches(endpoint.event_types, one.type)]
            session.add_all(feed.delivery_of(event, endpoint) for event in wanted)
            made += len(wanted)
        if not events:
            return made
        after = events[-1].id


def _unsent(owner: Owner, endpoint_id: UUID, span: ResendRange) -> Any:
    has_one = _deliveries_of(PaymentEvent.id, endpoint_id).exists()
    return _within(select(PaymentEvent).where(*_published(owner), ~has_one), span)


def _published(owner: Owner) -> tuple[ColumnElement[bool], ...]:
    return (
        PaymentEvent.tenant_id == owner.tenant_id,
        PaymentEvent.mode == owner.mode,
        PaymentEvent.position.is_not(None),
    )


def _deliveries_of(event_number: SQLCoreOperations[int], endpoint_id: UUID) -> Select[UUID]:
    return select(WebhookDelivery.id).where(
        WebhookDelivery.event_number == event_number, WebhookDelivery.endpoint_id == endpoint_id
    )


def _within(query: Any, span: ResendRange) -> Any:
    if span.since is not None:
        query = query.where(PaymentEvent.created_at >= span.since)
    if span.until is not None:
        query = query.where(PaymentEvent.created_at < span.until)
    return query


def _send_again(
    owner: Owner, endpoint_id: UUID, ids: list[UUID], *, actor: str, keep: Keep, made: int = 0
) -> int:
    """Returns how many, including the `made` ones, which were never sent before.

    A claimed delivery is skipped: it is being sent anyway.
    """
    with transaction(owner.tenant_id) as session:
        endpoint = own_endpoint(session, owner, endpoint_id, lock=True)
        if endpoint.status == EndpointStatus.DISABLED:
            raise EndpointDisabled("This endpoint is disabled: enable it first.")
        sent = sum(
            len(session.scalars(_again(ids[start : start + RESENT_AT_ONCE])).all())
            for start in range(0, len(ids), RESENT_AT_ONCE)
        )
        record(
            session,
            tenant_id=owner.tenant_id,
            actor=actor,
            action="webhook_endpoint.resent",
            subject_type="webhook_endpoint",
            subject_id=endpoint_id,
            detail={"deliveries": made + sent},
        )
        keep(session, made + sent)
        return made + sent


def _again(ids: list[UUID]) -> ReturningUpdate[tuple[UUID]]:
    return (
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(ids), WebhookDelivery.lease_until.is_(None))
        .values(
            status=DeliveryStatus.PENDING,
            trigger=Trigger.MANUAL,
            attempts=0,
            delivered_at=None,
            next_attempt_at=text("clock_timestamp()"),
        )
        .returning(WebhookDelivery.id)
    )


def _own(owner: Owner) -> Any:
    return select(WebhookDelivery).where(
        WebhookDelivery.tenant_id == owner.tenant_id, WebhookDelivery.mode == owner.mode
    )
