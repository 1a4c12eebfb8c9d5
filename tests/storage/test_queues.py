"""Which queue each notification goes to, and what happens to one with an old task name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from redis import Redis

from devstack.supervisor import wait_until
from payments_app.kernel import jobs
from payments_app.kernel.jobs import Job, notify
from payments_app.worker.celery_app import HOUSEKEEPING, PAYMENTS, QUEUES, WEBHOOKS
from tests.builders import let_rings_be_heard


@pytest.fixture
def broker(app: Flask) -> Iterator[Redis]:
    """Its queues are empty, before and after."""
    redis: Redis = app.extensions["maramoja"].redis
    notifier = jobs._notifier
    # What an earlier test's payments ring for comes into no queue of this test.
    wait_until(
        lambda: not (notifier._wanted or notifier._is_sending),
        what="notifications are not sent",
        limit_s=10,
    )
    let_rings_be_heard()
    redis.delete(*QUEUES)
    yield redis
    redis.delete(*QUEUES)


def waiting(broker: Redis) -> dict[str, int]:
    lengths = {queue: int(str(broker.llen(queue))) for queue in QUEUES}
    return {queue: length for queue, length in lengths.items() if length}


@pytest.mark.parametrize("job", Job)
def test_each_job_goes_on_its_queue(broker: Redis, job: Job) -> None:
    notify(job)
    own = {Job.PROCESS_DUE: PAYMENTS, Job.DISPATCH_WEBHOOKS: WEBHOOKS}
    assert waiting(broker) == {own.get(job, HOUSEKEEPING): 1}


def test_an_old_name_becomes_a_notification_under_the_new_one(app: Flask, broker: Redis) -> None:
    """The worker that received it may not be one for payments."""
    app.extensions["celery"].tasks["payments.advance"]()
    assert waiting(broker) == {PAYMENTS: 1}


def test_beat_notifies_of_payments_and_of_webhooks_each_second(app: Flask) -> None:
    beat = app.extensions["celery"].conf.beat_schedule.values()
    each_second = {entry["task"] for entry in beat if entry["schedule"] == 1.0}
    assert each_second == {"payments.process_due", "webhooks.dispatch"}
