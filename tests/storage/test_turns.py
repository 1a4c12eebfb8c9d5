"""Claims are fair: a hanging account, a backlog or callbacks block no other payment."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from sqlalchemy import event, text

from devstack.supervisor import wait_until
from payments_app import Parts
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.kernel.http.messages import HttpClient
from payments_app.payments import processor
from payments_app.payments.account_slots import ACCOUNT_LIMITS, AccountSlots
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.claims import due_payments, waiting_queues
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.rate_limit import AccountPace
from payments_app.providers.contract import Observation, PaymentOrder, ProviderAccount, Terms
from payments_app.worker.exchange_threads import ThreadExchangePool
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    ScriptedProvider,
    advance,
    advance_payment,
    an_accepted_payment,
    an_asker,
    an_order,
    claims,
    exchanges_of,
    keyring,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)

QUICK: Final = "quick"
PATIENCE_S: Final = 30.0


def accepted(gateway: PaymentGateway, provider: str, count: int = 1) -> list[UUID]:
    """Accept `count` payments of a new tenant, through this provider."""
    context = an_asker()
    order = an_order(provider=provider)
    return [
        an_accepted_payment(gateway, context=context, order=order).payment_id for _ in range(count)
    ]


class Hanging:
    """Answers submissions and checks only after the test has set `released`."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self, _order: PaymentOrder, _wire: HttpClient) -> Observation:
        assert self.released.wait(PATIENCE_S)
        return ANSWERS["accepted"]


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.released.set()


def test_beside_a_hanging_account_with_a_backlog_others_are_submitted_and_asked_about(
    app: Flask, hanging: Hanging
) -> None:
    silent = ScriptedProvider(submits=[hanging], checks=[hanging])
    quick = ScriptedProvider(code=QUICK)
    ending = threading.Event()
    gateway = replace(rails_of(app, silent, quick), stopping=ending.is_set)
    accepted(gateway, SCRIPTED, 100)
    # Fewer slots than the backlog could take: the other account can use two.
    pool = ThreadExchangePool(app, ACCOUNT_LIMITS.first + 2)

    def work() -> None:
        with app.app_context():
            processor.process_due(gateway, pool, slots)

    slots = AccountSlots()
    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_until(lambda: len(silent.submissions) > 0, what="nothing hangs", limit_s=PATIENCE_S)
        for _ in range(3):
            # It awaits its payer until the test has seen that.
            quick.checks = [ANSWERS["pending"]]
            (payment_id,) = accepted(gateway, QUICK)
            pool.wake()
            wait_until(
                lambda one=payment_id: payment_row(one).stage == "awaiting_payer",
                what="it waits behind the silent account",
                limit_s=PATIENCE_S,
            )
            quick.checks = [ANSWERS["paid"]]
            make_due(payment_id)
            pool.wake()
            wait_until(
                lambda one=payment_id: payment_row(one).is_final,
                what="nobody asks about it",
                limit_s=PATIENCE_S,
            )
        assert len(silent.submissions) <= ACCOUNT_LIMITS.first
    finally:
        # The hanging exchanges end. The worker does not begin the rest: it is due again each second.
        ending.set()
        hanging.released.set()
        worker.join(PATIENCE_S)
        pool.join()
    assert not worker.is_alive()


def test_a_tenants_first_payment_is_claimed_with_the_first_of_anothers_backlog(app: Flask) -> None:
    gateway = rails_of(app, ScriptedProvider())
    accepted(gateway, SCRIPTED, 50)
    (late,) = accepted(gateway, SCRIPTED)
    claimed = processor._claim_due(2, gateway, AccountSlots())
    assert late in {claim.payment.id for claim in claimed}


def hint(payment_id: UUID, body: bytes) -> None:
    reference = payment_row(payment_id).reference
    record_callback(ReceivedCallback(SCRIPTED, reference, "PUT", body, None), keyring())


def test_a_hinted_question_goes_before_those_that_are_due_longer(app: Flask) -> None:
    provider = ScriptedProvider(checks=[ANSWERS["pending"]])
    gateway = rails_of(app, provider)
    ids = accepted(gateway, SCRIPTED, 5)
    advance(gateway, hands=5)
    let_time_pass(seconds=60)
    hint(ids[-1], b"1")
    (claim,) = processor._claim_due(1, gateway, AccountSlots())
    assert claim.payment.id == ids[-1]
    assert not payment_row(ids[-1]).hinted


class Limited(ScriptedProvider):
    """Its accounts accept ten status checks a second."""

    def terms(self, account: ProviderAccount) -> Terms:
        return replace(super().terms(account), checks_per_s=10.0)


@pytest.fixture
def limited(app: Flask) -> tuple[PaymentGateway, Limited]:
    """A provider with a new code, so that other tests' rates in Redis do not apply."""
    provider = Limited(checks=[ANSWERS["pending"]], code=f"limited-{uuid4().hex[:8]}")
    parts: Parts = app.extensions["maramoja"]
    gateway = rails_of(app, provider)
    return replace(gateway, pace=AccountPace(parts.redis, ceiling=10)), provider


