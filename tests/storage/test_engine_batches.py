"""Several payments in one transaction: a failure of one affects no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import cycle
from typing import Final
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from devstack.supervisor import wait_until
from payments_app.kernel.database import EVERY_TENANT, db, set_tenant, transaction
from payments_app.kernel.http.messages import HttpClient
from payments_app.payments import processor
from payments_app.payments.claims import LEASE
from payments_app.payments.evidence import open_submission
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.outbox import publish_outbox
from payments_app.payments.write_batch import WriteBatch
from payments_app.providers.contract import Observation, PaymentOrder
from payments_app.webhooks.endpoints import Owner
from payments_app.worker.exchange_threads import ThreadExchangePool
from tests.builders import (
    ANSWERS,
    Ledger,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
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
from tests.metrics.figures import figures_here

LEASE_S: Final = LEASE.total_seconds()
# What takes a moment on an idle machine may take many seconds on a busy one.
PATIENCE_S: Final = 30.0
# PostgreSQL stores no NUL character in a text.
UNSTORABLE: Final = replace(ANSWERS["accepted"], reason="accep\x00ted")


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(checks=[ANSWERS["pending"]])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


def accepted(gateway: PaymentGateway, count: int, *, tenants: int = 1) -> list[UUID]:
    """Accept `count` payments, for each tenant in turn; ids in the order of their due times."""
    askers = cycle([an_asker() for _ in range(tenants)])
    return [an_accepted_payment(gateway, context=next(askers)).payment_id for _ in range(count)]


def stages(payment_ids: list[UUID]) -> list[str]:
    return [payment_row(each).stage for each in payment_ids]


# --- few round trips ------------------------------------------------------------------------------


@contextmanager
def counted_messages() -> Iterator[list[str]]:
    """The messages to the database: each statement (with many rows: once), and each commit."""
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


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("step", ["submit", "check"])
def test_twelve_payments_take_as_many_messages_to_the_database_as_two(
    gateway: PaymentGateway, provider: ScriptedProvider, step: str
) -> None:
    """Whether the twelve are of one tenant or of twelve."""
    counts = {}
    for count, tenants in ((2, 1), (12, 12), (12, 1)):
        ids = accepted(gateway, count, tenants=tenants)
        if step == "check":
            advance(gateway, hands=count)
            provider.checks = [ANSWERS["paid"]]
            let_time_pass(seconds=301)
        with counted_messages() as sent:
            assert advance(gateway, hands=count) == count
        counts[count, tenants] = sent
        let_time_pass(seconds=-1000)
        assert len({payment_row(each).stage for each in ids}) == 1
    assert counts[2, 1] == counts[12, 1] == counts[12, 12]
    # Six of them are two queries for what is due (BEGIN, SELECT, COMMIT).
    assert len(counts[12, 12]) <= 17, counts


def test_twelve_tenants_events_take_as_many_messages_to_publish_as_one_tenants(
    gateway: PaymentGateway,
) -> None:
    counts = {}
    for tenants in (1, 12):
        for each in accepted(gateway, 12, tenants=tenants):
            an_endpoint(Owner(payment_row(each).tenant_id, payment_row(each).mode))
        with counted_messages() as sent:
            assert publish_outbox() == 12
        counts[tenants] = sent
    assert counts[1] == counts[12]
    assert len(counts[12]) <= 12, counts


def test_no_row_is_added_to_another_tenants_payment(gateway: PaymentGateway) -> None:
    """The engine writes for several tenants at once: each row must have its payment's tenant."""
    mine, theirs = (payment_row(one) for one in accepted(gateway, 2, tenants=2))
    theirs.tenant_id = mine.tenant_id
    with transaction(EVERY_TENANT) as session:
        batch = WriteBatch(session, datetime.now(UTC))
        open_submission(batch, theirs)
        with pytest.raises(LookupError, match="another tenant"):
            batch.write()
    assert exchanges_of(theirs.id) == []


# --- one of a batch fails -------------------------------------------------------------------------


