"""SIGKILL at every point of a payment's life: the ledger's truth, one charge, the same bytes (G4).

A point is held without a change to our code: by a slow provider, or by a row, a table or a Redis
that makes the next step wait. The kill ends the whole process, with no clean-up.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import psycopg
import pytest

from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid, new_payer
from tests.journeys.referee import (
    assert_all_charged_once,
    assert_charged_once,
    assert_one_payment_a_key,
)

# Longer than a worker waits for an answer: it is killed before one arrives.
LONG_S = 40.0
# Long enough to lock the row after the claim; the answer arrives while the row is locked.
SHORT_S = 4.0


@contextmanager
def claimed(gateway: Gateway) -> Iterator[Paid]:
    """Claimed and recorded, nothing sent: the worker still waits for its access token."""
    gateway.let_token_run_out()
    gateway.provider.fault("token_slow", times=None, parameters={"delay_s": LONG_S})
    paid = gateway.pay()
    gateway.await_fault("token_slow")
    assert gateway.provider.truth(paid.reference).requests == []
    yield paid
    gateway.provider.reset()
    # With its locks: the dead worker's lock for refreshing the token would last for ten seconds.
    gateway.stack.redis.flush()


@contextmanager
def left(gateway: Gateway) -> Iterator[Paid]:
    """The request was sent; the provider accepts it seconds later, when its sender is dead."""
    paid = _pay_with(gateway, "hang", {"delay_s": 3.0})
    gateway.await_call(paid, "create")
    yield paid


@contextmanager
def accepted(gateway: Gateway) -> Iterator[Paid]:
    """The provider has accepted it, and its answer never arrives."""
    paid = _pay_with(gateway, "accept_then_hang", {"delay_s": LONG_S})
    gateway.await_call(paid, "create")
    yield paid


@contextmanager
def answered(gateway: Gateway) -> Iterator[Paid]:
    """The 202 has arrived, and recording it waits for the row."""
    paid = _pay_with(gateway, "slow", {"delay_s": SHORT_S})
    gateway.await_call(paid, "create")
    with gateway.holding_row(paid):
        gateway.await_waiting_backend()
        yield paid


@contextmanager
def asked(gateway: Gateway) -> Iterator[Paid]:
    """The status check was sent, and the answer never arrives."""
    paid = _pay_with(gateway, "hang", {"delay_s": LONG_S}, operation="status")
    gateway.await_call(paid, "status")
    yield paid


@contextmanager
def ended(gateway: Gateway) -> Iterator[Paid]:
    """SUCCESSFUL has arrived, and recording it waits for the row."""
    paid = _pay_with(gateway, "slow", {"delay_s": SHORT_S}, operation="status")
    gateway.await_call(paid, "status")
    with gateway.holding_row(paid):
        gateway.await_waiting_backend()
        yield paid


POINTS = [claimed, left, accepted, answered, asked, ended]


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_anywhere_leaves_a_payment_that_another_brings_to_its_end(
    gateway: Gateway, point: Callable[[Gateway], object]
) -> None:
    gateway.provider.settings(callback_mode="none")
    with gateway.one_working() as (victim, other):
        with point(gateway) as paid:  # type: ignore[attr-defined]  # a context manager of ours
            victim.kill()
            known = len(gateway.provider.truth(paid.reference).requests)
        gateway.end_leases(paid)
        other.cont()
        gateway.await_end(paid)
    _await_late_submissions(gateway, paid)
    assert_charged_once(gateway, paid)
    assert_one_payment_a_key(gateway, paid)
    after = gateway.provider.truth(paid.reference).requests[known:]
    assert after[0]["operation"] == "status", "it was sent again before anybody asked"


def test_a_worker_killed_between_many_claims_and_their_sends_leaves_each_to_be_charged_once(
    gateway: Gateway,
) -> None:
    gateway.provider.settings(callback_mode="none")
    with gateway.one_working() as (victim, other):
        gateway.let_token_run_out()
        gateway.provider.fault("token_slow", times=None, parameters={"delay_s": LONG_S})
        payments = list(gateway.pay_all([new_payer() for _ in range(12)]).values())
        wait_until(
            lambda: _in_hand(gateway, payments) > 1,
            what="it has not claimed several",
            limit_s=PATIENCE_S,
        )
        victim.kill()
        assert not any(gateway.provider.truth(paid.reference).requests for paid in payments)
        gateway.provider.reset()
        gateway.stack.redis.flush()
        gateway.end_leases(*payments)
        other.cont()
        gateway.await_end(*payments)
    assert_one_payment_a_key(gateway, *payments)
    assert_charged_once(gateway, *payments)


def test_a_request_killed_before_its_commit_has_done_nothing_and_its_retry_does_it_once(
    gateway: Gateway,
) -> None:
    order, key = gateway.order(), str(uuid4())
    with gateway.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE payments IN EXCLUSIVE MODE")
        client = _send_aside(gateway, order, key)
        gateway.await_waiting_backend()
        # The master survives and starts others.
        for worker in gateway.stack.processes["api"].children():
            os.kill(worker, signal.SIGKILL)
        client.join(PATIENCE_S)
        assert gateway.payments_of(order) == 0
    paid = Paid(key, order, gateway.send_until_created(order, key).content)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)
    assert_one_payment_a_key(gateway, paid)


def test_a_request_killed_after_its_commit_is_answered_at_its_retry_as_the_first_would_have_been(
    gateway: Gateway,
) -> None:
    order, key = gateway.order(), str(uuid4())
    with _commits_unanswered(gateway) as wait_for_one:
        client = _send_aside(gateway, order, key)
        wait_for_one(client)
        gateway.stack.processes["api"].kill()
        client.join(PATIENCE_S)
    wait_until(
        lambda: gateway.payments_of(order) == 1, what="nothing committed", limit_s=PATIENCE_S
    )
    gateway.stack.processes["api"].start()
    answer = gateway.send_until_created(order, key)
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert client.outcome == "no answer"
    paid = Paid(key, order, answer.content)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)
    assert_one_payment_a_key(gateway, paid)


def test_with_all_workers_and_beats_killed_at_once_open_payments_wait_and_then_all_end(
    gateway: Gateway,
) -> None:
    gateway.provider.settings(callback_mode="none", approval_delay_s=None)
    payers = [new_payer() for _ in range(20)]
    payments = list(gateway.pay_all(payers).values())
    names = ["worker-1", "worker-2", "beat-1", "beat-2"]
    for name in names:
        gateway.stack.processes[name].kill()
    later = [gateway.pay() for _ in range(5)]
    gateway.provider.settings(approval_delay_s=0)
    assert gateway.open_of(*payments, *later) == 25
    gateway.stack.processes["worker-1"].start()
    gateway.end_leases(*payments)
    for paid in payments:
        gateway.await_call(paid, "create")
        if gateway.provider.truth(paid.reference).status == "PENDING":
            gateway.provider.approve(paid.reference)
    gateway.await_end(*payments, *later)
    assert_charged_once(gateway, *payments, *later)


def test_postgres_killed_under_load_loses_no_answered_payment_and_charges_none_twice(
    gateway: Gateway,
) -> None:
    payments: list[Paid] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            payments.append(gateway.pay())

    clients = [threading.Thread(target=client) for _ in range(6)]
    for thread in clients:
        thread.start()
    for enough in (20, 60):
        wait_until(partial(_has, payments, enough), what="no load", limit_s=PATIENCE_S)
        gateway.stack.postgres.kill()
        gateway.stack.postgres.start()
    stop.set()
    for thread in clients:
        thread.join(PATIENCE_S)
    gateway.end_leases(*payments)
    gateway.await_end(*payments)
    assert_one_payment_a_key(gateway, *payments)
    assert_all_charged_once(gateway, payments, looked_at=20)


def _in_hand(gateway: Gateway, payments: list[Paid]) -> int:
    """How many of them are claimed and have no result yet."""
    statement = "SELECT count(*) FROM payments WHERE lease_until IS NOT NULL AND id = ANY(%s)"
    return int(gateway.rows(statement, [paid.id for paid in payments])[0][0])


def _has(payments: list[Paid], enough: int) -> bool:
    return len(payments) >= enough


class _Client(threading.Thread):
    """A client that may get no answer."""

    outcome = "running"


def _send_aside(gateway: Gateway, order: dict[str, object], key: str) -> _Client:
    def send() -> None:
        try:
            client.outcome = str(gateway.send(order, key).status_code)
        except OSError:
            client.outcome = "no answer"

    client = _Client(target=send, daemon=True)
    client.start()
    return client


def _pay_with(
    gateway: Gateway, kind: str, parameters: dict[str, float], *, operation: str = "create"
) -> Paid:
    payer = new_payer()
    match = {"msisdn": payer}
    gateway.provider.fault(kind, operation=operation, match=match, parameters=parameters)
    return gateway.pay(payer=payer)


def _await_late_submissions(gateway: Gateway, paid: Paid) -> None:
    """Wait until the provider has answered every submission, also those that it delayed."""
    wait_until(
        lambda: all(
            row["answered_at"] for row in gateway.provider.truth(paid.reference).asked("create")
        ),
        what="the provider still works on a submission",
        limit_s=PATIENCE_S,
    )


@contextmanager
def _commits_unanswered(gateway: Gateway) -> Iterator[Callable[[_Client], None]]:
    """PostgreSQL has committed, and waits for a standby before it confirms.

    Yields a function that returns once that client's payment waits so too.
    """
    url = gateway.stack.administrator_url
    with psycopg.connect(url, autocommit=True, options="-c synchronous_commit=local") as server:

        def set_standbys(names: str) -> None:
            server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            server.execute("SELECT pg_reload_conf()")

        def await_held(client: _Client) -> None:
            def held() -> bool:
                assert client.outcome == "running", f"answered: {client.outcome}"
                return _commits_held(server, "%INSERT INTO payments %") > 0

            wait_until(held, what="no commit waits", limit_s=PATIENCE_S)

        set_standbys("nobody")
        try:
            _await_commits_held(gateway, server)
            yield await_held
        finally:
            set_standbys("")


def _commits_held(server: psycopg.Connection, query: str) -> int:
    """How many backends with such a query wait for a standby."""
    statement = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE %s"
    return len(server.execute(statement, [query]).fetchall())


def _await_commits_held(gateway: Gateway, server: psycopg.Connection) -> None:
    """Return once commits wait: that begins when the checkpointer has reread the settings.

    A payment before that would be answered at once.
    """

    def commit() -> None:
        with gateway.connect() as connection:
            connection.execute("SELECT pg_logical_emit_message(true, 'a test', 'is it held?')")

    def held() -> bool:
        probe = threading.Thread(target=commit, daemon=True)
        probe.start()
        while probe.is_alive():
            if _commits_held(server, "%is it held?%"):
                return True
            probe.join(0.02)
        return False

    wait_until(held, what="commits are not held", limit_s=PATIENCE_S)