@pytest.mark.usefixtures("quiet")
def test_each_question_is_one_claim_however_many_wait_for_the_rate(
    limited: tuple[PaymentGateway, Limited],
) -> None:
    gateway, provider = limited
    # On a slow machine, one call would go on while the rate releases more.
    gateway = replace(gateway, stopping=lambda: len(provider.questions) >= 25)
    accepted(gateway, provider.code, 60)
    advance(gateway, hands=60)
    let_time_pass(seconds=20)

    def asked_enough() -> bool:
        advance(gateway, hands=60)
        return len(provider.questions) >= 25

    wait_until(asked_enough, what="they are not asked", limit_s=PATIENCE_S)
    with transaction(EVERY_TENANT) as session:
        claimed = session.scalar(text("SELECT sum(generation) FROM payments"))
    assert claimed == len(provider.submissions) + len(provider.questions)
    # No payment is checked twice while others wait.
    assert len(set(provider.questions)) == len(provider.questions)


def test_callbacks_open_no_account_that_was_closed_by_retry_after(
    limited: tuple[PaymentGateway, Limited],
) -> None:
    gateway, provider = limited
    too_many = replace(ANSWERS["unknown"], reason="throttled", http_status=429, retry_after_s=60.0)
    provider.checks = [too_many]
    first, second = accepted(gateway, provider.code, 2)
    # The submissions only, and no check that is due a second later.
    for claim in claims(2):
        advance_payment(claim, gateway)
    make_due(first)
    advance(gateway)
    assert len(provider.questions) == 1
    for number in range(20):
        for payment_id in (first, second):
            reference = payment_row(payment_id).reference
            body = b"forged %d" % number
            record_callback(
                ReceivedCallback(provider.code, reference, "PUT", body, None), keyring()
            )
        advance(gateway, hands=2)
    assert len(provider.questions) == 1
    assert len(exchanges_of(first)) == 2
    # None of that blocks a submission.
    (third,) = accepted(gateway, provider.code)
    advance(gateway)
    assert payment_row(third).stage == "awaiting_payer"


def test_what_is_refused_for_now_is_asked_again_and_nothing_is_lost(
    limited: tuple[PaymentGateway, Limited],
) -> None:
    gateway, provider = limited
    too_many = replace(ANSWERS["unknown"], reason="throttled", http_status=429, retry_after_s=0.2)
    provider.checks = [too_many, too_many, ANSWERS["paid"]]
    ids = accepted(gateway, provider.code, 4)
    advance(gateway, hands=4)

    def all_have_ended() -> bool:
        advance(gateway, hands=4)
        return all(payment_row(each).is_final for each in ids)

    wait_until(all_have_ended, what="some are never asked again", limit_s=PATIENCE_S)


def test_a_throttled_submission_has_the_others_of_its_account_wait(
    limited: tuple[PaymentGateway, Limited],
) -> None:
    gateway, provider = limited
    provider.submits = [replace(ANSWERS["throttled"], retry_after_s=60.0)]
    accepted(gateway, provider.code, 3)
    advance(gateway)
    advance(gateway, hands=3)
    assert len(provider.submissions) == 1


# --- what it costs --------------------------------------------------------------------------------


# Parameters: JSON of the columns that differ, the number of copies, the payment's id.
COPIES: Final = """
    INSERT INTO payments SELECT (jsonb_populate_record(p, jsonb_build_object(
        'id', gen_random_uuid(), 'reference', gen_random_uuid()) || %s::jsonb)).*
    FROM payments p, generate_series(1, %s) WHERE p.id = %s
"""
ENDED: Final = """{"status": "FAILED", "stage": "final", "failure_code": "other",
    "next_action_at": null, "evidence_id": 1, "final_at": "2026-01-01T00:00:00Z"}"""
BUFFERS: Final = re.compile(r"Buffers: shared (?:hit|read)=(\d+)(?: read=(\d+))?")


def pages_of_a_look() -> int:
    """How many database pages it touches to query all queues and claim one payment of each."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, sql: str, values: Any, *_: object) -> None:
        asked.append((sql, values))

    with transaction(EVERY_TENANT, by_index=True) as session:
        connection = session.connection()
        event.listen(db.engine, "before_cursor_execute", note)
        try:
            waiting = waiting_queues(connection, 8)
            assert due_payments(session, dict.fromkeys(waiting, 1))
        finally:
            event.remove(db.engine, "before_cursor_execute", note)
        pages = 0
        for sql, values in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", values)
            first = BUFFERS.search("\n".join(plan.scalars()))
            assert first is not None
            pages += sum(int(found or 0) for found in first.groups())
    return pages


def test_a_look_costs_the_same_beside_a_deep_backlog_and_many_ended_payments(
    app: Flask, past_rules: psycopg.Connection
) -> None:
    gateway = rails_of(app, ScriptedProvider())
    (deep,) = accepted(gateway, SCRIPTED)
    for _ in range(2):
        accepted(gateway, SCRIPTED)
    few = pages_of_a_look()
    past_rules.execute(COPIES, ("{}", 20_000, deep))
    past_rules.execute(COPIES, (ENDED, 20_000, deep))
    assert pages_of_a_look() < 2 * few + 20
