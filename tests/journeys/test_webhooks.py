"""Webhooks on a whole stack: a worker is killed, the broker hangs, the receiver fails at first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, TENANT, Gateway, Paid
from tests.webhooks.receiver import OK, Received, Receiver, Reply, receiving

KINDS = ["payment.accepted", "payment.pending", "payment.successful"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def endpoint(gateway: Gateway, receiver: Receiver) -> Iterator[dict[str, Any]]:
    """The tenant's endpoint at the receiver; removed at the end."""
    added = gateway.stack.flask("webhooks", "add", TENANT, receiver.url, "--json")
    found: dict[str, Any] = json.loads(added)
    yield found
    gateway.stack.flask("webhooks", "remove", TENANT, found["id"])


def told_of(receiver: Receiver, paid: Paid) -> list[Received]:
    """The deliveries for this payment."""
    came = list(receiver.received)
    return [one for one in came if one.document["data"].get("payment_id") == paid.id]


def await_told(receiver: Receiver, paid: Paid, times: int) -> None:
    wait_until(
        lambda: len(told_of(receiver, paid)) >= times,
        what=f"not told {times} times",
        limit_s=PATIENCE_S,
    )


def test_a_payments_story_arrives_signed_and_in_order(
    gateway: Gateway, receiver: Receiver, endpoint: dict[str, Any]
) -> None:
    paid = gateway.pay()
    gateway.await_end(paid)
    await_told(receiver, paid, 3)

    told = [one.verified(endpoint["secret"]) for one in told_of(receiver, paid)]
    assert [one["type"] for one in told] == KINDS
    assert [one["data"]["sequence"] for one in told] == [1, 2, 3]


def test_a_worker_killed_during_the_post_is_followed_by_the_same_id_and_bytes(
    gateway: Gateway, receiver: Receiver, endpoint: dict[str, Any]
) -> None:
    # Longer than a worker waits for an answer: it is killed before one arrives.
    receiver.reply = lambda _received: (200, {}, 30.0)
    with gateway.one_working() as (victim, other):
        paid = gateway.pay()
        await_told(receiver, paid, 1)
        victim.kill()
        receiver.reply = lambda _received: OK
        gateway.rows(
            "UPDATE webhook_deliveries SET lease_until = clock_timestamp()"
            " WHERE lease_until IS NOT NULL"
        )
        gateway.end_leases(paid)
        other.cont()
        gateway.await_end(paid)
        # The worker that was killed may have been submitting it too: then it was unknown for a while.
        events = [event["type"] for event in gateway.story(paid)]
        await_told(receiver, paid, len(events) + 1)

    came = told_of(receiver, paid)
    assert (came[0].message_id, came[0].body) == (came[1].message_id, came[1].body)
    assert [one.verified(endpoint["secret"])["type"] for one in came[1:]] == events
    assert {"payment.accepted", "payment.successful"} <= set(events)
    attempts = gateway.rows(
        "SELECT a.outcome FROM webhook_attempts a JOIN webhook_deliveries d ON d.id = a.delivery_id"
        " WHERE d.payment_id = %s AND d.sequence = 1 ORDER BY a.generation",
        paid.id,
    )
    assert attempts == [(None,), ("delivered",)]


def test_news_arrive_without_a_broker(
    gateway: Gateway, receiver: Receiver, endpoint: dict[str, Any]
) -> None:
    gateway.stack.redis.process.stop()
    try:
        paid = gateway.pay()
        await_told(receiver, paid, 1)
    finally:
        gateway.stack.redis.process.cont()
    gateway.await_end(paid)
    await_told(receiver, paid, 3)

    assert {one.verified(endpoint["secret"])["endpoint_id"] for one in told_of(receiver, paid)} == {
        endpoint["id"]
    }


def test_all_is_told_once_at_least_whatever_the_receiver_answers_at_first(
    gateway: Gateway, receiver: Receiver, endpoint: dict[str, Any]
) -> None:
    """Each first attempt fails, each second succeeds: none is lost, and no id has two bodies."""
    tried: set[str] = set()

    def reply(received: Received) -> Reply:
        if received.message_id in tried:
            return OK
        tried.add(received.message_id)
        return (503, {}, 0.0)

    receiver.reply = reply
    paid = list(gateway.pay_all([gateway.order()["payer"] for _ in range(20)]).values())
    gateway.await_end(*paid)

    def all_told() -> bool:
        gateway.rows(
            "UPDATE webhook_deliveries SET next_attempt_at = clock_timestamp()"
            " WHERE status = 'pending' AND lease_until IS NULL"
        )
        open_ones = "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'"
        unpublished = "SELECT count(*) FROM events WHERE feed_data IS NULL"
        # In this order: an event gets its deliveries when it is published.
        return gateway.rows(unpublished) == gateway.rows(open_ones) == [(0,)]

    wait_until(all_told, what="deliveries are pending", limit_s=PATIENCE_S)
    bodies: dict[str, set[bytes]] = {}
    for one in receiver.received:
        one.verified(endpoint["secret"])
        bodies.setdefault(one.message_id, set()).add(one.body)
    assert all(len(one) == 1 for one in bodies.values())
    for payment in paid:
        sequences = [one.document["data"]["sequence"] for one in told_of(receiver, payment)]
        assert sequences == sorted(sequences)
        assert set(sequences) == {event["sequence"] for event in gateway.story(payment)}
