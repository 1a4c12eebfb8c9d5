"""Workers of one queue each: an operator may run payments and webhooks on different hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from celery import Celery

from devstack.stack import Stack
from devstack.supervisor import wait_until
from payments_app.worker.celery_app import HOUSEKEEPING, PAYMENTS, QUEUES, WEBHOOKS
from tests.journeys.gateway import PATIENCE_S, TENANT, Gateway, Paid
from tests.webhooks.receiver import Receiver, receiving

PAYER, DISPATCHER, KEEPER = "worker-1", "worker-2", "worker-3"


@pytest.fixture(scope="module")
def split(stack_factory: partial[Stack]) -> Iterator[Gateway]:
    """A worker for payments, one for webhooks, one for the rest."""
    with stack_factory(
        workers=1, celery_workers=3, worker_queues=(PAYMENTS, WEBHOOKS, HOUSEKEEPING)
    ) as stack:
        yield Gateway(stack)


@pytest.fixture
def receiver(split: Gateway) -> Iterator[Receiver]:
    with receiving() as found:
        added = split.stack.flask("webhooks", "add", TENANT, found.url, "--json")
        yield found
        split.stack.flask("webhooks", "remove", TENANT, json.loads(added)["id"])


@pytest.fixture
def gateway(split: Gateway) -> Gateway:
    split.heal()
    for name in (PAYER, DISPATCHER, KEEPER):
        split.await_working(split.stack.processes[name])
    return split


def told_of(receiver: Receiver, paid: Paid) -> list[dict[str, Any]]:
    documents = [one.document for one in list(receiver.received)]
    return [one for one in documents if one["data"].get("payment_id") == paid.id]


def await_told(receiver: Receiver, paid: Paid) -> None:
    wait_until(
        lambda: any(one["type"] == "payment.successful" for one in told_of(receiver, paid)),
        what="the tenant is not told",
        limit_s=PATIENCE_S,
    )


def test_a_payment_ends_and_is_told_by_workers_of_one_queue_each(
    gateway: Gateway, receiver: Receiver
) -> None:
    paid = gateway.pay()
    gateway.await_end(paid)
    await_told(receiver, paid)


def test_without_the_worker_for_payments_nothing_is_sent_to_the_provider(
    gateway: Gateway, receiver: Receiver
) -> None:
    """Neither by a task nor by a poll of another worker."""
    gateway.stack.processes[PAYER].kill()
    paid = gateway.pay()
    # The other workers have polled by then: they delivered the event of the acceptance.
    wait_until(lambda: told_of(receiver, paid), what="not told", limit_s=PATIENCE_S)
    assert gateway.row(paid)["generation"] == 0
    gateway.stack.processes[PAYER].start()
    gateway.await_end(paid)


def test_without_the_worker_for_webhooks_payments_end_and_nobody_is_told(
    gateway: Gateway, receiver: Receiver
) -> None:
    gateway.stack.processes[DISPATCHER].kill()
    paid = gateway.pay()
    gateway.await_end(paid)
    assert told_of(receiver, paid) == []
    gateway.stack.processes[DISPATCHER].start()
    await_told(receiver, paid)


def test_without_the_broker_each_worker_polls_for_its_own_queue(
    gateway: Gateway, receiver: Receiver
) -> None:
    gateway.stack.redis.kill()
    paid = gateway.pay()
    gateway.await_end(paid)
    await_told(receiver, paid)


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("name", ["payments.advance", "payments.of_another_release"])
def test_a_notification_under_an_old_or_unknown_name_does_no_harm(
    gateway: Gateway, queue: str, name: str
) -> None:
    """During a deploy, processes of two releases share the broker."""
    with Celery(broker=gateway.stack.redis.url) as other_release:
        other_release.conf.task_default_exchange = HOUSEKEEPING
        for _ in range(3):
            other_release.send_task(name, queue=queue, exchange=HOUSEKEEPING, routing_key=queue)
    paid = gateway.pay()
    gateway.await_end(paid)
    gateway.stack.check()
    for worker in gateway.workers:
        assert worker.alive
