"""Temporary tables, views and functions of a session replace none of ours.

Two defences, each tested alone: the gateway's role may create none, and our functions search
pg_temp last. To test the second, the tests grant the role the right that the first revoked.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from devstack.postgres_server import APPLICATION, PostgresServer
from payments_app.kernel.database import db
from payments_app.payments.model import Payment
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    payment_row,
    rails_of,
)
from tests.conftest import Installation
from tests.storage.attacker import EVERY_ROW, Attacker

# Raises an error with the role whose rights it runs with; the error reaches its caller.
TELLER = """
    CREATE FUNCTION pg_temp.teller() RETURNS {type} LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'run as %%', current_user;
    END $$
"""


@pytest.fixture
def payment(installation_of_its_own: Installation) -> Payment:
    """A submitted payment, in a database of the test's own."""
    with installation_of_its_own.app.app_context():
        provider = ScriptedProvider(checks=[ANSWERS["pending"]])
        gateway = rails_of(installation_of_its_own.app, provider)
        accepted = an_accepted_payment(gateway)
        advance(gateway)
        row = payment_row(accepted.payment_id)
        db.engine.dispose()
    return row


@pytest.fixture
def armed(
    payment: Payment, installation_of_its_own: Installation, postgres_server: PostgresServer
) -> Iterator[Attacker]:
    """The gateway's role with the right to create temporary objects."""
    assert payment.status == "PENDING"
    url = installation_of_its_own.administrator_url
    with psycopg.connect(url, autocommit=True) as administrator:
        name = administrator.info.dbname
        administrator.execute(f"GRANT TEMPORARY ON DATABASE {name} TO {APPLICATION}".encode())
        # A new week may have begun since the migration: its partition is made here.
        administrator.execute("SELECT turn_webhook_attempts()")
    url = postgres_server.application_url(name)
    with psycopg.connect(url, options=EVERY_ROW) as connection:
        yield Attacker(connection, "application")
        connection.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMPORARY TABLE provider_exchanges (id bigint)",
        "CREATE TEMPORARY VIEW pg_inherits AS SELECT 1",
        "CREATE FUNCTION pg_temp.teller() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE pg_temp.events AS (id bigint)",
        "CREATE FUNCTION public.now() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE public.pg_inherits (inhrelid oid)",
        "CREATE SCHEMA ours",
    ],
)
def test_the_gateways_role_makes_none(database_url: str, statement: str) -> None:
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        refused = Attacker(connection, "application").refusal_of(
            lambda: connection.execute(statement.encode())
        )
    assert refused.startswith("InsufficientPrivilege")


# Catalogs that turn_webhook_attempts() reads, each as a view that calls teller().
SHADOWS = {
    "pg_inherits": "SELECT 'webhook_attempts_default'::regclass::oid AS inhrelid,"
    " ('webhook_attempts'::regclass::oid::bigint + pg_temp.teller())::oid AS inhparent",
    "pg_class": "SELECT c.oid, relpartbound FROM pg_catalog.pg_class c WHERE pg_temp.teller() > 0",
}


@pytest.mark.parametrize("name", SHADOWS)
def test_a_view_of_a_sessions_own_runs_nothing_as_the_owner(armed: Attacker, name: str) -> None:
    armed.run(TELLER.format(type="integer"))
    armed.run(f"CREATE TEMPORARY VIEW {name} AS {SHADOWS[name]}")
    with pytest.raises(psycopg.Error, match="run as maramoja_app"), armed.connection.transaction():
        # A query by the unqualified name gets the view.
        armed.run(f"TABLE {name}")
    assert armed.run("SELECT made FROM turn_webhook_attempts()").fetchone() == (0,)


def test_a_table_of_a_sessions_own_is_no_evidence(armed: Attacker, payment: Payment) -> None:
    evidence = armed.evidence(payment, "PENDING")
    armed.run(
        "CREATE TEMPORARY TABLE provider_exchanges AS SELECT * FROM public.provider_exchanges"
    )
    armed.run("UPDATE pg_temp.provider_exchanges SET verdict = 'SUCCESSFUL'")
    armed.tell(payment, "SUCCESSFUL")
    refused = armed.refusal_of(lambda: armed.end(payment, "SUCCESSFUL", evidence))
    assert refused == (
        "CheckViolation: SUCCESSFUL needs a stored answer of the provider that says so"
    )


def test_a_table_of_a_sessions_own_is_no_event(armed: Attacker, payment: Payment) -> None:
    armed.run("CREATE TEMPORARY TABLE events (LIKE public.events INCLUDING DEFAULTS)")
    armed.run("ALTER TABLE pg_temp.events ALTER id DROP NOT NULL")
    evidence = armed.evidence(payment, "SUCCESSFUL")

    def end_without_a_word() -> None:
        # The only event that says so is in the session's own table.
        armed.tell(payment, "SUCCESSFUL")
        armed.end(payment, "SUCCESSFUL", evidence)
        armed.run("SET CONSTRAINTS ALL IMMEDIATE")

    assert armed.refusal_of(end_without_a_word) == (
        "RestrictViolation: a change of status needs its event in the same transaction"
    )


def test_a_table_of_a_sessions_own_is_no_chain(armed: Attacker) -> None:
    (head,) = armed.run("SELECT max(position) FROM audit_entries").fetchone()
    armed.run("CREATE TEMPORARY TABLE audit_entries (LIKE public.audit_entries)")
    (position,) = armed.run(
        "INSERT INTO public.audit_entries (tenant_id, actor, action, subject_type, subject_id)"
        " SELECT id, 'eve', 'tenant.renamed', 'tenant', id FROM tenants RETURNING position"
    ).fetchone()
    assert position == head + 1
