"""Several payments in one transaction and at one time: what happens to one happens to it alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import event
from sqlalchemy.exc import DataError

from devstack.supervisor import wait_until
from payments_app.kernel.database import db
from payments_app.kernel.wire import Wire
from payments_app.payments import lifecycle
from payments_app.payments.claims import LEASE
from payments_app.payments.rails import Rails
from payments_app.providers.contract import Observation, PaymentOrder
from payments_app.worker.hands import WorkersHands
from tests.builders import (
    ANSWERS,
    Ledger,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    an_asker,
    claims,
    events_of,
    exchanges_of,
    found,
    in_threads,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)

LEASE_S: Final = LEASE.total_seconds()
# What takes a moment on an idle machine may take many seconds on one that others use too.
PATIENCE_S: Final = 30.0
# No INTEGER column takes it.
UNSTORABLE: Final = replace(ANSWERS["accepted"], http_status=10**12)


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(checks=[ANSWERS["pending"]])


@pytest.fixture
def rails(app: Flask, provider: ScriptedProvider) -> Rails:
    return rails_of(app, provider)


def accepted(rails: Rails, count: int) -> list[UUID]:
    """So many payments of one tenant, in the order in which they fall due."""
    asker = an_asker()
    return [an_accepted_payment(rails, asker=asker).payment_id for _ in range(count)]


def stages(payment_ids: list[UUID]) -> list[str]:
    return [payment_row(each).stage for each in payment_ids]


# --- few round trips ------------------------------------------------------------------------------


@contextmanager
def counted_messages() -> Iterator[list[str]]:
    """What goes to the database: each statement, however many rows it is sent with, and commits."""
    sent: list[str] = []

    def statement(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        sent.append(" ".join(sql.split()[:2]))

    def commit(_connection: object) -> None:
        sent.append("COMMIT")

    event.listen(db.engine, "before_cursor_execute", statement)
    event.listen(db.engine, "commit", commit)
    try:
        yield sent
    finally:
        event.remove(db.engine, "before_cursor_execute", statement)
        event.remove(db.engine, "commit", commit)


@pytest.mark.parametrize("step", ["submit", "check"])
def test_twelve_payments_take_as_many_messages_to_the_database_as_two(
    rails: Rails, provider: ScriptedProvider, step: str
) -> None:
    counts = {}
    for count in (2, 12):
        ids = accepted(rails, count)
        if step == "check":
            advance(rails, hands=count)
            provider.checks = [ANSWERS["paid"]]
            let_time_pass(seconds=1.5)
        with counted_messages() as sent:
            assert advance(rails, hands=count) == count
        counts[count] = sent
        let_time_pass(seconds=-1000)
        assert len({payment_row(each).stage for each in ids}) == 1
    assert counts[2] == counts[12]
    assert len(counts[12]) <= 16, counts[12]


# --- one of many ----------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_stored_leaves_the_others_of_its_batch_stored(
    rails: Rails, provider: ScriptedProvider
) -> None:
    provider.submits = [ANSWERS["accepted"], UNSTORABLE, ANSWERS["accepted"], ANSWERS["declined"]]
    ids = accepted(rails, 4)
    with pytest.raises(DataError):
        advance(rails, hands=4)
    assert stages(ids) == ["awaiting_payer", "submitting", "awaiting_payer", "final"]
    assert [len(events_of(each)) for each in ids] == [2, 1, 2, 2]
    # Nobody knows what became of it: its lease ends, and somebody asks.
    let_time_pass(seconds=LEASE_S + 1)
    provider.checks = [ANSWERS["paid"]]
    advance(rails, hands=4)
    assert payment_row(ids[1]).status == "SUCCESSFUL"
    assert len(provider.submissions) == 4


def test_of_a_batch_only_the_claim_that_was_lost_is_fenced(
    rails: Rails, provider: ScriptedProvider
) -> None:
    ids = accepted(rails, 3)
    mine = claims(3)
    make_due(ids[1], forget_lease=True)
    (theirs,) = claims(3)
    assert theirs.payment.id == ids[1]
    lifecycle.record([found(claim, ANSWERS["accepted"]) for claim in mine], rails)
    assert stages(ids) == ["awaiting_payer", "unknown", "awaiting_payer"]
    lost = payment_row(ids[1])
    assert (lost.generation, lost.lease_until) == (2, theirs.payment.lease_until)
    assert [each.verdict for each in exchanges_of(ids[1])] == ["PENDING"]
    assert provider.submissions == []


@pytest.mark.parametrize("order", ["late first", "late last"])
@pytest.mark.parametrize("late_says", ["accepted", "declined"])
def test_two_claims_of_one_payment_come_home_together_and_the_later_one_counts(
    rails: Rails, order: str, late_says: str
) -> None:
    (payment_id,) = accepted(rails, 1)
    (late,) = claims(1)
    let_time_pass(seconds=LEASE_S + 1)
    (current,) = claims(1)
    home = [found(late, ANSWERS[late_says]), found(current, ANSWERS["paid"])]
    lifecycle.record(home if order == "late first" else home[::-1], rails)
    row, story = payment_row(payment_id), events_of(payment_id)
    assert row.status == "SUCCESSFUL"
    assert [each.sequence for each in story] == list(range(1, row.sequence + 1))
    contradicted = order == "late last" and late_says == "declined"
    assert (story[-1].type == "payment.contradicted") == contradicted
    assert [each.verdict for each in exchanges_of(payment_id)] == [
        ANSWERS[late_says].verdict,
        "SUCCESSFUL",
    ]


def test_payments_of_many_tenants_are_claimed_and_written_down_together(
    rails: Rails, provider: ScriptedProvider
) -> None:
    provider.submits = [ANSWERS["accepted"], ANSWERS["refused"]]
    ids = [an_accepted_payment(rails).payment_id for _ in range(4)]
    assert advance(rails, hands=4) == 4
    assert sorted(stages(ids)) == ["awaiting_payer", "final", "final", "final"]
    for each in ids:
        row = payment_row(each)
        assert {told.tenant_id for told in events_of(each)} == {row.tenant_id}
        assert [kept.tenant_id for kept in exchanges_of(each)] == [row.tenant_id]


def test_a_worker_killed_between_its_claims_and_its_sends_leaves_none_to_be_charged_twice(
    app: Flask,
) -> None:
    ledger = Ledger()

    def die(_order: PaymentOrder, _wire: Wire) -> Observation:
        raise Killed

    mortal = rails_of(app, ScriptedProvider(submits=[ledger.take, die]))
    ids = accepted(mortal, 5)
    with pytest.raises(Killed):
        advance(mortal, hands=5)
    assert stages(ids) == ["submitting"] * 5
    assert len(ledger.arrivals) == 1
    provider = ledger.provider()
    rails = rails_of(app, provider)
    for _ in range(4):
        let_time_pass(seconds=LEASE_S + 1)
        advance(rails, hands=3)
    references = [payment_row(each).reference for each in ids]
    # Their leases ended at one moment: which three come first is nobody's promise. Each was asked
    # about before it was sent again; the one that had arrived was not sent again.
    assert len(set(provider.questions[:3])) == 3
    assert set(provider.questions) == set(references)
    assert sorted(ledger.arrivals) == sorted(references)
    ledger.truths = dict.fromkeys(references, "paid")
    let_time_pass(seconds=LEASE_S + 1)
    advance(rails, hands=3)
    assert {payment_row(each).status for each in ids} == {"SUCCESSFUL"}


# --- the worker's own hands -----------------------------------------------------------------------


@pytest.fixture
def hands(app: Flask) -> Iterator[WorkersHands]:
    made = WorkersHands(app, 4)
    yield made
    made.join()


@contextmanager
def a_worker(app: Flask, rails: Rails, hands: WorkersHands) -> Iterator[list[int]]:
    """One that looks once, in a thread of its own; how many it did, once it is through."""
    done: list[int] = []

    def look() -> None:
        with app.app_context():
            done.append(lifecycle.advance_due_payments(rails, hands))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield done
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    wait_until(holds, what="it is not so", limit_s=PATIENCE_S)


@pytest.mark.parametrize("is_called", [True, False])
def test_a_call_that_hangs_holds_up_neither_its_batch_nor_what_is_due_later(
    app: Flask, rails: Rails, provider: ScriptedProvider, hands: WorkersHands, *, is_called: bool
) -> None:
    """Also where nobody calls: the broker may be away, and the worker's clock be who waits."""
    answer_it = threading.Event()

    def hang(_order: PaymentOrder, _wire: Wire) -> Observation:
        answer_it.wait(PATIENCE_S)
        return ANSWERS["accepted"]

    provider.submits = [hang, ANSWERS["accepted"]]
    ids = accepted(rails, 6)
    with a_worker(app, rails, hands) as done:
        until(lambda: sorted(stages(ids)) == ["awaiting_payer"] * 5 + ["submitting"])
        later = accepted(rails, 2)
        if is_called:
            hands.look_again()
        until(lambda: stages(later) == ["awaiting_payer"] * 2)
        assert done == []
        assert "submitting" in stages(ids)
        answer_it.set()
    # A second later the first of them are due again.
    assert done[0] >= 8
    assert stages(ids) == ["awaiting_payer"] * 6
    assert len(provider.submissions) == 8


def test_no_more_is_claimed_than_there_are_hands_for(
    app: Flask, rails: Rails, provider: ScriptedProvider, hands: WorkersHands
) -> None:
    answer_them = threading.Event()

    def hang(_order: PaymentOrder, _wire: Wire) -> Observation:
        answer_them.wait(PATIENCE_S)
        return ANSWERS["accepted"]

    provider.submits = [hang]
    ids = accepted(rails, 7)
    with a_worker(app, rails, hands) as done:
        until(lambda: len(provider.submissions) == 4)
        hands.look_again()
        assert sorted(stages(ids)) == ["accepted"] * 3 + ["submitting"] * 4
        answer_them.set()
    assert done[0] >= len(provider.submissions) == 7


def test_many_workers_with_many_hands_make_one_submission_each(
    app: Flask, rails: Rails, provider: ScriptedProvider
) -> None:
    ids = accepted(rails, 60)

    def look() -> int:
        hands = WorkersHands(app, 7)
        try:
            return lifecycle.advance_due_payments(rails, hands)
        finally:
            hands.join()

    assert sum(in_threads(app, look, times=4)) == 60
    assert sorted(provider.submissions) == sorted(payment_row(each).reference for each in ids)
    assert {payment_row(each).generation for each in ids} == {1}
