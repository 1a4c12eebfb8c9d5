"""One payment per key, with concurrent or stuck requests, or without the broker."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from sqlalchemy import func, select

from devstack.redis_server import RedisServer
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.kernel.idempotency import IdempotencyKey, KeyInProgress, fingerprint
from payments_app.payments.accept import AcceptContext, Accepted, attempt_of
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.payments.payers import payer_of
from payments_app.webhooks.model import PaymentEvent
from tests.builders import (
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_order,
    await_lock_waits,
    in_threads,
    keyring,
    let_rings_be_heard,
    payment_row,
    rails_of,
)
from tests.storage.attacker import EVERY_ROW

# How long a client may wait, plus a margin for a slow machine.
WAIT_MAX_S: Final = 5.0
WAITS_MAX: Final = 3
AWAY_MAX_S: Final = 3.0


@pytest.fixture
def gateway(app: Flask) -> PaymentGateway:
    return rails_of(app, ScriptedProvider())


@pytest.fixture
def context() -> AcceptContext:
    return an_asker(key=uuid4())


def count(model: type) -> int:
    with transaction(EVERY_TENANT) as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def payments_and_keys() -> tuple[int, int]:
    return count(Payment), count(IdempotencyKey)


@pytest.mark.usefixtures("long_lock_waits")
def test_of_many_equal_requests_at_once_one_is_run_and_all_are_given_its_answer(
    app: Flask, gateway: PaymentGateway, context: AcceptContext
) -> None:
    results = in_threads(app, lambda: an_accepted_payment(gateway, context=context), times=32)
    assert {type(result) for result in results} == {Accepted}
    assert len({result.answer.body for result in results}) == 1
    assert sorted(str(result.status_now) for result in results) == ["None", *["PENDING"] * 31]
    assert payments_and_keys() == (1, 1)
    assert count(PaymentEvent) == 1


@pytest.mark.usefixtures("long_lock_waits")
def test_of_many_different_orders_under_one_key_at_once_one_is_taken(
    app: Flask, gateway: PaymentGateway, context: AcceptContext
) -> None:
    orders = (an_order(amount=str(amount)) for amount in itertools.count(1000))
    results = in_threads(
        app, lambda: an_accepted_payment(gateway, order=next(orders), context=context), times=16
    )
    assert sorted(type(result).__name__ for result in results) == ["Accepted", *["KeyReused"] * 15]
    assert payments_and_keys() == (1, 1)


@pytest.mark.usefixtures("long_lock_waits")
def test_of_many_payments_for_one_external_id_at_once_one_is_taken(
    app: Flask, gateway: PaymentGateway
) -> None:
    caller = a_caller()
    order = an_order(external_id="order-1")
    results = in_threads(
        app,
        lambda: an_accepted_payment(
            gateway, order=order, context=an_asker(caller=caller, key=uuid4())
        ),
        times=16,
    )
    names = sorted(type(result).__name__ for result in results)
    assert names == ["Accepted", *["ExternalIdTaken"] * 15]
    assert payments_and_keys() == (1, 1)


@dataclass
class FirstRequest:
    """A request that has claimed the key and inserted its payment, but has not committed."""

    connection: psycopg.Connection
    payment_id: UUID


@contextmanager
def a_first_request_in_flight(
    context: AcceptContext, gateway: PaymentGateway, url: str
) -> Iterator[FirstRequest]:
    """Another process's open transaction, which inserted the key with a payment's id."""
    attempt = attempt_of(an_order(), context, keyring())
    assert attempt is not None
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=context.caller)).payment_id
    payer = payer_of(keyring(), payment_row(payment_id))
    assert payer is not None
    with psycopg.connect(url, options=EVERY_ROW) as connection:
        connection.execute(
            "INSERT INTO idempotency_keys (tenant_id, mode, key, fingerprint, fingerprint_version,"
            " field_digests, resource_id, status, headers, body, expires_at) VALUES"
            " (%s, %s, %s, %s, 1, '{}', %s, 201, '{}', %s, now() + interval '1 day')",
            [
                *(attempt.tenant_id, attempt.mode, attempt.key, fingerprint(attempt, 1)),
                payment_id,
                payer.data_key.encrypt(b"first", about=f"answer {attempt.key}"),
            ],
        )
        yield FirstRequest(connection, payment_id)
        connection.rollback()


def test_a_second_request_gives_up_on_a_first_that_is_stuck(
    gateway: PaymentGateway, context: AcceptContext, database_url: str
) -> None:
    with a_first_request_in_flight(context, gateway, database_url):
        waited_s: list[float] = []
        # If the machine does not run a process meanwhile, the wait is longer: then once more.
        while len(waited_s) < WAITS_MAX and (not waited_s or waited_s[-1] >= WAIT_MAX_S):
            before = time.monotonic()
            with pytest.raises(KeyInProgress) as refused:
                an_accepted_payment(gateway, context=context)
            waited_s.append(time.monotonic() - before)
        assert 1 < waited_s[-1] < WAIT_MAX_S, waited_s
        assert refused.value.extra["retry_after_s"] >= 1
        # The stuck request blocks no request with another key.
        an_accepted_payment(gateway, context=an_asker(caller=context.caller, key=uuid4()))
    assert an_accepted_payment(gateway, context=context).status_now is None


@pytest.mark.usefixtures("long_lock_waits")
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_a_second_request_waits_for_the_first_and_takes_what_is_left(
    app: Flask, gateway: PaymentGateway, context: AcceptContext, database_url: str, outcome: str
) -> None:
    second: list[Accepted] = []

    def ask() -> None:
        with app.app_context():
            second.append(an_accepted_payment(gateway, context=context))
            db.session.remove()

    with a_first_request_in_flight(context, gateway, database_url) as first:
        thread = threading.Thread(target=ask)
        thread.start()
        await_lock_waits(database_url, 1)
        assert second == []
        getattr(first.connection, outcome)()
        thread.join()
    if outcome == "commit":
        assert second[0].payment_id == first.payment_id
        assert second[0].answer.body == b"first"
    else:
        assert second[0].payment_id != first.payment_id
        assert second[0].status_now is None


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A broker for the test to stop; afterwards it runs again, and notifications arrive."""
    let_rings_be_heard()
    yield redis_server
    redis_server.process.cont()
    redis_server.start()
    let_rings_be_heard()


@pytest.mark.parametrize("away", [RedisServer.kill, lambda server: server.process.stop()])
def test_a_payment_is_accepted_in_time_while_the_broker_is_dead_or_hangs(
    broker: RedisServer, gateway: PaymentGateway, away: Callable[[RedisServer], None]
) -> None:
    askers = [an_asker(key=uuid4()) for _ in range(3)]
    away(broker)
    for context in askers:
        before = time.monotonic()
        accepted = an_accepted_payment(gateway, context=context)
        assert time.monotonic() - before < AWAY_MAX_S
        assert an_accepted_payment(gateway, context=context).answer == accepted.answer
    # The rows are the queue: a worker finds them due without a notification. If the rate limits are
    # in the same Redis, the first pass waits for its timeout, and then the checks are due as well.
    assert advance(gateway) >= len(askers)
    assert payment_row(accepted.payment_id).submissions == 1
