"""Many, late and dead workers: each payment is submitted once, and an end never changes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import psycopg
import pytest
from flask import Flask

from payments_app.kernel.database import db
from payments_app.kernel.http.messages import HttpClient
from payments_app.payments.claims import LEASE
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.providers.contract import Observation, PaymentOrder
from tests.builders import (
    ANSWERS,
    Ledger,
    Move,
    ScriptedProvider,
    a_claim,
    advance,
    an_accepted_payment,
    an_asker,
    events_of,
    exchanges_of,
    in_threads,
    let_rings_be_heard,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
    record,
)
from tests.storage.attacker import EVERY_ROW

LEASE_S: Final = LEASE.total_seconds()
SLOW_S: Final = 0.2
# After this answer nothing is due for minutes, however slow the machine.
PATIENT: Final = replace(ANSWERS["unknown"], retry_after_s=300)


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(checks=[ANSWERS["pending"]])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


def slowly(answer: Observation) -> Move:
    def move(_order: PaymentOrder, _wire: HttpClient) -> Observation:
        time.sleep(SLOW_S)
        return answer

    return move


def state_of(row: Payment) -> dict[str, object]:
    """All columns but the number of events."""
    return {
        name: value
        for name, value in vars(row).items()
        if name not in ("_sa_instance_state", "sequence")
    }


# --- at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["submit", "check"])
def test_of_many_who_ring_at_once_one_does_the_work(
    app: Flask, provider: ScriptedProvider, gateway: PaymentGateway, step: str
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    provider.submits = [slowly(PATIENT)]
    if step == "check":
        advance(gateway)
        provider.checks = [slowly(ANSWERS["paid"])]
        make_due(row.id)
    done = in_threads(app, lambda: advance(gateway), times=12)
    assert sorted(map(str, done)) == [*["0"] * 11, "1"]
    assert provider.submissions == [row.reference]
    assert provider.questions == ([row.reference] if step == "check" else [])


def test_many_payments_and_many_workers_make_one_submission_each(
    app: Flask, provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    context = an_asker()
    provider.submits = [PATIENT]
    ids = [an_accepted_payment(gateway, context=context).payment_id for _ in range(40)]
    done = in_threads(app, lambda: advance(gateway), times=8)
    assert sum(done) == 40
    assert sorted(provider.submissions) == sorted(payment_row(each).reference for each in ids)
    assert {payment_row(each).generation for each in ids} == {1}


def test_two_sweeps_over_lost_workers_ask_once_and_send_once(app: Flask) -> None:
    ledger = Ledger()
    gateway = rails_of(app, ledger.provider())
    context = an_asker()
    ids = [an_accepted_payment(gateway, context=context).payment_id for _ in range(5)]
    for _ in ids:
        a_claim()
    let_time_pass(seconds=LEASE_S + 1)
    in_threads(app, lambda: advance(gateway), times=8)
    assert sorted(ledger.arrivals) == sorted(payment_row(each).reference for each in ids)


@pytest.mark.usefixtures("unhurried", "short_lock_waits")
def test_a_row_that_somebody_holds_does_not_hold_up_the_others(
    gateway: PaymentGateway, provider: ScriptedProvider, database_url: str
) -> None:
    context = an_asker()
    first, *others = [an_accepted_payment(gateway, context=context).payment_id for _ in range(3)]
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        connection.execute("SELECT FROM payments WHERE id = %s FOR UPDATE", [first])
        # The row stays locked to the end of this block: a statement that waits for it fails.
        assert advance(gateway) == 2
    assert [payment_row(each).stage for each in others] == ["awaiting_payer"] * 2
    assert payment_row(first).stage == "accepted"
    assert advance(gateway) == 1
    assert len(provider.submissions) == 3


@pytest.mark.usefixtures("unhurried")
def test_a_slow_provider_call_holds_no_row_and_no_connection(
    provider: ScriptedProvider, gateway: PaymentGateway, database_url: str
) -> None:
    held: list[int] = []

    def look(order: PaymentOrder, _wire: HttpClient) -> Observation:
        held.append(db.engine.pool.checkedout())
        with psycopg.connect(database_url, options=EVERY_ROW) as connection:
            connection.execute(
                "SELECT FROM payments WHERE id = %s FOR UPDATE NOWAIT", [order.payment_id]
            )
        return ANSWERS["accepted"]

    provider.submits = [look]
    an_accepted_payment(gateway)
    assert advance(gateway) == 1
    assert held == [0]


@pytest.mark.usefixtures("unhurried")
def test_a_process_that_is_to_end_takes_on_nothing_new(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    context = an_asker()
    for _ in range(3):
        an_accepted_payment(gateway, context=context)
    ending = replace(gateway, stopping=lambda: len(provider.submissions) == 1)
    assert advance(ending) == 1
    assert advance(ending) == 0
    assert advance(gateway) == 2


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(("payments", "rings"), [(3, 0), (4, 1), (9, 1)])
def test_a_worker_whose_hands_are_full_rings_for_another_once(
    app: Flask, gateway: PaymentGateway, payments: int, rings: int
) -> None:
    redis = app.extensions["maramoja"].redis
    context = an_asker()
    for _ in range(payments):
        an_accepted_payment(gateway, context=context)
    # A thread sends the notifications of the acceptances.
    let_rings_be_heard()
    before = redis.llen("payments")
    assert advance(gateway, hands=4) == payments
    assert redis.llen("payments") == before + rings


# --- late workers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", ["accepted", "paid", "declined", "refused", "not_sent", "unknown"]
)
def test_a_late_answer_is_kept_as_evidence_and_changes_nothing(
    gateway: PaymentGateway, provider: ScriptedProvider, answer: str
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    late = a_claim()
    let_time_pass(seconds=LEASE_S + 1)
    provider.checks = [ANSWERS["unknown"]]
    advance(gateway)
    before, story = payment_row(row.id), len(events_of(row.id))
    record(late, ANSWERS[answer], gateway)
    assert state_of(payment_row(row.id)) == state_of(before)
    assert len(events_of(row.id)) == story
    assert exchanges_of(row.id)[0].verdict == ANSWERS[answer].verdict


def test_a_late_workers_write_does_not_end_the_lease_of_the_one_who_has_the_payment_now(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    late = a_claim()
    let_time_pass(seconds=LEASE_S + 1)
    current = a_claim()
    record(late, ANSWERS["accepted"], gateway)
    assert advance(gateway) == 0
    record(current, ANSWERS["paid"], gateway)
    assert payment_row(row.id).status == "SUCCESSFUL"
    assert provider.submissions == []


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(
    ("end", "late_answer", "contradicts"),
    [
        ("paid", "declined", True),
        ("declined", "paid", True),
        ("paid", "paid", False),
        ("declined", "declined", False),
        ("paid", "refused", False),
        ("paid", "not_found", False),
        ("declined", "pending", False),
    ],
)
def test_a_late_answer_after_the_end_is_told_if_it_contradicts_and_changes_nothing(
    gateway: PaymentGateway,
    provider: ScriptedProvider,
    end: str,
    late_answer: str,
    contradicts: object,
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    advance(gateway)
    make_due(row.id)
    late = a_claim()
    let_time_pass(seconds=LEASE_S + 1)
    provider.checks = [ANSWERS[end]]
    advance(gateway)
    before = payment_row(row.id)
    assert before.is_final
    record(late, ANSWERS[late_answer], gateway)
    told = events_of(row.id)[before.sequence :]
    assert [(e.type, e.data) for e in told] == (
        [("payment.contradicted", {"verdict": ANSWERS[late_answer].verdict})] if contradicts else []
    )
    assert exchanges_of(row.id)[1].verdict == ANSWERS[late_answer].verdict
    # Only the number of events has changed.
    after = payment_row(row.id)
    assert state_of(after) == state_of(before)
    assert after.sequence == before.sequence + len(told)
