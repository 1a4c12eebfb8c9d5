"""What docs/deploy.md says of a broker that never answers, and of notifications."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from redis import Redis

from devstack.supervisor import wait_until
from payments_app.kernel.jobs import Job, notify
from tests.builders import let_rings_be_heard
from tests.docs.pages import the_page_says

MakeApp = Callable[..., Flask]


class MuteBroker:
    """Accepts each connection, counts it, and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    @property
    def connections(self) -> int:
        return len(self._taken)

    def close(self) -> None:
        self._listener.close()
        for one in self._taken:
            one.close()

    def _take(self) -> None:
        try:
            while True:
                self._taken.append(self._listener.accept()[0])
        except OSError:
            """It was closed."""


@pytest.fixture
def mute() -> Iterator[MuteBroker]:
    broker = MuteBroker()
    yield broker
    broker.close()


def test_a_broker_that_hangs_costs_2_seconds_once_in_5(make_app: MakeApp, mute: MuteBroker) -> None:
    the_page_says("docs/deploy.md", "costs this thread 2 s at most, once in 5 s")
    make_app(celery_broker_url=mute.url)

    begun = time.monotonic()
    notify(Job.PROCESS_DUE)
    took_s = time.monotonic() - begun
    assert took_s >= 1.9
    # Less than two timeouts would take, also on a busy machine.
    assert took_s < 2 * 5

    known_since, tries = time.monotonic(), mute.connections
    assert tries >= 1

    def is_tried_again() -> bool:
        notify(Job.PROCESS_DUE)
        return mute.connections > tries

    wait_until(is_tried_again, what="the broker is not tried again", limit_s=60)
    # The first of these calls that took time began after the pause.
    waited_s = time.monotonic() - known_since
    assert 4.9 <= waited_s < 30


def test_a_notification_lives_for_30_seconds(make_app: MakeApp, redis_url: str) -> None:
    the_page_says("docs/deploy.md", "live 30 s")
    make_app(celery_broker_url=redis_url)
    before = datetime.now(UTC)
    let_rings_be_heard()
    after = datetime.now(UTC)
    # The newest message is first.
    with Redis.from_url(redis_url) as redis:
        message = json.loads(redis.lindex("payments", 0))
    expires = datetime.fromisoformat(message["headers"]["expires"])
    assert before + timedelta(seconds=29.9) <= expires <= after + timedelta(seconds=30.1)
