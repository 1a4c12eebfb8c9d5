"""The thread that notifies workers survives any error of the broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app import app_or_default

from payments_app.kernel.jobs import Job, JobNotifier


class Refusing(Celery):
    """Its broker refuses the first notification with an error that is no lost connection."""

    asked: list[str]

    def send_task(self, name: str, *_args: Any, **_options: Any) -> None:
        """Raise what AMQP's ACCESS_REFUSED raises; kombu does not wrap it."""
        self.asked.append(name)
        if len(self.asked) == 1:
            raise AccessRefused(403, "ACCESS_REFUSED")


class AccessRefused(Exception):
    """Neither an OSError nor kombu's OperationalError."""


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    app = Refusing("refusing", set_as_current=False)
    app.asked = []
    before = app_or_default()
    # The notifier's thread uses the default app.
    app.set_default()
    yield app
    before.set_default()
    app.close()


def test_a_notification_that_is_refused_is_not_the_last(refusing: Refusing) -> None:
    notifier = JobNotifier()
    notifier.notify_soon(Job.PROCESS_DUE, None)
    notifier.flush()
    notifier.notify_soon(Job.DISPATCH_WEBHOOKS, None)
    notifier.flush()
    assert refusing.asked == [Job.PROCESS_DUE.value, Job.DISPATCH_WEBHOOKS.value]
