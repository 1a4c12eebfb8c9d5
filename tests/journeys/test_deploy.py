"""A deploy: everything is asked to end under load, and started again. Nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time

from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid
from tests.journeys.referee import (
    assert_all_charged_once,
    assert_one_payment_a_key,
)

# What an orchestrator gives a process between SIGTERM and SIGKILL, with some to spare.
EXIT_MAX_S = 40.0
CLIENTS = 6


def test_sigterm_under_load_ends_every_process_in_order_and_loses_nothing(
    gateway: Gateway,
) -> None:
    # Each submission takes a while, so that there is always work in hand.
    gateway.provider.fault("slow", times=None, operation="create", parameters={"delay_s": 1.0})
    payments: list[Paid] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            payments.append(gateway.pay())

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    wait_until(lambda: len(payments) > 40, what="no load", limit_s=PATIENCE_S)
    codes = _end_in_order(gateway, ["api", "worker-1", "worker-2", "beat-1", "beat-2"])
    # What was in hand was finished: no payment waits for a lease that nobody holds.
    leased = gateway.rows("SELECT id FROM payments WHERE lease_until > clock_timestamp()")
    gateway.heal()
    stop.set()
    for thread in clients:
        thread.join(PATIENCE_S)
    assert codes == dict.fromkeys(codes, 0)
    assert leased == []
    gateway.await_end(*payments)
    assert_one_payment_a_key(gateway, *payments)
    assert_all_charged_once(gateway, payments, looked_at=20)


def _end_in_order(gateway: Gateway, names: list[str]) -> dict[str, int | None]:
    """SIGTERM to all at once; the exit code of each that ended by itself in time."""
    processes = [gateway.stack.processes[name] for name in names]
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
