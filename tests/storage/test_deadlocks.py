"""The gateway's transactions do not wait for each other in a circle; if two did, it would be seen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.payments import claims
from payments_app.payments.claims import Lane, Queue
from payments_app.payments.model import Payment
from payments_app.payments.outbox import publish_outbox
from payments_app.providers.contract import AccountKey
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    ScriptedProvider,
    an_accepted_payment,
    an_endpoint,
    in_threads,
    payment_row,
    rails_of,
)
from tests.metrics.figures import figures_here
from tests.webhooks.dispatching import WorkerProcess

PATIENCE_S: Final = 30.0
DEADLOCKS: Final = "database_deadlocks_total"
_LOCK: Final = text("UPDATE payments SET updated_at = updated_at WHERE id = :id")


def claimed(session: Session, payment: Payment) -> None:
    account = AccountKey(payment.provider, payment.account_id)
    (due,) = claims.due_payments(session, {Queue(account, payment.tenant_id, Lane.SUBMIT): 1})
    assert due.payment.id == payment.id


def recorded(session: Session, payment: Payment) -> None:
    locked, _ = claims.locked_payments(session, [payment.id])
    assert list(locked) == [payment.id]


@pytest.mark.parametrize("lock", [claimed, recorded])
def test_an_event_is_published_while_its_payment_is_locked(
    app: Flask, lock: Callable[[Session, Payment], None]
) -> None:
    """Else the publisher, which has some payments, and a worker, which has others, deadlock.

    A delivery refers to its payment, so PostgreSQL locks the payment's key when it is inserted.
    """
    payment = payment_row(an_accepted_payment(rails_of(app, ScriptedProvider())).payment_id)
    an_endpoint(Owner(payment.tenant_id, payment.mode))
    with transaction(EVERY_TENANT) as session:
        lock(session, payment)
        # It would fail at its lock timeout.
        assert in_threads(app, publish_outbox, times=1) == [1]
    assert payment.id in {claim.payment_id for claim in WorkerProcess().claim()}


@pytest.mark.usefixtures("long_lock_waits")
def test_a_deadlock_is_counted_and_logged(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    gateway = rails_of(app, ScriptedProvider())
    ids = [an_accepted_payment(gateway).payment_id for _ in range(2)]
    orders = iter((ids, ids[::-1]))
    both_have_one = threading.Barrier(2)

    def lock_both() -> None:
        first, second = next(orders)
        with transaction(EVERY_TENANT) as session:
            session.execute(_LOCK, {"id": first})
            both_have_one.wait(PATIENCE_S)
            session.execute(_LOCK, {"id": second})

    before = figures_here().total(DEADLOCKS)
    results = in_threads(app, lock_both, times=2)
    db.session.remove()
    (error,) = [one for one in results if one is not None]
    assert isinstance(error, DBAPIError)
    assert figures_here().total(DEADLOCKS) - before == 1
    (logged,) = [
        one.getMessage() for one in caplog.records if "database.deadlock" in one.getMessage()
    ]
    assert "UPDATE payments SET updated_at" in logged
    assert 'in relation \\"payments\\"' in logged or 'in relation "payments"' in logged
