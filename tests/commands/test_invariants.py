"""`flask invariants` and `flask recovery`, also in the wrong order."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from flask import Flask

from devstack.postgres_server import PostgresServer
from payments_app.kernel.database import transaction
from payments_app.tenants.holds import held_tenants, release_in
from payments_app.tenants.model import Tenant
from tests.builders import ScriptedProvider, a_tenant, an_accepted_payment, payment_row, rails_of
from tests.commands.conftest import Commands

BREAK = (
    "INSERT INTO invariant_breaks (tenant_id, invariant, subject, detail)"
    " VALUES (%s, 'end_stands', %s, 'x') RETURNING id"
)

MENTIONS = (
    "webhook_attempts",
    "webhook_deliveries",
    "idempotency_keys",
    "callbacks",
    "events",
    "provider_exchanges",
)


@pytest.fixture
def superuser(
    app: Flask, postgres_server: PostgresServer, database_name: str
) -> Iterator[psycopg.Connection]:
    url = postgres_server.administrator_url(database_name)
    options = "-c session_replication_role=replica"
    with psycopg.connect(url, autocommit=True, options=options) as connection:
        release_all(app)
        # These commands see all rows that other tests have left, and scripts repeat numbers.
        for table in (*MENTIONS, "payments", "invariant_breaks"):
            connection.execute(f"DELETE FROM {table}".encode())  # noqa: S608  our own
        yield connection
        release_all(app)


def release_all(app: Flask) -> None:
    with app.app_context():
        for tenant in held_tenants():
            with transaction(tenant.id) as session:
                release_in(session, tenant.id, actor="cli:test")


@pytest.fixture
def tenant(app: Flask) -> Tenant:
    with app.app_context():
        return a_tenant()


def test_check_ends_with_1_while_a_break_is_open_whoever_found_it(
    flask: Commands, superuser: psycopg.Connection, tenant: Tenant
) -> None:
    """The worker's check each minute has found most of them before."""
    (number,) = superuser.execute(BREAK, [tenant.id, str(uuid4())]).fetchone() or ("",)
    outcome = flask("invariants check --json")
    assert outcome.code == 1
    assert [one["number"] for one in outcome.document["data"]] == [number]
    assert flask("invariants list").code == 0
    assert flask("invariants", "resolve", str(number), "--why", "looked at").code == 0
    assert flask("invariants check").code == 0
    assert flask("invariants", "resolve", str(number), "--why", "again").code != 0


@pytest.mark.usefixtures("superuser", "tenant")
def test_a_recovery_that_nobody_began_changes_nothing(flask: Commands) -> None:
    for verb in ("status", "finish"):
        outcome = flask(f"recovery {verb}")
        assert (outcome.code, outcome.out) == (0, "No tenant is held for a restore.\n")


@pytest.mark.usefixtures("superuser")
def test_a_recovery_is_not_over_before_all_was_asked(app: Flask, flask: Commands) -> None:
    with app.app_context():
        payment_id = an_accepted_payment(rails_of(app, ScriptedProvider())).payment_id
        held = payment_row(payment_id).tenant_id
    assert flask("recovery begin").code == 0
    assert flask("recovery begin").code == 0, "twice is as once"
    status = flask("recovery status --json")
    assert status.code == 1
    assert {one["waiting"] for one in status.document["data"] if one["open"]} == {1}
    finish = flask("recovery finish --json")
    assert finish.code != 0
    assert finish.error["code"] == "recovery_unfinished"
    with app.app_context():
        slugs = [one["tenant"] for one in flask("recovery status --json").document["data"]]
    assert len(slugs) == 1, held
