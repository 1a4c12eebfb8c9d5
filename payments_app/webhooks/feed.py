"""The events in their one order: published by one hand at a time, read by cursor without a gap.

A line of a payment's story commits with its row here, which has no position yet. The publisher
gives positions, densely, under a lock that it holds until its commit: so whoever has seen
position n has seen all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import RowMapping, Table, bindparam, func, insert, select, update
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from payments_app.kernel.database import EVERY_TENANT, Base, transaction
from payments_app.providers.contract import Mode
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.model import (
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
)
from payments_app.webhooks.patterns import TEST_EVENT, matches

# Published in one transaction; readers and deliveries wait for no longer.
BATCH: Final = 200
# Nobody publishes beside another; the number is "feed".
ONE_PUBLISHER: Final = 0x66656564
API_VERSION: Final = "v1"
# A database that was restored doesn't know which positions readers have seen since the backup:
# it goes on behind all that they can have.
GAP: Final = 1_000_000_000
RESTORED_EVENT: Final = "feed.restored"

# What each of these events says, by its number: the feature whose events they are knows.
Describe = Callable[[Session, Sequence[int]], dict[int, dict[str, Any]]]

# Statements on the tables and not on the models: most events meet no endpoint, and are no object.
_EVENTS: Final[Table] = Base.metadata.tables[WebhookEvent.__tablename__]
_DELIVERIES: Final[Table] = Base.metadata.tables[WebhookDelivery.__tablename__]
_FRESH: Final = (
    select(_EVENTS).where(_EVENTS.c.data.is_(None)).order_by(_EVENTS.c.number).limit(BATCH)
)
_PUBLISH: Final = (
    update(_EVENTS)
    .where(_EVENTS.c.number == bindparam("of_number"))
    .values(position=bindparam("position"), data=bindparam("data"))
)


def publish_events(describe: Describe) -> int:
    """Give the new events their positions, words and deliveries; how many there were.

    None while another process does it.
    """
    published = 0
    while batch := _publish_batch(describe):
        published += batch
    return published


def _publish_batch(describe: Describe) -> int:
    with transaction(EVERY_TENANT) as session:
        if not session.scalar(select(func.pg_try_advisory_xact_lock(ONE_PUBLISHER))):
            return 0
        connection = session.connection()
        events = connection.execute(_FRESH).mappings().all()
        if not events:
            return 0
        words = describe(session, [event["number"] for event in events])
        owners = {Owner(event["tenant_id"], event["mode"]) for event in events}
        last = {owner: _last_position(session, owner) for owner in owners}
        endpoints = {owner: _all_endpoints(session, owner) for owner in owners}
        published, deliveries = [], []
        for event in events:
            owner = Owner(event["tenant_id"], event["mode"])
            last[owner] += 1
            given = {"position": last[owner], "data": orjson.dumps(words[event["number"]])}
            published.append({"of_number": event["number"], **given})
            for endpoint in endpoints[owner]:
                if _listened(endpoint, event) and matches(endpoint.event_types, event["type"]):
                    whole = WebhookEvent(**{**event, **given})
                    deliveries.append(_delivery_row(whole, endpoint))
        connection.execute(_PUBLISH, published)
        if deliveries:
            connection.execute(insert(_DELIVERIES), deliveries)
        return len(events)


def _listened(endpoint: WebhookEndpoint, event: RowMapping) -> bool:
    """Whether it was enabled when it happened; if it isn't any more, the delivery waits for it.

    What happens from its disabling on is offered as missed when it is enabled: nothing falls
    between the two because the publisher came later.
    """
    return endpoint.disabled_at is None or bool(event["created_at"] < endpoint.disabled_at)


def delivery_of(event: WebhookEvent, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """The bytes that this endpoint gets at every attempt. They name whose they are."""
    return WebhookDelivery(**_delivery_row(event, endpoint))


def _delivery_row(event: WebhookEvent, endpoint: WebhookEndpoint) -> dict[str, Any]:
    body = {
        "type": event.type,
        "timestamp": event.created_at.isoformat(),
        "id": event_id(event),
        "api_version": API_VERSION,
        "tenant_id": str(event.tenant_id),
        "mode": event.mode,
        "endpoint_id": str(endpoint.id),
        "position": event.position,
        "data": orjson.Fragment(event.data or b"{}"),
    }
    return {
        "id": uuid7(),
        "tenant_id": event.tenant_id,
        "mode": event.mode,
        "endpoint_id": endpoint.id,
        "event_number": event.number,
        "event_type": event.type,
        "payment_id": event.payment_id,
        "sequence": event.sequence,
        "body": orjson.dumps(body),
    }


def trial_delivery(session: Session, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """An event that means nothing, for this endpoint only: it has no place in the feed.

    In the caller's transaction.
    """
    event = WebhookEvent(
        tenant_id=endpoint.tenant_id, mode=endpoint.mode, type=TEST_EVENT, data=b"{}"
    )
    session.add(event)
    session.flush()
    session.refresh(event)
    delivery = delivery_of(event, endpoint)
    session.add(delivery)
    return delivery


def event_id(event: WebhookEvent) -> str:
    """What a tenant knows the event by, at whichever endpoint."""
    return f"evt_{event.id.hex}"


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events behind a position, in their order."""

    events: list[WebhookEvent]
    last_position: int


def read_events(owner: Owner, *, after: int, limit: int) -> EventPage:
    """Those behind position `after`, in their order; none is ever added before one that is seen."""
    query = (
        select(WebhookEvent)
        .where(
            WebhookEvent.tenant_id == owner.tenant_id,
            WebhookEvent.mode == owner.mode,
            WebhookEvent.position > after,
        )
        .order_by(WebhookEvent.position)
        .limit(limit)
    )
    with transaction(owner.tenant_id) as session:
        found = list(session.scalars(query))
    last = found[-1].position if found else None
    return EventPage(found, last or after)


def leave_gap(session: Session, tenant_id: UUID) -> None:
    """Go on GAP positions later, with an event that says so. In the caller's transaction."""
    session.execute(select(func.pg_advisory_xact_lock(ONE_PUBLISHER)))
    for mode in Mode:
        owner = Owner(tenant_id, mode)
        last = _last_position(session, owner)
        session.add(
            WebhookEvent(
                tenant_id=tenant_id,
                mode=mode,
                type=RESTORED_EVENT,
                position=last + GAP,
                data=orjson.dumps({"restored_to_position": last}),
            )
        )


def last_position(owner: Owner) -> int:
    """Where the feed ends at this moment; 0 for an empty one."""
    with transaction(owner.tenant_id) as session:
        return _last_position(session, owner)


def _last_position(session: Session, owner: Owner) -> int:
    query = select(func.max(WebhookEvent.position)).where(
        WebhookEvent.tenant_id == owner.tenant_id, WebhookEvent.mode == owner.mode
    )
    return session.scalar(query) or 0


def _all_endpoints(session: Session, owner: Owner) -> Sequence[WebhookEndpoint]:
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id == owner.tenant_id,
        WebhookEndpoint.mode == owner.mode,
        WebhookEndpoint.deleted_at.is_(None),
    )
    return session.scalars(query).all()


def words_of(event: WebhookEvent) -> dict[str, Any]:
    """What a published event says."""
    words: dict[str, Any] = orjson.loads(event.data or b"{}")
    return words