def test_an_answer_that_cannot_be_stored_leaves_the_others_of_its_batch_stored(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    provider.submits = [ANSWERS["accepted"], UNSTORABLE, ANSWERS["accepted"], ANSWERS["declined"]]
    ids = accepted(gateway, 4)
    with pytest.raises(DataError):
        advance(gateway, hands=4)
    assert stages(ids) == ["awaiting_payer", "submitting", "awaiting_payer", "final"]
    assert [len(events_of(each)) for each in ids] == [2, 1, 2, 2]
    # The payment's state is unknown: its lease ends, and a worker checks the status.
    let_time_pass(seconds=LEASE_S + 1)
    provider.checks = [ANSWERS["paid"]]
    advance(gateway, hands=4)
    assert payment_row(ids[1]).status == "SUCCESSFUL"
    assert len(provider.submissions) == 4


def test_of_a_batch_only_the_claim_that_was_lost_is_fenced(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    ids = accepted(gateway, 3)
    mine = claims(3)
    make_due(ids[1], forget_lease=True)
    (theirs,) = claims(3)
    assert theirs.payment.id == ids[1]
    processor.record([found(claim, ANSWERS["accepted"]) for claim in mine], gateway)
    assert stages(ids) == ["awaiting_payer", "unknown", "awaiting_payer"]
    lost = payment_row(ids[1])
    assert (lost.generation, lost.lease_until) == (2, theirs.payment.lease_until)
    assert [each.verdict for each in exchanges_of(ids[1])] == ["PENDING"]
    assert provider.submissions == []


@pytest.mark.parametrize("order", ["late first", "late last"])
@pytest.mark.parametrize("late_says", ["accepted", "declined"])
def test_two_claims_of_one_payment_come_home_together_and_the_later_one_counts(
    gateway: PaymentGateway, order: str, late_says: str
) -> None:
    (payment_id,) = accepted(gateway, 1)
    (late,) = claims(1)
    let_time_pass(seconds=LEASE_S + 1)
    (current,) = claims(1)
    home = [found(late, ANSWERS[late_says]), found(current, ANSWERS["paid"])]
    processor.record(home if order == "late first" else home[::-1], gateway)
    row, story = payment_row(payment_id), events_of(payment_id)
    assert row.status == "SUCCESSFUL"
    assert [each.sequence for each in story] == list(range(1, row.sequence + 1))
    contradicted = order == "late last" and late_says == "declined"
    assert (story[-1].type == "payment.contradicted") == contradicted
    assert [each.verdict for each in exchanges_of(payment_id)] == [
        ANSWERS[late_says].verdict,
        "SUCCESSFUL",
    ]


@pytest.mark.usefixtures("unhurried")
def test_payments_of_many_tenants_are_claimed_and_written_down_together(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    provider.submits = [ANSWERS["accepted"], ANSWERS["refused"]]
    ids = [an_accepted_payment(gateway).payment_id for _ in range(4)]
    assert advance(gateway, hands=4) == 4
    assert sorted(stages(ids)) == ["awaiting_payer", "final", "final", "final"]
    for each in ids:
        row = payment_row(each)
        assert {told.tenant_id for told in events_of(each)} == {row.tenant_id}
        assert [kept.tenant_id for kept in exchanges_of(each)] == [row.tenant_id]


@pytest.mark.parametrize("says", ["paid", "declined"])
def test_ten_tenants_payments_end_in_one_batch_and_none_is_written_alone(
    gateway: PaymentGateway, provider: ScriptedProvider, says: str
) -> None:
    """The database's deferred checks pass for the rows of all tenants of a batch."""
    provider.submits = [ANSWERS[says]]
    ids = [an_accepted_payment(gateway).payment_id for _ in range(10)]
    before = written_one_by_one()
    with counted_messages() as sent:
        assert advance(gateway, hands=10) == 10
    assert stages(ids) == ["final"] * 10
    assert written_one_by_one() == before
    # One for the claims, one for the results; the others end the queries for what is due.
    assert sent.count("COMMIT") <= 4, sent


def test_what_is_deferred_to_the_commit_is_checked_before_the_next_tenant(
    gateway: PaymentGateway,
) -> None:
    """The deferred checks run while row-level security still shows the rows of the first tenant."""
    first, second = (payment_row(an_accepted_payment(gateway).payment_id) for _ in range(2))
    with transaction(EVERY_TENANT) as session:
        set_tenant(session, first.tenant_id)
        session.execute(
            text(
                "INSERT INTO provider_exchanges (tenant_id, payment_id, generation, kind,"
                " reference, verdict, finished_at)"
                " VALUES (:tenant, :id, 1, 'check', :id, 'SUCCESSFUL', clock_timestamp())"
            ),
            {"tenant": first.tenant_id, "id": first.id},
        )
        session.execute(
            text(
                "UPDATE payments SET status = 'SUCCESSFUL', stage = 'final',"
                " next_action_at = NULL, final_at = clock_timestamp(),"
                " evidence_id = (SELECT max(id) FROM provider_exchanges) WHERE id = :id"
            ),
            {"id": first.id},
        )
        with pytest.raises(DBAPIError, match="needs its event"):
            set_tenant(session, second.tenant_id)
        session.rollback()


def test_one_row_that_is_refused_is_counted_as_a_batch_written_one_by_one(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    provider.submits = [ANSWERS["accepted"], UNSTORABLE, ANSWERS["accepted"]]
    accepted(gateway, 3)
    before = written_one_by_one()
    with pytest.raises(DataError):
        advance(gateway, hands=3)
    assert written_one_by_one() == before + 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_lost_at_the_commit_costs_a_batch_nothing(
    gateway: PaymentGateway, close_and_wait: Callable[[psycopg.Connection], None], when: str
) -> None:
    """Whether the commit succeeded or not: the batch is written once, and together."""
    ids = accepted(gateway, 3)
    mine = claims(3)
    before = written_one_by_one()
    lost = iter([True])

    def lose(connection: Connection) -> None:
        raw = connection.connection.driver_connection
        assert raw is not None
        if next(lost, False):
            if when == "after":
                raw.commit()
            # The rows of a transaction that the server has not ended yet are still locked.
            close_and_wait(raw)
            raise OperationalError("COMMIT", {}, psycopg.OperationalError("lost"))

    event.listen(db.engine, "commit", lose)
    try:
        processor.record([found(claim, ANSWERS["paid"]) for claim in mine], gateway)
    finally:
        event.remove(db.engine, "commit", lose)
    assert stages(ids) == ["final"] * 3
    assert [len(exchanges_of(each)) for each in ids] == [1] * 3
    assert [len(events_of(each)) for each in ids] == [2] * 3
    assert written_one_by_one() == before


def test_a_worker_that_stood_still_in_its_transaction_writes_its_batch_as_one(
    gateway: PaymentGateway, administrator_url: str
) -> None:
    """PostgreSQL ends such a transaction after half a minute; in this test after 50 ms.

    Whether libpq still reads why (SQLSTATE 25P03) or finds the connection closed is a race; for the
    former see tests/pure/test_transient_errors.py.
    """
    ids = accepted(gateway, 3)
    mine = claims(3)
    before = written_one_by_one()
    stands_still = iter([True])

    def stand_still(connection: Connection, _cursor: object, sql: str, *_: object) -> None:
        if not (sql.startswith("UPDATE payments") and next(stands_still, False)):
            return
        raw = connection.connection.dbapi_connection
        assert raw is not None
        pid = raw.info.backend_pid
        raw.execute("SET LOCAL idle_in_transaction_session_timeout = 50")
        with psycopg.connect(administrator_url, autocommit=True) as other:
            there = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            wait_until(
                lambda: other.execute(there, [pid]).fetchone() == (0,),
                what="the server waits on",
                limit_s=PATIENCE_S,
            )

    event.listen(db.engine, "before_cursor_execute", stand_still)
    try:
        processor.record([found(claim, ANSWERS["paid"]) for claim in mine], gateway)
    finally:
        event.remove(db.engine, "before_cursor_execute", stand_still)
    assert next(stands_still, False) is False, "it never stood still"
    assert stages(ids) == ["final"] * 3
    assert [len(exchanges_of(each)) for each in ids] == [1] * 3
    assert written_one_by_one() == before


def written_one_by_one() -> float:
    return figures_here().total("payments_recorded_one_by_one_total")


def test_a_worker_killed_between_its_claims_and_its_sends_leaves_none_to_be_charged_twice(
    app: Flask,
) -> None:
    ledger = Ledger()

    def die(_order: PaymentOrder, _wire: HttpClient) -> Observation:
        raise Killed

    mortal = rails_of(app, ScriptedProvider(submits=[ledger.take, die]))
    ids = accepted(mortal, 5)
    with pytest.raises(Killed):
        advance(mortal, hands=5)
    assert stages(ids) == ["submitting"] * 5
    assert len(ledger.arrivals) == 1
    provider = ledger.provider()
    gateway = rails_of(app, provider)
    for _ in range(4):
        let_time_pass(seconds=LEASE_S + 1)
        advance(gateway, hands=3)
    references = [payment_row(each).reference for each in ids]
    # Their leases ended together, so any three may be claimed first. Each was checked before it was
    # sent again; the one that had arrived was not sent again.
    assert len(set(provider.questions[:3])) == 3
    assert set(provider.questions) == set(references)
    assert sorted(ledger.arrivals) == sorted(references)
    ledger.truths = dict.fromkeys(references, "paid")
    let_time_pass(seconds=LEASE_S + 1)
    advance(gateway, hands=3)
    assert {payment_row(each).status for each in ids} == {"SUCCESSFUL"}


# --- the worker's thread pool ---------------------------------------------------------------------


@pytest.fixture
def hands(app: Flask) -> Iterator[ThreadExchangePool]:
    made = ThreadExchangePool(app, 4)
    yield made
    made.join()


@contextmanager
def a_worker(app: Flask, gateway: PaymentGateway, hands: ThreadExchangePool) -> Iterator[list[int]]:
    """Runs one pass in its own thread; yields a list that gets the number processed at the end."""
    done: list[int] = []

    def look() -> None:
        with app.app_context():
            done.append(processor.process_due(gateway, hands))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield done
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    wait_until(holds, what="it is not so", limit_s=PATIENCE_S)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("is_called", [True, False])
def test_a_call_that_hangs_holds_up_neither_its_batch_nor_what_is_due_later(
    app: Flask,
    gateway: PaymentGateway,
    provider: ScriptedProvider,
    hands: ThreadExchangePool,
    *,
    is_called: bool,
) -> None:
    """Also without a wake-up: the broker may be away, and the poller's thread may be this one."""
    answer_it = threading.Event()

    def hang(_order: PaymentOrder, _wire: HttpClient) -> Observation:
        answer_it.wait(PATIENCE_S)
        return ANSWERS["accepted"]

    provider.submits = [hang, ANSWERS["accepted"]]
    ids = accepted(gateway, 6)
    with a_worker(app, gateway, hands) as done:
        until(lambda: sorted(stages(ids)) == ["awaiting_payer"] * 5 + ["submitting"])
        later = accepted(gateway, 2)
        if is_called:
            hands.wake()
        until(lambda: stages(later) == ["awaiting_payer"] * 2)
        assert done == []
        assert "submitting" in stages(ids)
        answer_it.set()
    assert done == [8]
    assert stages(ids) == ["awaiting_payer"] * 6
    assert len(provider.submissions) == 8


@pytest.mark.usefixtures("unhurried")
def test_no_more_is_claimed_than_there_are_hands_for(
    app: Flask, gateway: PaymentGateway, provider: ScriptedProvider, hands: ThreadExchangePool
) -> None:
    answer_them = threading.Event()

    def hang(_order: PaymentOrder, _wire: HttpClient) -> Observation:
        answer_them.wait(PATIENCE_S)
        return ANSWERS["accepted"]

    provider.submits = [hang]
    ids = accepted(gateway, 7)
    with a_worker(app, gateway, hands) as done:
        until(lambda: len(provider.submissions) == 4)
        hands.wake()
        assert sorted(stages(ids)) == ["accepted"] * 3 + ["submitting"] * 4
        answer_them.set()
    assert done == [7]
    assert len(provider.submissions) == 7


@pytest.mark.usefixtures("unhurried")
def test_many_workers_with_many_hands_make_one_submission_each(
    app: Flask, gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    ids = accepted(gateway, 60)

    def look() -> int:
        hands = ThreadExchangePool(app, 7)
        try:
            return processor.process_due(gateway, hands)
        finally:
            hands.join()

    assert sum(in_threads(app, look, times=4)) == 60
    assert sorted(provider.submissions) == sorted(payment_row(each).reference for each in ids)
    assert {payment_row(each).generation for each in ids} == {1}
