"""One whole stack for all journeys; each test starts with all of it repaired."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from devstack.stack import Stack
from tests.journeys.gateway import Gateway
from tests.journeys.leaks import leaks_in_logs


@pytest.fixture(scope="session")
def running(stack_factory: partial[Stack]) -> Iterator[Gateway]:
    """Two gunicorn workers, two Celery workers, two beats, Redis, PostgreSQL, the simulator.

    At the end the provider's own counts and all logs are checked once more.
    """
    settings = {"RATE_LIMIT_DEFAULT": "1000000 per minute"}
    with stack_factory(workers=2, celery_workers=2, beats=2, settings=settings) as stack:
        gateway = Gateway(stack)
        yield gateway
        gateway.heal()
        summary = gateway.provider.summary()
        assert summary["movements_by_reference_max"] <= 1
        assert summary["movements_by_external_id_max"] <= 1
        assert leaks_in_logs(gateway) == []


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    """The running stack, with every process up and no fault set."""
    running.heal()
    return running
