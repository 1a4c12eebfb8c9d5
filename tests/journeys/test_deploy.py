"""A deploy: every process gets SIGTERM under load and is started again. Nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from uuid import UUID

import pytest
import requests

from devstack.places import free_port
from devstack.programs import Programs, await_api
from devstack.servers import Servers
from devstack.supervisor import Process, wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid, new_payer
from tests.journeys.referee import assert_all_charged_once, assert_one_payment_a_key

# The time from SIGTERM to SIGKILL that an orchestrator gives, and some more.
EXIT_MAX_S = 40.0
CLIENTS = 6
# Twice what two workers can process at once.
BACKLOG = 80
ENDING = ["api", "worker-1", "worker-2", "beat-1", "beat-2"]


@pytest.mark.parametrize("broker", ["there", "away"])
def test_sigterm_under_load_ends_every_process_in_order_and_loses_nothing(
    gateway: Gateway, broker: str
) -> None:
    for process in gateway.workers:
        # A worker that is still starting would end at once, without any work to finish.
        gateway.await_working(process)
    # Each submission takes a while, and there are more than the workers have slots.
    gateway.provider.fault("slow", times=None, operation="create", parameters={"delay_s": 2.0})
    if broker == "away":
        gateway.stack.redis.kill()
    # Of other tests; a worker that they killed may still have leases.
    others = [row[0] for row in gateway.rows("SELECT id FROM payments WHERE status = 'PENDING'")]
    with load(gateway) as payments:
        for worker in gateway.workers:
            worker.stop()
        wait_until(lambda: len(payments) > BACKLOG, what="no load", limit_s=PATIENCE_S)
        for worker in gateway.workers:
            worker.cont()
        _await_work_in_hand(gateway, others)
        codes = _end_in_order([gateway.stack.processes[name] for name in ENDING])
        untouched, leased = gateway.rows(
            "SELECT count(*) FILTER (WHERE generation = 0),"
            " count(*) FILTER (WHERE lease_until > clock_timestamp()) FROM payments"
            " WHERE id <> ALL(%s)",
            others,
        )[0]
        gateway.heal()
    assert codes == dict.fromkeys(ENDING, 0)
    # The payments under way were finished, and no new one was begun.
    assert leased == 0
    assert untouched > 0
    gateway.await_end(*payments)
    assert_one_payment_a_key(gateway, *payments)
    assert_all_charged_once(gateway, payments, looked_at=20)


def test_two_workers_and_two_beats_share_the_work_send_each_payment_once_and_never_stumble(
    gateway: Gateway,
) -> None:
    for process in gateway.workers:
        gateway.await_working(process)
    before = _errors(gateway.workers)
    payments = list(gateway.pay_all([new_payer() for _ in range(100)]).values())
    gateway.await_end(*payments)
    calls = gateway.provider.rows("requests")
    # A 401 refuses a token that another test has ended: the payment is sent with a new one.
    sent = Counter(
        call["reference_id"]
        for call in calls
        if call["operation"] == "create" and call["status"] != 401
    )
    assert {sent[paid.reference] for paid in payments} == {1}
    assert _errors(gateway.workers) == before
    assert_all_charged_once(gateway, payments, looked_at=10)


@contextmanager
def load(gateway: Gateway) -> Iterator[list[Paid]]:
    """Clients that pay one after the other, until the block ends and each has its answer."""
    payments: list[Paid] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            payments.append(gateway.pay())

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield payments
    finally:
        stop.set()
        for thread in clients:
            thread.join(PATIENCE_S)


def _await_work_in_hand(gateway: Gateway, others: list[UUID]) -> None:
    in_hand = "SELECT 1 FROM payments WHERE lease_until > clock_timestamp() AND id <> ALL(%s)"
    wait_until(
        lambda: bool(gateway.rows(in_hand, others)),
        what="nobody works",
        limit_s=PATIENCE_S,
    )


def _end_in_order(processes: list[Process]) -> dict[str, int | None]:
    """Send SIGTERM to all at once; the exit code of each that ended by itself in time."""
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + EXIT_MAX_S
    wait_until(
        lambda: time.monotonic() > deadline or not any(process.alive for process in processes),
        what="the deadline does not come",
        limit_s=EXIT_MAX_S + PATIENCE_S,
    )
    codes = {process.name: process.exit_code for process in processes}
    for process in processes:
        process.terminate()
    return codes


def _errors(workers: list[Process]) -> dict[str, list[str]]:
    """What each worker has logged as an error or worse."""
    found: dict[str, list[str]] = {}
    for worker in workers:
        # The last line may not be whole yet.
        *whole, _ = worker.log_text().split("\n")
        lines = [line for line in whole if line.startswith("{")]
        levels = [(json.loads(line).get("level"), line) for line in lines]
        found[worker.name] = [line for level, line in levels if level in {"error", "critical"}]
    return found


def test_a_balancer_hears_that_the_api_is_to_end_before_it_does(
    gateway: Gateway, servers: Servers
) -> None:
    programs, port = Programs({**gateway.stack.environment, "DRAIN_SECONDS": "10"}), free_port()
    url = f"http://127.0.0.1:{port}"
    api = servers.supervisor.start(replace(programs.api(port=port, workers=2), name="draining-api"))
    await_api(api, url)
    asked = partial(requests.get, f"{url}/health/ready", timeout=10)
    os.kill(api.pid, signal.SIGTERM)
    wait_until(lambda: asked().status_code == 503, what="it is ready", limit_s=PATIENCE_S)
    assert asked().json()["status"] == "draining"
    # Requests that still arrive are answered.
    assert requests.get(f"{url}/health/live", timeout=10).status_code == 200
    servers.supervisor.forget(api)
    wait_until(lambda: not api.alive, what="it serves on", limit_s=EXIT_MAX_S)
    assert api.exit_code == 0
