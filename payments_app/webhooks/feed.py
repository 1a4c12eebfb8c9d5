"""The event feed: published in one order by one process at a time, read by cursor without a gap.

An event commits with the change that it describes, and has no position yet. The publisher assigns
positions without gaps, under a lock that it holds until its commit. So when a reader sees position
n, all events before it are visible too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import Row, Table, bindparam, func, insert, select, text, update
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from payments_app.kernel.database import Base, transaction
from payments_app.providers.contract import Mode
from payments_app.webhooks.contents import content_hash
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.model import PaymentEvent, WebhookDelivery, WebhookEndpoint
from payments_app.webhooks.patterns import TEST_EVENT, matches

# The advisory lock that allows one publisher at a time; the number is "feed" in ASCII.
ONE_PUBLISHER: Final = 0x66656564
API_VERSION: Final = "v1"
# A restored database doesn't know which positions readers have seen since the backup, so the feed
# continues after all positions that they can have.
GAP: Final = 1_000_000_000
RESTORED_EVENT: Final = "feed.restored"

# Statements use tables, not models: most events match no endpoint, and need no ORM object.
_EVENTS: Final[Table] = Base.metadata.tables[PaymentEvent.__tablename__]
_DELIVERIES: Final[Table] = Base.metadata.tables[WebhookDelivery.__tablename__]
# An event that has a hash keeps it: migration 0014 found some that were chained but not published.
_PUBLISH: Final = (
    update(_EVENTS)
    .where(_EVENTS.c.id == bindparam("of_id"))
    .values(
        position=bindparam("position"),
        feed_data=bindparam("feed_data"),
        previous_hash=func.coalesce(_EVENTS.c.previous_hash, bindparam("previous_hash")),
        hash=func.coalesce(_EVENTS.c.hash, bindparam("hash")),
        content_hash=bindparam("content_hash"),
        covers=bindparam("covers"),
    )
)
# Each position is read from the last entry of its index.
_LAST_POSITIONS: Final = text(
    """
    SELECT o.tenant_id, o.mode, coalesce((
        SELECT e.position FROM events e
        WHERE e.tenant_id = o.tenant_id AND e.mode = o.mode AND e.position IS NOT NULL
        ORDER BY e.position DESC LIMIT 1
    ), 0) AS position
    FROM unnest(CAST(:tenant_ids AS uuid[]), CAST(:modes AS text[])) AS o(tenant_id, mode)
    """
)


# Read by the feed's columns: an ORM object, or a row with some columns of its payment.
AnEvent = PaymentEvent | Row[Any]


@dataclass(frozen=True, slots=True)
class Publication:
    """An event to publish: its row, its payload, and its place in its payment's chain.

    `covers`: what of its payment the content hash covers too.
    """

    event: AnEvent
    feed_data: bytes
    previous_hash: bytes
    hash: bytes
    covers: str | None = None


def become_publisher(session: Session) -> bool:
    """False while another process publishes. The lock lasts until the caller's transaction ends."""
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(ONE_PUBLISHER))))


def publish(session: Session, publications: Sequence[Publication]) -> None:
    """Give the events, in this order, positions, payload and hashes, and insert their deliveries.

    Runs in the transaction that holds the publisher's lock.
    """
    owners = {Owner(one.event.tenant_id, one.event.mode) for one in publications}
    last = _last_positions(session, owners)
    endpoints = _all_endpoints(session, owners)
    published, deliveries = [], []
    for one in publications:
        owner = Owner(one.event.tenant_id, one.event.mode)
        last[owner] += 1
        published.append(
            {
                "of_id": one.event.id,
                "position": last[owner],
                "feed_data": one.feed_data,
                "previous_hash": one.previous_hash,
                "hash": one.hash,
                "content_hash": _content_hash(one, last[owner]),
                "covers": one.covers,
            }
        )
        deliveries += [
            _delivery_row(one.event, last[owner], one.feed_data, endpoint)
            for endpoint in endpoints[owner]
            if _listened(endpoint, one.event) and matches(endpoint.event_types, one.event.type)
        ]
    connection = session.connection()
    connection.execute(_PUBLISH, published)
    if deliveries:
        connection.execute(insert(_DELIVERIES), deliveries)


def _content_hash(one: Publication, position: int) -> bytes:
    event = one.event
    fields = str(event.event_id), event.mode, str(position), one.feed_data.hex(), one.covers
    return bytes.fromhex(content_hash(one.hash.hex(), *fields))


