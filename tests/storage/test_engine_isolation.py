"""A payment that can't be claimed, recorded or published blocks no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, OperationalError

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import db
from payments_app.kernel.http.messages import HttpClient
from payments_app.kernel.http.transport import Lease
from payments_app.payments import outbox, processor
from payments_app.payments.claims import LEASE
from payments_app.payments.exchange_pool import ExchangeResult
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.outbox import publish_outbox
from payments_app.providers.contract import Observation, ProviderAccount
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    claims,
    events_of,
    exchanges_of,
    found,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)
from tests.storage.bending import LAWLESS, Superuser

LEASE_S: Final = LEASE.total_seconds()


@pytest.fixture
def provider() -> ScriptedProvider:
    # "pending": if the machine pauses for a second, the status is checked, and must not be final.
    return ScriptedProvider(checks=[ANSWERS["pending"]])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


def accepted(gateway: PaymentGateway, count: int) -> list[UUID]:
    return [an_accepted_payment(gateway).payment_id for _ in range(count)]


def paid_of_all(count: int) -> list[ExchangeResult]:
    return [found(claim, ANSWERS["paid"]) for claim in claims(count)]


def stages(ids: list[UUID]) -> list[str]:
    return [str(payment_row(each).stage) for each in ids]


@contextmanager
def locked(url: str, payment_id: UUID) -> Iterator[None]:
    with psycopg.connect(url) as other:
        other.execute("SELECT FROM payments WHERE id = %s FOR UPDATE", [payment_id])
        yield
        other.rollback()


@contextmanager
def commits_lost(
    times: int, close_and_wait: Callable[[psycopg.Connection], None], *, after: bool
) -> Iterator[None]:
    """Lose the connection at the next `times` commits, before or after they take effect."""
    left = iter(range(times))

    def lose(connection: Connection) -> None:
        raw = connection.connection.driver_connection
        assert raw is not None
        if next(left, None) is not None:
            if after:
                raw.commit()
            # The rows of a transaction that the server has not ended yet are still locked.
            close_and_wait(raw)
            raise OperationalError("COMMIT", {}, psycopg.OperationalError("lost"))

    event.listen(db.engine, "commit", lose)
    try:
        yield
    finally:
        event.remove(db.engine, "commit", lose)


# --- recorded -------------------------------------------------------------------------------------


def test_a_payment_that_somebody_has_locked_keeps_no_other_answer_from_being_recorded(
    gateway: PaymentGateway, administrator_url: str
) -> None:
    ids = accepted(gateway, 3)
    results, unrecorded = paid_of_all(3), list[ExchangeResult]()
    with locked(administrator_url, ids[1]):
        processor.record(results, gateway, unrecorded)
        assert stages(ids) == ["final", "submitting", "final"]
        assert [one.claim.payment.id for one in unrecorded] == [ids[1]]
        # The next call does not wait for its lock again, and blocks no other result.
        processor.record([], gateway, unrecorded)
        assert len(unrecorded) == 1
    processor.record([], gateway, unrecorded)
    assert (stages(ids), unrecorded) == (["final"] * 3, [])
    assert [len(exchanges_of(each)) for each in ids] == [1] * 3


@pytest.mark.parametrize("after", [False, True])
def test_what_is_in_while_the_database_is_away_is_recorded_when_it_is_back(
    gateway: PaymentGateway, close_and_wait: Callable[[psycopg.Connection], None], *, after: bool
) -> None:
    """Recorded once, whether the lost commits took effect or not."""
    ids = accepted(gateway, 3)
    results, unrecorded = paid_of_all(3), list[ExchangeResult]()
    with commits_lost(2, close_and_wait, after=after), pytest.raises(OperationalError):
        processor.record(results, gateway, unrecorded)
    assert len(unrecorded) == 3
    processor.record([], gateway, unrecorded)
    assert (stages(ids), unrecorded) == (["final"] * 3, [])
    assert [len(exchanges_of(each)) for each in ids] == [1] * 3
    assert [len(events_of(each)) for each in ids] == [2] * 3


def test_an_answer_is_kept_for_as_long_as_its_lease(gateway: PaymentGateway) -> None:
    """After that, another worker checks the status."""
    accepted(gateway, 1)
    (result,) = paid_of_all(1)
    over = replace(result, claim=replace(result.claim, lease=Lease(boot_seconds())))
    unrecorded = [over]
    processor.record([], gateway, unrecorded)
    assert unrecorded == []
    assert stages([result.claim.payment.id]) == ["submitting"]


def test_one_that_cannot_be_recorded_is_not_tried_for_ever(gateway: PaymentGateway) -> None:
    ids = accepted(gateway, 3)
    results, unrecorded = paid_of_all(3), list[ExchangeResult]()
    results[1] = found(results[1].claim, replace(ANSWERS["paid"], reason="pa\x00id"))
    with pytest.raises(DBAPIError):
        processor.record(results, gateway, unrecorded)
    assert unrecorded == []
    assert sorted(stages(ids)) == ["final", "final", "submitting"]


# --- claimed --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_a_payment_whose_events_were_removed_stops_no_other(
    gateway: PaymentGateway, superuser: Superuser
) -> None:
    """Its claim needs a new event, and the database refuses one without its predecessor."""
    (bent,) = accepted(gateway, 1)
    claims(1)
    superuser.run("DELETE FROM events WHERE payment_id = %s", bent)
    let_time_pass(seconds=LEASE_S + 1)
    others = accepted(gateway, 2)
    assert advance(gateway, hands=3) == 2
    assert stages([bent, *others]) == ["submitting", "awaiting_payer", "awaiting_payer"]
    # Its next claim is put off, so that it does not slow down each pass.
    (left,) = superuser.run(
        "SELECT next_action_at - now() BETWEEN '30 s' AND '60 s' FROM payments WHERE id = %s", bent
    ).fetchone()
    assert left


# --- published ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_an_event_that_cannot_be_published_holds_up_its_own_payment_only(
    gateway: PaymentGateway, superuser: Superuser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E.g. an event in a currency that only a later release knows."""
    ids = accepted(gateway, 3)
    assert advance(gateway, hands=3) == 3
    superuser.run("UPDATE payments SET currency = 'XTS' WHERE id = %s", ids[0])
    assert publish_outbox() == 4
    assert publish_outbox() == 0
    told = superuser.run("SELECT DISTINCT payment_id FROM events WHERE position IS NOT NULL")
    assert {row[0] for row in told} == set(ids[1:])
    superuser.run("UPDATE payments SET currency = 'EUR' WHERE id = %s", ids[0])
    assert publish_outbox() == 0, "it is not tried again at once"
    monkeypatch.setattr(outbox, "_stuck", outbox._Stuck())
    assert publish_outbox() == 2


