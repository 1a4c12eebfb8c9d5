"""Each test begins on empty tables: the engine processes all due payments, also another test's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from psycopg import sql
from sqlalchemy import event, text

from devstack.postgres_server import PostgresServer
from devstack.supervisor import wait_until
from payments_app.kernel.database import db
from payments_app.monitoring import gauges
from payments_app.payments import backoff
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.model import Payment
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    an_asker,
    keyring,
    payment_row,
    rails_of,
)
from tests.storage.attacker import EVERY_ROW, Attacker
from tests.webhooks.backlogs import Backlogs

# What takes a moment on an idle machine may take many seconds on a busy one.
PATIENCE_S: Final = 30.0


@pytest.fixture(scope="module")
def administrator_url(postgres_server: PostgresServer, database_name: str) -> str:
    """The superuser on this module's database: to clean up, and to break the schema's rules."""
    return postgres_server.administrator_url(database_name)


class Sweeper:
    """Deletes all rows in one round trip, without the triggers that forbid it."""

    # A test that left a row locked fails here, instead of hanging.
    OPTIONS = f"-c lock_timeout={PATIENCE_S:.0f}s -c session_replication_role=replica"

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = self._connect()
        tables = self._connection.execute(
            "SELECT tablename FROM pg_tables"
            " WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        ).fetchall()
        deletes = [sql.SQL("DELETE FROM {}").format(sql.Identifier(name)) for (name,) in tables]
        self._batch = sql.SQL("; ").join(deletes)

    def __call__(self) -> None:
        try:
            self._connection.execute(self._batch)
        except psycopg.OperationalError:
            if not self._connection.broken:
                raise
            # A test has restarted the server.
            self._connection = self._connect()
            self._connection.execute(self._batch)

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._url, autocommit=True, options=self.OPTIONS)


@pytest.fixture(scope="module")
def empty_tables(administrator_url: str) -> Iterator[Callable[[], None]]:
    """Make this module's tables empty."""
    sweeper = Sweeper(administrator_url)
    yield sweeper
    sweeper.close()


@pytest.fixture(autouse=True)
def _on_empty_tables(empty_tables: Callable[[], None]) -> Iterator[None]:
    empty_tables()
    yield
    empty_tables()


@pytest.fixture(autouse=True)
def _context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


@pytest.fixture
def past_rules(administrator_url: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection without triggers, for rows that the code can't produce."""
    with psycopg.connect(administrator_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


@pytest.fixture
def backlogs(past_rules: psycopg.Connection) -> Backlogs:
    """Endpoints with deliveries that are due."""
    return Backlogs(past_rules)


@pytest.fixture
def quiet() -> Iterator[None]:
    """No logs: to write thousands of lines takes longer than the work that they report."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payment is due again after minutes, or when the test makes it due.

    The first check is due after a second: a slow machine may need more for what a test does.
    """
    for name in ("FIRST_CHECK_S", "SUBMIT_FIRST_S", "SUBMIT_MAX_S"):
        monkeypatch.setattr(backoff, name, 300.0)
    # Without a row for an age, the longest pause applies.
    monkeypatch.setattr(backoff, "CHECK_TABLE", ())


@contextmanager
def _lock_timeout(limit: str) -> Iterator[None]:
    def limit_waits(raw: psycopg.Connection, *_: object) -> None:
        raw.execute(f"SET lock_timeout = '{limit}'".encode())

    event.listen(db.engine, "checkout", limit_waits)
    try:
        yield
    finally:
        event.remove(db.engine, "checkout", limit_waits)
        db.engine.dispose()


@pytest.fixture
def long_lock_waits() -> Iterator[None]:
    """The application waits for a locked row until the test releases it, also if that is slow."""
    with _lock_timeout(f"{PATIENCE_S:.0f}s"):
        yield


@pytest.fixture
def short_lock_waits() -> Iterator[None]:
    """A statement of the application that waits for a locked row fails after a second."""
    with _lock_timeout("1s"):
        yield


@pytest.fixture
def slow_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queries of the gauges may take long: a slow machine may need more than a second."""
    limit = f"'{gauges.STATEMENT_MAX_MS}'"
    assert limit in gauges._BOUNDED.text
    patient = text(gauges._BOUNDED.text.replace(limit, f"'{PATIENCE_S:.0f}s'"))
    monkeypatch.setattr(gauges, "_BOUNDED", patient)


@pytest.fixture
def close_and_wait(administrator_url: str) -> Callable[[psycopg.Connection], None]:
    """Close a connection, and wait until the server has ended its transaction and its locks."""

    def close(connection: psycopg.Connection) -> None:
        pid = connection.info.backend_pid
        connection.close()
        there = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        with psycopg.connect(administrator_url, autocommit=True) as other:
            wait_until(
                lambda: other.execute(there, [pid]).fetchone() == (0,),
                what="the server has the closed connection",
                limit_s=PATIENCE_S,
            )

    return close


@pytest.fixture(params=["application", "owner"])
def attacker(
    request: pytest.FixtureRequest, database_url: str, migration_database_url: str
) -> Iterator[Attacker]:
    """An attacker with each role of the installation, who sees the rows of all tenants."""
    url = database_url if request.param == "application" else migration_database_url
    with psycopg.connect(url, options=EVERY_ROW) as connection:
        yield Attacker(connection, request.param)
        connection.rollback()


@pytest.fixture
def open_payment(app: Flask) -> Payment:
    """A submitted payment: with a key, a callback, and evidence that it is pending."""
    gateway = rails_of(app, ScriptedProvider(checks=[ANSWERS["pending"]]))
    accepted = an_accepted_payment(gateway, context=an_asker(key=uuid4()))
    advance(gateway)
    reference = payment_row(accepted.payment_id).reference
    record_callback(ReceivedCallback(SCRIPTED, reference, "PUT", b"{}", None), keyring())
    return payment_row(accepted.payment_id)


@pytest.fixture
def failed_payment(app: Flask) -> Payment:
    """A payment that the payer declined."""
    provider = ScriptedProvider(submits=[ANSWERS["declined"]], checks=[ANSWERS["pending"]])
    gateway = rails_of(app, provider)
    accepted = an_accepted_payment(gateway)
    advance(gateway)
    return payment_row(accepted.payment_id)
