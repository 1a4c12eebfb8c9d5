"""Migrations: numbered in a row, true to the models, and there and back on a database with data."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg
import pytest
from alembic.script import ScriptDirectory
from flask import Flask

from payments_app.kernel.database import db
from payments_app.payments.seals import seal_events
from payments_app.payments.verification import verify_record
from tests.api.http_caller import an_order, new_caller
from tests.builders import ScriptedProvider, advance, an_accepted_payment, events_of, rails_of
from tests.conftest import Installation
from tests.shape.source_tree import ROOT, sources

VERSIONS = "migrations/versions"
# Everything that makes a schema what it is, as PostgreSQL itself writes it.
SCHEMA = """
SELECT 'column', format('%s.%s %s null=%s default=%s identity=%s',
           table_name, column_name, data_type, is_nullable, column_default, identity_generation)
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT 'constraint', format('%s %s', conrelid::regclass, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'name', conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'index', indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'trigger', pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function', pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT 'policy', format('%s %s %s', tablename, policyname, qual) FROM pg_policies
UNION ALL SELECT 'right', format('%s %s %s', table_name, grantee, privilege_type)
FROM information_schema.role_table_grants WHERE table_schema = 'public'
UNION ALL SELECT 'wall', format('%s %s %s', relname, relrowsecurity, relforcerowsecurity)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
"""


@dataclass(frozen=True)
class Migrated:
    """A database of this test's own, with an app on it."""

    app: Flask
    administrator_url: str

    def flask(self, *arguments: str) -> str:
        result = self.app.test_cli_runner().invoke(args=["db", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    def schema(self) -> set[tuple[str, str]]:
        with psycopg.connect(self.administrator_url) as connection:
            return set(connection.execute(SCHEMA).fetchall())

    def tables(self) -> set[str]:
        with psycopg.connect(self.administrator_url) as connection:
            found = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            )
            return {name for (name,) in found} - {"alembic_version"}


@pytest.fixture
def migrated(installation_of_its_own: Installation) -> Migrated:
    own = installation_of_its_own
    return Migrated(own.app, own.administrator_url)


def test_there_and_back_with_data_in_it_comes_out_the_same(migrated: Migrated) -> None:
    caller = new_caller(migrated.app)
    accepted = caller.post(an_order(), key="5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a")
    assert accepted.status_code == 201
    before = migrated.schema()
    assert len(before) > 100
    with migrated.app.app_context():
        db.engine.dispose()

    migrated.flask("downgrade", "base")
    assert migrated.tables() == set()
    migrated.flask("upgrade")

    assert migrated.schema() == before
    assert new_caller(migrated.app).post(an_order()).status_code == 201


def test_the_record_is_chained_anew_over_what_was_there_before(migrated: Migrated) -> None:
    with migrated.app.app_context():
        # A story of more than one line.
        rails = rails_of(migrated.app, ScriptedProvider())
        told = an_accepted_payment(rails).payment_id
        advance(rails)
        lines = len(events_of(told))
        assert lines > 1
    caller = new_caller(migrated.app)
    for _ in range(12):
        assert caller.post(an_order()).status_code == 201
    with migrated.app.app_context():
        seal_events()
        before = verify_record(None, on_row=lambda: None)
        db.engine.dispose()
    scripts = ScriptDirectory(str(ROOT / "migrations"))

    migrated.flask("downgrade", str(scripts.get_revision("0004").down_revision))
    migrated.flask("upgrade")

    with migrated.app.app_context():
        after = verify_record(None, on_row=lambda: None)
    # The heads are others: from where each change came is lost on the way down.
    assert (after.fault, after.seals) == (None, 2)
    counted = [(t.entries, t.events) for t in after.tenants]
    assert counted == [(t.entries, t.events) for t in before.tenants]
    assert sorted(events for _, events in counted) == [lines, 12]
    assert caller.post(an_order()).status_code == 201
    with migrated.app.app_context():
        assert verify_record(None, on_row=lambda: None).fault is None


def test_the_models_say_what_the_migrations_made(migrated: Migrated) -> None:
    migrated.flask("check")


def test_migrations_are_numbered_in_a_row() -> None:
    files = sorted(path.name for path in (ROOT / VERSIONS).glob("*.py"))

    assert all(re.fullmatch(r"[0-9]{4}_[a-z0-9_]+\.py", name) for name in files), files
    assert [int(name[:4]) for name in files] == list(range(1, len(files) + 1))


def test_each_migration_follows_the_one_before() -> None:
    scripts = ScriptDirectory(str(ROOT / "migrations"))
    revisions = [script.revision for script in scripts.walk_revisions()]

    assert revisions == sorted(revisions, reverse=True)
    assert len(scripts.get_heads()) == 1
    for source in sources(VERSIONS):
        assert f"revision = '{source.name.rpartition('/')[2][:4]}'" in source.text.replace('"', "'")


def test_each_migration_can_be_undone() -> None:
    for source in sources(VERSIONS):
        names = {function.name for function in source.functions()}
        assert {"upgrade", "downgrade"} <= names, source.name
