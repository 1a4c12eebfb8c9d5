"""The stack that journeys use: real processes, each with a handle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from uuid import uuid4

import psutil
import psycopg
import pytest
import requests

from devstack.demo import SUCCESS_MAX_S
from devstack.programs import READY_MAX_S
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import wait_until


@pytest.fixture(scope="module")
def stack(stack_factory: partial[Stack]) -> Iterator[Stack]:
    settings = {"LOG_LEVEL": "WARNING", "RATE_LIMIT_DEFAULT": "10000 per minute"}
    with stack_factory(celery_workers=2, settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    return stack.issue_key("acme")


def pay(stack: Stack, key: str) -> str:
    order = {"amount": 1000, "currency": "EUR", "payer": "256772123456"}
    headers = {"X-API-Key": key, "Idempotency-Key": str(uuid4())}
    url = f"{stack.api_url}/api/v1/payments"
    payment = requests.post(url, json=order, headers=headers, timeout=10).json()
    deadline = time.monotonic() + SUCCESS_MAX_S
    while payment["status"] == "PENDING" and time.monotonic() < deadline:
        time.sleep(0.05)
        payment = requests.get(f"{url}/{payment['id']}", headers=headers, timeout=10).json()
    return str(payment["status"])


def test_a_payment_goes_through(stack: Stack, key: str) -> None:
    assert pay(stack, key) == "SUCCESSFUL"
    stack.check()


def test_one_worker_killed_leaves_the_other_to_work(stack: Stack, key: str) -> None:
    worker = stack.processes["worker-1"]
    before = worker.pid
    worker.kill()
    assert not worker.alive
    assert pay(stack, key) == "SUCCESSFUL"
    worker.start()
    stack.await_ready()
    assert worker.pid != before


def test_the_api_has_as_many_processes_as_asked_for(stack: Stack) -> None:
    api = stack.processes["api"]
    # The stack is ready once one of them answers. gunicorn may fork the next one later.
    wait_until(
        lambda: len(api.children()) >= stack.workers,
        what="a process is missing",
        processes=[api],
        limit_s=READY_MAX_S,
    )
    assert len(api.children()) == stack.workers


def test_a_frozen_worker_is_alive_and_does_nothing(stack: Stack) -> None:
    worker = stack.processes["worker-2"]
    worker.stop()
    assert worker.alive
    assert psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
    worker.cont()
    assert psutil.Process(worker.pid).status() != psutil.STATUS_STOPPED


def test_its_servers_are_its_own(stack: Stack, servers: Servers) -> None:
    assert stack.redis.url != servers.redis.url
    assert stack.postgres.administrator_url() != servers.postgres.administrator_url()


def test_on_servers_that_are_given_it_has_a_database_of_its_own(servers: Servers) -> None:
    with Stack(workers=1, celery_workers=0, beats=0, servers=servers) as stack:
        database = stack.database
        assert servers.postgres.has_database(database)
    assert not servers.postgres.has_database(database)


def test_its_settings_are_those_given_and_none_of_the_machine(stack: Stack) -> None:
    assert stack.environment["LOG_LEVEL"] == "WARNING"
    assert "PYTEST_CURRENT_TEST" not in stack.environment


def test_the_administrator_sees_what_the_gateway_wrote(stack: Stack, key: str) -> None:
    assert pay(stack, key) == "SUCCESSFUL"
    with psycopg.connect(stack.administrator_url) as connection:
        found = connection.execute("SELECT count(*) FROM payments").fetchone()
    assert found is not None
    assert found[0] >= 1
