"""Stored responses are purged after their time, once the payment is final; keys never."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from sqlalchemy import select

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.idempotency import IdempotencyKey
from payments_app.payments import retention
from payments_app.payments.accept import AcceptContext
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.retention import purge_responses
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    in_threads,
    rails_of,
)
from tests.storage.attacker import EVERY_ROW

PAST: Final = timedelta(seconds=-1)
# Copies of the only row, each with another key.
COPIES: Final = (
    "INSERT INTO idempotency_keys SELECT (jsonb_populate_record(k, jsonb_build_object("
    "'key', gen_random_uuid()))).* FROM idempotency_keys k, generate_series(1, %s)"
)


@pytest.fixture
def gateway(app: Flask) -> PaymentGateway:
    return rails_of(app, ScriptedProvider(submits=[ANSWERS["paid"]]))


def keys() -> list[IdempotencyKey]:
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(select(IdempotencyKey)))


def a_past_asker() -> AcceptContext:
    return an_asker(key=uuid4(), kept_for=PAST)


def test_an_answer_goes_when_its_time_is_over_and_its_payment_has_ended(
    gateway: PaymentGateway,
) -> None:
    an_accepted_payment(gateway, context=a_past_asker())
    (before,) = keys()
    advance(gateway)
    assert purge_responses() == 1
    (after,) = keys()
    assert (after.body, after.headers, after.field_digests) == (None, None, None)
    for column in ("key", "fingerprint", "fingerprint_version", "resource_id", "status"):
        assert getattr(after, column) == getattr(before, column)
    assert purge_responses() == 0


@pytest.mark.parametrize("answer", ["accepted", "unknown", "not_sent"])
def test_an_answer_stays_while_money_may_be_in_flight(app: Flask, answer: str) -> None:
    provider = ScriptedProvider(submits=[ANSWERS[answer]], checks=[ANSWERS["pending"]])
    gateway = rails_of(app, provider)
    an_accepted_payment(gateway, context=a_past_asker())
    assert purge_responses() == 0
    advance(gateway)
    assert purge_responses() == 0
    assert keys()[0].body is not None


def test_an_answer_whose_time_is_not_over_stays(gateway: PaymentGateway) -> None:
    an_accepted_payment(gateway, context=an_asker(key=uuid4()))
    advance(gateway)
    assert purge_responses() == 0
    assert keys()[0].body is not None


def test_a_backlog_of_several_batches_is_worked_off_in_one_go(
    gateway: PaymentGateway, database_url: str
) -> None:
    an_accepted_payment(gateway, context=a_past_asker())
    advance(gateway)
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        connection.execute(COPIES, [retention.BATCH + 10])
    assert purge_responses() == retention.BATCH + 11
    assert {key.body for key in keys()} == {None}


def test_two_sweeps_at_once_drop_each_answer_once(
    app: Flask, gateway: PaymentGateway, database_url: str
) -> None:
    an_accepted_payment(gateway, context=a_past_asker())
    advance(gateway)
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        connection.execute(COPIES, [59])
    dropped = in_threads(app, purge_responses, times=4)
    assert sum(count for count in dropped if isinstance(count, int)) == 60
    assert {key.body for key in keys()} == {None}


def test_a_key_that_somebody_holds_is_left_for_the_next_sweep(
    gateway: PaymentGateway, database_url: str
) -> None:
    caller = a_caller()
    askers = [an_asker(caller=caller, key=uuid4(), kept_for=PAST) for _ in range(3)]
    for context in askers:
        an_accepted_payment(gateway, context=context)
    advance(gateway)
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        connection.execute(
            "SELECT FROM idempotency_keys WHERE key = %s FOR UPDATE", [askers[0].idempotency_key]
        )
        assert purge_responses() == 2
    assert purge_responses() == 1
