"""One whole stack with tracing on, a collector, and a tenant's receiver of webhooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from devstack.stack import Stack
from tests.journeys.gateway import TENANT, Gateway
from tests.traces.collector import Collector, collecting
from tests.webhooks.receiver import Receiver, receiving


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="session")
def running(stack_factory: partial[Stack], collector: Collector) -> Iterator[Gateway]:
    settings = {
        "RATE_LIMIT_DEFAULT": "1000000 per minute",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        # Spans that have ended are exported at once, also those of a process that is killed later.
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with stack_factory(workers=2, celery_workers=2, beats=1, settings=settings) as stack:
        yield Gateway(stack)


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    running.heal()
    return running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def endpoint(gateway: Gateway, receiver: Receiver) -> Iterator[dict[str, Any]]:
    added = gateway.stack.flask("webhooks", "add", TENANT, receiver.url, "--json")
    found: dict[str, Any] = json.loads(added)
    yield found
    gateway.stack.flask("webhooks", "remove", TENANT, found["id"])
