"""Postgres is away, back, read-only or broken: a quick, true answer, and nothing is done."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from sqlalchemy import event
from werkzeug.test import TestResponse

from devstack.postgres_server import PostgresServer
from devstack.servers import Servers
from devstack.supervisor import wait_until
from payments_app.audit.stream import take_time
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.kernel.pool import SILENCE_MAX_S, BoundedConnection
from payments_app.kernel.schema import needed_versions
from tests.api.http_caller import (
    PAYMENTS,
    HttpCaller,
    MakeApp,
    an_order,
    code_of,
    count_payments,
    new_caller,
)
from tests.api.test_health import NO_SERVER
from tests.conftest import Installation
from tests.metrics.figures import figures_here

ANSWER_MAX_S = 6.0
GIVEN_UP_S = 30
# Words of our internals, of SQL and of Python.
INSIDE = ("Traceback", "psycopg", "sqlalchemy", "INSERT", "SELECT", "payment_events", ".py", "who")


@dataclass
class Database:
    """A test's own database, which it may break."""

    name: str
    server: PostgresServer

    def order(self, statement: str) -> None:
        """Run the statement as the superuser, from another database."""
        with psycopg.connect(self.server.administrator_url(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def change(self, statement: str) -> None:
        """Run the statement as the superuser, in this database."""
        with psycopg.connect(self.server.administrator_url(self.name)) as connection:
            connection.execute(statement.encode())

    def go_away(self) -> None:
        """End all sessions, and accept no new ones."""
        self.order(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS false")
        self.order(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'"  # noqa: S608
        )

    def come_back(self) -> None:
        self.order(f"ALTER DATABASE {self.name} ALLOW_CONNECTIONS true")


@pytest.fixture
def database(servers: Servers) -> Database:
    return Database(servers.new_database(), servers.postgres)


@pytest.fixture
def caller(make_app: MakeApp, database: Database) -> Iterator[HttpCaller]:
    """A tenant in that database, and an app that has connections to it."""
    url = database.server.application_url(database.name)
    app: Flask = make_app(database_url=url.replace("postgresql://", "postgresql+psycopg://"))
    yield new_caller(app)
    with app.app_context():
        db.engine.dispose()


def assert_away(answer: TestResponse) -> None:
    assert answer.status_code == 503, answer.text
    assert code_of(answer) == "temporarily_unavailable"
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.content_type == "application/problem+json"


def test_without_a_server_the_answer_is_503_at_once(make_app: MakeApp, app: Flask) -> None:
    known = new_caller(app)
    caller = HttpCaller(make_app(database_url=NO_SERVER), known.tenant, known.key)

    for send in (caller.get, lambda: caller.post(an_order(), key=uuid4())):
        started = time.monotonic()
        assert_away(send())
        assert time.monotonic() - started < ANSWER_MAX_S
    assert count_payments(known) == 0


def test_a_server_that_does_not_answer_costs_a_bounded_wait(
    make_app: MakeApp, app: Flask, postgres_server: PostgresServer
) -> None:
    known = new_caller(app)
    url = app.config["SQLALCHEMY_DATABASE_URI"]
    caller = HttpCaller(make_app(database_url=url), known.tenant, known.key)
    postgres_server.process.stop()
    try:
        started = time.monotonic()
        answer = caller.post(an_order(), key=uuid4())
        waited_s = time.monotonic() - started
    finally:
        postgres_server.process.cont()

    assert_away(answer)
    assert waited_s < ANSWER_MAX_S


class Impatient(BoundedConnection):
    silence_max_s = 0.5


def test_a_server_that_falls_silent_under_an_open_connection_costs_a_bounded_wait(
    database_url: str,
) -> None:
    """The kernel acknowledges each byte, so neither keepalives nor PostgreSQL end the wait."""
    with Impatient.connect(database_url, autocommit=True) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            waited_s = time.monotonic() - started
        finally:
            os.kill(backend, signal.SIGCONT)

        assert waited_s < ANSWER_MAX_S
        # The query's outcome is unknown: the connection must not be used again.
        assert connection.closed


def test_who_takes_time_waits_longer_until_the_connection_is_given_back(
    make_app: MakeApp, app: Flask
) -> None:
    with make_app(database_url=app.config["SQLALCHEMY_DATABASE_URI"]).app_context():
        with transaction(EVERY_TENANT) as session:
            raw: Any = session.connection().connection.driver_connection
            assert raw.silence_max_s == SILENCE_MAX_S
            take_time(session)
            assert raw.silence_max_s is None
        assert raw.silence_max_s == SILENCE_MAX_S


def test_connections_that_were_never_lent_out_are_not_counted_as_given_back(
    caller: HttpCaller, database: Database
) -> None:
    caller.get()
    before = figures_here().total("database_pool_in_use")
    database.go_away()
    for _ in range(3):
        assert_away(caller.post(an_order(), key=uuid4()))
    database.come_back()
    caller.get()
    assert figures_here().total("database_pool_in_use") == before


def test_a_database_that_goes_away_and_comes_back(caller: HttpCaller, database: Database) -> None:
    key = uuid4()
    assert caller.get().status_code == 200
    database.go_away()

    for _ in range(3):
        started = time.monotonic()
        assert_away(caller.post(an_order(), key=key))
        assert time.monotonic() - started < ANSWER_MAX_S
    assert caller.get("/health/live").status_code == 200
    database.come_back()

    accepted = caller.post(an_order(), key=key)
    assert accepted.status_code == 201
    assert "Idempotent-Replayed" not in accepted.headers
    assert count_payments(caller) == 1


def test_connections_that_broke_in_the_meantime_are_a_503_once(
    caller: HttpCaller, database: Database
) -> None:
    """As after a restart of Postgres. The client's retry succeeds."""
    key = uuid4()
    caller.get()
    database.go_away()
    database.come_back()

    answers = [caller.post(an_order(), key=key) for _ in range(2)]

    assert_away(answers[0])
    assert answers[1].status_code == 201


def test_a_standby_is_a_503(caller: HttpCaller) -> None:
    """After a failover the address may lead to a server that still refuses writes."""

    def take_no_writes(raw: Any, _entry: object) -> None:
        raw.execute("SET default_transaction_read_only = on")

    with caller.app.app_context():
        event.listen(db.engine, "connect", take_no_writes)
        db.engine.dispose()

    assert caller.get().status_code == 200
    assert_away(caller.post(an_order(), key=uuid4()))


def test_a_callback_that_could_not_be_kept_is_not_acknowledged(
    caller: HttpCaller, database: Database
) -> None:
    reference = caller.pay()["reference"]
    database.go_away()

    answer = caller.send("POST", f"/callbacks/mtn_momo/{reference}", data=b"{}")

    # The provider may send it again; if it doesn't, we check the status anyway.
    assert_away(answer)


class TestABrokenDatabase:
    """An error of ours: 500, with its cause in the log only."""

    @pytest.fixture
    def broken(self, database: Database, caller: HttpCaller) -> Database:
        assert caller.get().status_code == 200
        database.change("ALTER TABLE events RENAME COLUMN actor TO who")
        return database

    def test_is_a_500_that_leaks_nothing(self, broken: Database, caller: HttpCaller) -> None:
        answer = caller.post(an_order(description="a red shirt"), key=uuid4())

        assert answer.status_code == 500
        assert code_of(answer) == "internal_error"
        assert answer.content_type == "application/problem+json"
        assert answer.get_json()["request_id"] == answer.headers["X-Request-Id"]
        for word in (*INSIDE, "256772123456", "red shirt", caller.key.key):
            assert word not in answer.text
            assert word not in str(answer.headers)
        assert broken.name not in answer.text

    def test_spends_no_key_and_keeps_no_half_of_a_payment(
        self, broken: Database, caller: HttpCaller
    ) -> None:
        key = uuid4()
        assert caller.post(an_order(), key=key).status_code == 500
        assert count_payments(caller) == 0
        broken.change("ALTER TABLE events RENAME COLUMN who TO actor")

        accepted = caller.post(an_order(), key=key)

        assert accepted.status_code == 201
        assert "Idempotent-Replayed" not in accepted.headers

    def test_still_has_the_security_headers(self, broken: Database, caller: HttpCaller) -> None:
        answer = caller.post(an_order())

        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert broken.name
        assert caller.get(f"{PAYMENTS}?limit=1").status_code == 200


def test_a_schema_of_an_older_version_is_a_503_and_spends_no_key(
    installation_of_its_own: Installation,
) -> None:
    """A release that was started before its migration ran."""
    app = installation_of_its_own.app
    caller, key = new_caller(app), uuid4()
    (needed,) = needed_versions(app.extensions["migrate"].directory)
    migrate(app, "downgrade", "0012")

    assert_away(caller.post(an_order(), key=key))
    told = caller.get("/health/ready")
    assert told.status_code == 503
    assert f"is at 0012, this version needs {needed}:" in told.get_json()["database"]

    migrate(app, "upgrade")
    wait_until(
        lambda: caller.get("/health/ready").status_code == 200, what="it isn't ready", limit_s=10
    )
    assert count_payments(caller) == 0
    accepted = caller.post(an_order(), key=key)
    assert accepted.status_code == 201
    assert "Idempotent-Replayed" not in accepted.headers


def migrate(app: Flask, *words: str) -> None:
    """`flask db …`, with our connections closed, so that none of them blocks it."""
    with app.app_context():
        db.engine.dispose()
    result = app.test_cli_runner().invoke(args=["db", *words])
    assert result.exit_code == 0, result.output


def test_a_server_whose_machine_died_is_given_up_soon(make_app: MakeApp) -> None:
    """It sends nothing more, and no timeout of its own ends the wait: only the kernel does."""
    with make_app().app_context(), db.engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        has = raw.info.get_parameters()
    last = int(has["keepalives_idle"]) + int(has["keepalives_interval"]) * int(
        has["keepalives_count"]
    )
    assert last <= GIVEN_UP_S
    assert int(has["tcp_user_timeout"]) <= GIVEN_UP_S * 1000