def _listened(endpoint: WebhookEndpoint, event: AnEvent) -> bool:
    """Whether the endpoint was enabled at the event's time. If disabled since, the delivery waits.

    Later events are offered as missed when it is enabled. No event is lost between the two, even if
    the publisher runs late.
    """
    return endpoint.disabled_at is None or bool(event.created_at < endpoint.disabled_at)


def delivery_of(event: PaymentEvent, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """A delivery, with the bytes that this endpoint gets at each attempt; they name the tenant."""
    row = _delivery_row(event, event.position, event.feed_data or b"{}", endpoint)
    return WebhookDelivery(**row)


def _delivery_row(
    event: AnEvent, position: int | None, feed_data: bytes, endpoint: WebhookEndpoint
) -> dict[str, Any]:
    body = {
        "type": event.type,
        "timestamp": event.created_at.isoformat(),
        "id": event_id(event),
        "api_version": API_VERSION,
        "tenant_id": str(event.tenant_id),
        "mode": event.mode,
        "endpoint_id": str(endpoint.id),
        "position": position,
        "data": orjson.Fragment(feed_data),
    }
    return {
        "id": uuid7(),
        "tenant_id": event.tenant_id,
        "mode": event.mode,
        "endpoint_id": endpoint.id,
        "event_number": event.id,
        "event_type": event.type,
        "payment_id": event.payment_id,
        "sequence": event.sequence,
        "body": orjson.dumps(body),
    }


def trial_delivery(session: Session, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """A test event, for this endpoint only: it has no position in the feed.

    In the caller's transaction.
    """
    event = PaymentEvent(
        tenant_id=endpoint.tenant_id, mode=endpoint.mode, type=TEST_EVENT, feed_data=b"{}"
    )
    session.add(event)
    session.flush()
    session.refresh(event)
    delivery = delivery_of(event, endpoint)
    session.add(delivery)
    return delivery


def event_id(event: AnEvent) -> str:
    """The id by which a tenant knows the event, the same at every endpoint."""
    return f"evt_{event.event_id.hex}"


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events after a position, in their order."""

    events: list[PaymentEvent]
    last_position: int


def read_events(owner: Owner, *, after: int, limit: int) -> EventPage:
    """Those after position `after`, in order; no event is ever added before one that was read."""
    query = (
        select(PaymentEvent)
        .where(
            PaymentEvent.tenant_id == owner.tenant_id,
            PaymentEvent.mode == owner.mode,
            PaymentEvent.position > after,
        )
        .order_by(PaymentEvent.position)
        .limit(limit)
    )
    with transaction(owner.tenant_id) as session:
        found = list(session.scalars(query))
    last = found[-1].position if found else None
    return EventPage(found, last or after)


def leave_gap(session: Session, tenant_id: UUID) -> None:
    """Continue GAP positions later, with an event that says so. In the caller's transaction."""
    session.execute(select(func.pg_advisory_xact_lock(ONE_PUBLISHER)))
    for mode in Mode:
        owner = Owner(tenant_id, mode)
        last = _last_position(session, owner)
        session.add(
            PaymentEvent(
                tenant_id=tenant_id,
                mode=mode,
                type=RESTORED_EVENT,
                position=last + GAP,
                feed_data=orjson.dumps({"restored_to_position": last}),
            )
        )


def last_position(owner: Owner) -> int:
    """The last position of the feed now; 0 for an empty one."""
    with transaction(owner.tenant_id) as session:
        return _last_position(session, owner)


def _last_position(session: Session, owner: Owner) -> int:
    return _last_positions(session, [owner])[owner]


def _last_positions(session: Session, owners: Collection[Owner]) -> dict[Owner, int]:
    """The last position of each feed, in one query; 0 for an empty one."""
    values = {
        "tenant_ids": [owner.tenant_id for owner in owners],
        "modes": [owner.mode for owner in owners],
    }
    rows = session.execute(_LAST_POSITIONS, values)
    return {Owner(row.tenant_id, row.mode): row.position for row in rows}


def _all_endpoints(
    session: Session, owners: Collection[Owner]
) -> Mapping[Owner, Sequence[WebhookEndpoint]]:
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id.in_({owner.tenant_id for owner in owners}),
        WebhookEndpoint.deleted_at.is_(None),
    )
    found: defaultdict[Owner, list[WebhookEndpoint]] = defaultdict(list)
    for endpoint in session.scalars(query):
        found[Owner(endpoint.tenant_id, endpoint.mode)].append(endpoint)
    return found


def words_of(event: PaymentEvent) -> dict[str, Any]:
    """The payload of a published event."""
    words: dict[str, Any] = orjson.loads(event.feed_data or b"{}")
    return words
