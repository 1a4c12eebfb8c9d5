"""Each step of a payment fails once; the payment always ends as it does without a fault.

As SQLite tests its I/O: the steps are counted, and the n-th one fails, for each n. A step is a
statement, a commit, or a call to the provider; the latter two fail before they take effect, or
after, when only the answer is lost. A failure is either the death of the process (its memory is
lost, what was committed stays), or an error that the code sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Connection, event, func, select
from sqlalchemy.exc import OperationalError

from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.kernel.idempotency import IdempotencyKey
from payments_app.kernel.one_statement import WITH_TENANT
from payments_app.payments.accept import AcceptContext, Accepted
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.providers.contract import Observation, PaymentOrder
from payments_app.tenants.caller import Caller
from tests.builders import (
    ANSWERS,
    Ledger,
    Move,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    events_of,
    exchanges_of,
    let_time_pass,
    payment_row,
    rails_of,
)
from tests.storage.attacker import EVERY_ROW

# More rounds than any payment needs; one that needs more is stuck.
ROUNDS_MAX: Final = 12
# Longer than a lease, and than any delay of the first minutes.
A_WHILE_S: Final = 60.0


class Killed(BaseException):
    """The process dies: no `except Exception` may catch this."""


def an_error() -> Exception:
    return OperationalError("the server is gone", {}, psycopg.OperationalError())


@dataclass
class Steps:
    """Counts steps while `watched` is set, and makes those whose number is in `failing` fail."""

    failing: frozenset[int]
    failure: Callable[[], BaseException]
    watched: bool = False
    names: list[str] = field(default_factory=list)

    def take(self, name: str) -> None:
        if self.watched:
            self.names.append(name)
            if len(self.names) in self.failing:
                raise self.failure()

    def statement(self, _connection: Connection, _cursor: object, sql: str, *_: object) -> None:
        self.take(f"before {sql.split(maxsplit=1)[0]}")

    def after_statement(
        self, _connection: Connection, _cursor: object, sql: str, *_: object
    ) -> None:
        if sql.startswith(WITH_TENANT):
            # The statement has committed as well.
            self.take("after COMMIT")

    def commit(self, connection: Connection) -> None:
        self.take("before COMMIT")
        if self.watched:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.commit()
        self.take("after COMMIT")

    @contextmanager
    def counted(self) -> Iterator[None]:
        event.listen(db.engine, "before_cursor_execute", self.statement)
        event.listen(db.engine, "after_cursor_execute", self.after_statement)
        event.listen(db.engine, "commit", self.commit)
        try:
            yield
        finally:
            event.remove(db.engine, "before_cursor_execute", self.statement)
            event.remove(db.engine, "after_cursor_execute", self.after_statement)
            event.remove(db.engine, "commit", self.commit)

    def around(self, name: str, move: Callable[[PaymentOrder, Any], Observation]) -> Move:
        def stepped(order: PaymentOrder, http_client: Any) -> Observation:
            self.take(f"before {name}")
            seen = move(order, http_client)
            self.take(f"after {name}")
            return seen

        return stepped


@dataclass
class Journey:
    """A client with one key, an engine and a provider; each may die at a step and is restarted."""

    app: Flask
    caller: Caller
    onlooker: psycopg.Connection
    steps: Steps
    ledger: Ledger = field(default_factory=Ledger)
    answers: list[Accepted] = field(default_factory=list)
    context: AcceptContext = field(init=False)
    gateway: PaymentGateway = field(init=False)

    def __post_init__(self) -> None:
        self.context = an_asker(caller=self.caller, key=uuid4())
        provider = ScriptedProvider(
            submits=[self.steps.around("submit", self.taken_in)],
            checks=[self.steps.around("check", self.asked)],
        )
        self.gateway = rails_of(self.app, provider)

    def taken_in(self, order: PaymentOrder, http_client: Any) -> Observation:
        """The provider receives a submission. Its row must be committed already."""
        found = self.onlooker.execute(
            "SELECT count(*) > 0 FROM provider_exchanges WHERE reference = %s"
            " AND kind = 'submit' AND finished_at IS NULL",
            [order.reference],
        ).fetchone()
        assert found == (True,), "sent before it was written down"
        return self.ledger.take(order, http_client)

    def asked(self, order: PaymentOrder, http_client: Any) -> Observation:
        """The payer approves between the first status check and the second."""
        seen = self.ledger.tell(order, http_client)
        if seen is ANSWERS["pending"]:
            self.ledger.truths[order.reference] = "paid"
        return seen

    def run(self) -> UUID:
        """Run until the client is answered that it is paid; returns the payment's id."""
        with self.steps.counted():
            for _ in range(ROUNDS_MAX):
                self.survive(self.ask)
                if self.answers and self.answers[-1].status_now == "SUCCESSFUL":
                    return self.answers[-1].payment_id
                let_time_pass(seconds=A_WHILE_S)
                self.survive(lambda: advance(self.gateway))
        raise AssertionError("stuck")

    def ask(self) -> None:
        self.answers.append(an_accepted_payment(self.gateway, context=self.context))

    def survive(self, act: Callable[[], object]) -> None:
        self.steps.watched = True
        try:
            act()
        except (Killed, OperationalError):
            # A new process starts without this session.
            db.session.remove()
        finally:
            self.steps.watched = False


def is_as_if_nothing_had_been(journey: Journey, payment_id: UUID) -> None:
    row = payment_row(payment_id)
    assert row.status == "SUCCESSFUL"
    assert journey.ledger.truths == {row.reference: "paid"}
    assert set(journey.ledger.arrivals) == {row.reference}
    evidence = {exchange.id: exchange for exchange in exchanges_of(row.id)}[row.evidence_id or 0]
    assert (evidence.kind, evidence.verdict) == ("check", "SUCCESSFUL")
    story = events_of(row.id)
    assert [e.sequence for e in story] == list(range(1, row.sequence + 1))
    assert (story[0].type, story[-1].type) == ("payment.accepted", "payment.successful")
    assert len({answer.answer.body for answer in journey.answers}) == 1


def payments_and_keys() -> tuple[int, ...]:
    with transaction(EVERY_TENANT) as session:
        tables = [select(func.count()).select_from(table) for table in (Payment, IdempotencyKey)]
        return tuple(session.scalars(table).one() for table in tables)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("failure", "again", "every"),
    [(Killed, (), 1), (an_error, (), 1), (Killed, (1, 7), 2), (an_error, (2, 9), 3)],
    ids=["death", "error", "deaths", "errors"],
)
def test_whichever_step_fails_the_end_is_that_of_the_undisturbed_journey(
    app: Flask,
    database_url: str,
    failure: Callable[[], BaseException],
    again: tuple[int, ...],
    every: int,
) -> None:
    caller = a_caller()
    onlooker = psycopg.connect(database_url, options=EVERY_ROW, autocommit=True)

    def travelled(failing: frozenset[int]) -> list[str]:
        payments, keys = payments_and_keys()
        journey = Journey(app, caller, onlooker, Steps(failing, failure))
        is_as_if_nothing_had_been(journey, journey.run())
        assert payments_and_keys() == (payments + 1, keys + 1)
        return journey.steps.names

    with onlooker:
        undisturbed = travelled(frozenset())
        assert undisturbed.count("after COMMIT") >= 8
        for n, name in list(enumerate(undisturbed, start=1))[::every]:
            print(f"step {n} fails: {name}")  # noqa: T201  the last line tells which it was
            travelled(frozenset({n, *(n + more for more in again)}))
    assert {"before submit", "after submit", "before check", "after check"} <= set(undisturbed)