# --- a fault before anything is sent ---------------------------------------------------------------


class NeverReady(ScriptedProvider):
    """Its `prepare` raises an unexpected error."""

    def prepare(self, _account: ProviderAccount, _wire: HttpClient) -> Observation | None:
        raise ConnectionResetError("a fault of our own")


@pytest.mark.usefixtures("unhurried")
def test_a_fault_before_the_submission_leaves_it_unsent_and_not_unknown(app: Flask) -> None:
    gateway = rails_of(app, NeverReady())
    (payment_id,) = accepted(gateway, 1)
    assert advance(gateway) == 1
    assert stages([payment_id]) == ["accepted"]
    well = ScriptedProvider(checks=[ANSWERS["pending"]])
    make_due(payment_id)
    assert advance(rails_of(app, well)) == 1
    assert len(well.submissions) == 1
    assert stages([payment_id]) == ["awaiting_payer"]


@pytest.mark.usefixtures("unhurried")
def test_a_fault_in_the_submission_leaves_it_unknown(app: Flask) -> None:
    def fail(*_: object) -> Observation:
        raise ConnectionResetError("who knows")

    gateway = rails_of(app, ScriptedProvider(submits=[fail], checks=[ANSWERS["pending"]]))
    (payment_id,) = accepted(gateway, 1)
    assert advance(gateway) == 1
    assert stages([payment_id]) == ["unknown"]
