"""Our functions in PostgreSQL, in a migrated database, and our role's rights there.

`flask doctor` checks the same in a running database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from devstack.postgres_server import PostgresServer
from payments_app.commands.doctor.rights import MAY_CHANGE

PATH = "search_path=pg_catalog, public, pg_temp"
FUNCTIONS = """
    SELECT p.oid::regprocedure::text, coalesce(p.proconfig, '{}'), p.prosqlbody IS NOT NULL, p.prosrc,
           p.prosecdef, has_function_privilege(%(role)s, p.oid, 'EXECUTE')
    FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace ORDER BY 1
"""
# Functions that the gateway's own statements call, or that run with its rights.
CALLED_BY_US = {
    "audit_entry_hash(audit_entries)",
    "chain_field(text)",
    "chain_time(timestamp with time zone)",
    "key_and_tenant(text)",
    "payment_event_hash(events)",
    "payment_hash(payments)",
    "previous_release_hash(events)",
    "previous_release_link(events)",
    "refusal_ends_payment(uuid,bigint)",
    "tenant_of_reference(text,uuid)",
    "turn_webhook_attempts()",
}


@pytest.fixture
def catalogue(
    postgres_server: PostgresServer, database_name: str
) -> Iterator[psycopg.Connection[Any]]:
    url = postgres_server.administrator_url(database_name)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def functions(catalogue: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    found = catalogue.execute(FUNCTIONS, {"role": "maramoja_app"}).fetchall()
    assert len(found) > 25
    return found


def test_each_looks_in_our_own_schemas_and_at_temporary_tables_last(
    catalogue: psycopg.Connection[Any],
) -> None:
    """Or its body was parsed when it was created, so that it needs no search path."""
    straying = [
        name
        for name, settings, is_parsed, *_ in functions(catalogue)
        if not (is_parsed or PATH in settings)
    ]
    assert straying == []


def test_nobody_but_us_may_call_them_and_we_no_more_than_we_need(
    catalogue: psycopg.Connection[Any],
) -> None:
    assert {row[0] for row in functions(catalogue) if row[5]} == CALLED_BY_US
    grants = "pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g"
    public = f"SELECT p.oid::regprocedure FROM {grants} WHERE g.grantee = 0 AND pronamespace ="  # noqa: S608
    assert catalogue.execute(f"{public} 'public'::regnamespace".encode()).fetchall() == []


def test_what_a_later_migration_makes_is_nobody_elses_to_call(
    migration_database_url: str, database_url: str
) -> None:
    with psycopg.connect(migration_database_url, autocommit=True) as owner:
        owner.execute("CREATE FUNCTION later() RETURNS integer LANGUAGE sql RETURN 1")
        try:
            with (
                psycopg.connect(database_url) as us,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                us.execute("SELECT later()")
        finally:
            owner.execute("DROP FUNCTION later()")


def test_our_role_makes_nothing_that_could_stand_in_for_ours(database_url: str) -> None:
    rights = """
        SELECT has_database_privilege(current_database(), 'TEMPORARY'),
               has_database_privilege(current_database(), 'CREATE'),
               has_schema_privilege('public', 'CREATE')
    """
    with psycopg.connect(database_url) as us:
        assert us.execute(rights).fetchone() == (False, False, False)


def test_who_runs_with_the_owners_rights_names_each_schema(
    catalogue: psycopg.Connection[Any],
) -> None:
    """Besides the search path: these functions run with more rights than their caller."""
    named = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(?!STRICT\b)(\w+\.\w+|\w+)")
    own = re.compile(r"public\.\w+|pg_catalog\.\w+|is_needed")
    for name, _, _, source, is_definer, _ in functions(catalogue):
        if is_definer:
            words = [word for word in named.findall(source) if not own.fullmatch(word)]
            assert words == [], name


# --- columns ------------------------------------------------------------------------------------

RIGHTS = """
    SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0
      AND NOT a.attisdropped AND has_column_privilege('maramoja_app', c.oid, a.attnum, 'UPDATE')
"""


def test_our_role_may_change_the_columns_that_it_changes(
    catalogue: psycopg.Connection[Any],
) -> None:
    """A new column that must be changed needs a grant, and a line in doctor/rights.py."""
    granted: dict[str, set[str]] = {}
    for table, column in catalogue.execute(RIGHTS):
        granted.setdefault(table, set()).add(column)
    assert granted == {table: set(columns) for table, columns in MAY_CHANGE.items()}
