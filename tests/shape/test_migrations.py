"""Migrations: numbered in a row, equal to the models, and reversible on a database with data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from flask import Flask

from devstack.servers import Servers
from payments_app.integrity.verification import verify_record
from payments_app.kernel.database import db, transaction
from payments_app.webhooks.deliveries import send_test
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.feed import GAP, leave_gap, read_events
from tests.api.http_caller import an_order, new_caller
from tests.api.test_health import NO_SERVER
from tests.builders import (
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    events_of,
    publish_and_checkpoint,
    rails_of,
)
from tests.conftest import Installation
from tests.shape.source_tree import ROOT, sources

VERSIONS = "migrations/versions"
# The name of a partition, with the day on which its week begins.
WEEK = re.compile(r"webhook_attempts_(\d{8})")
# Everything that defines a schema, as PostgreSQL itself writes it.
# The partitions' rights that migration 0016 revokes aren't restored: access is by the table.
SCHEMA = r"""
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
FROM information_schema.role_table_grants WHERE table_schema = 'public' AND table_name NOT LIKE 'webhook_attempts\_%'
UNION ALL SELECT 'right', format('%s.%s %s %s', table_name, column_name, grantee, privilege_type)
FROM information_schema.role_column_grants WHERE table_schema = 'public' AND table_name NOT LIKE 'webhook_attempts\_%'
UNION ALL SELECT 'right', format('%s %s', p.oid::regprocedure, array(
    SELECT unnest(coalesce(p.proacl, acldefault('f', p.proowner)))::text ORDER BY 1))
FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT 'default right', format('%s %s', defaclobjtype, array(SELECT unnest(defaclacl)::text ORDER BY 1))
FROM pg_default_acl
UNION ALL SELECT 'wall', format('%s %s %s', relname, relrowsecurity, relforcerowsecurity)
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
"""


@dataclass(frozen=True)
class Migrated:
    """A database for this test alone, with an app on it."""

    app: Flask
    administrator_url: str

    def flask(self, *arguments: str) -> str:
        result = self.app.test_cli_runner().invoke(args=["db", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    def schema(self) -> set[tuple[str, str]]:
        """Partitions by their order: a week may begin between one migration and the next."""
        with psycopg.connect(self.administrator_url) as connection:
            found = connection.execute(SCHEMA).fetchall()
        weeks = sorted({week for _, what in found for week in WEEK.findall(what)})
        return {
            (kind, WEEK.sub(lambda match: f"webhook_attempts_week{weeks.index(match[1])}", what))
            for kind, what in found
        }

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.administrator_url) as connection:
            return connection.execute(query.encode()).fetchall()

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


def test_what_is_set_for_the_owner_bends_no_migration(migrated: Migrated) -> None:
    before = migrated.schema()
    with psycopg.connect(migrated.administrator_url, autocommit=True) as administrator:
        owner = f"ALTER ROLE maramoja_owner IN DATABASE {administrator.info.dbname}"
        for setting in ("search_path = nowhere", "default_transaction_read_only = on"):
            administrator.execute(f"{owner} SET {setting}".encode())
    migrated.flask("downgrade")
    assert migrated.schema() != before
    migrated.flask("upgrade")
    assert migrated.schema() == before


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
        # A payment with more than one event.
        gateway = rails_of(migrated.app, ScriptedProvider())
        told = an_accepted_payment(gateway).payment_id
        advance(gateway)
        lines = len(events_of(told))
        assert lines > 1
    caller = new_caller(migrated.app)
    for _ in range(12):
        assert caller.post(an_order()).status_code == 201
    with migrated.app.app_context():
        publish_and_checkpoint()
        before = verify_record(None, on_row=lambda: None)
        db.engine.dispose()
    scripts = ScriptDirectory(str(ROOT / "migrations"))

    migrated.flask("downgrade", str(scripts.get_revision("0004").down_revision))
    migrated.flask("upgrade")

    with migrated.app.app_context():
        after = verify_record(None, on_row=lambda: None)
    # The chains' heads differ: the downgrade drops the source of each change.
    assert (after.fault, after.seals) == (None, 2)
    counted = [(t.entries, t.events) for t in after.tenants]
    # And no hash covers what tenants had been shown: one entry in each audit trail says so.
    assert counted == [(t.entries + 1, t.events) for t in before.tenants]
    assert sorted(events for _, events in counted) == [lines, 12]
    assert caller.post(an_order()).status_code == 201
    with migrated.app.app_context():
        assert verify_record(None, on_row=lambda: None).fault is None


# Each event with its data, and each delivery with its event.
NOW = """
SELECT e.event_id, e.type, e.mode, e.payment_id, e.sequence, e.position, e.feed_data, e.hash, d.id
FROM events e LEFT JOIN webhook_deliveries d ON d.event_number = e.id ORDER BY e.event_id, d.id
"""
BEFORE = """
SELECT w.id, w.type, w.mode, w.payment_id, w.sequence, w.position, w.data, e.hash, d.id
FROM webhook_events w LEFT JOIN webhook_deliveries d ON d.event_number = w.number
LEFT JOIN payment_events e ON e.payment_id = w.payment_id AND e.sequence = w.sequence
ORDER BY w.id, d.id
"""


def test_the_events_are_the_same_in_two_tables_and_in_one(migrated: Migrated) -> None:
    with migrated.app.app_context():
        gateway = rails_of(migrated.app, ScriptedProvider())
        caller = a_caller()
        owner = Owner(caller.tenant_id, caller.mode)
        endpoint = an_endpoint(owner).endpoint
        # From here on the tables' numbers and the sequences' numbers differ.
        send_test(owner, endpoint.id)
        an_accepted_payment(gateway, context=an_asker(caller=caller))
        advance(gateway)
        assert publish_and_checkpoint() == 2
        with transaction(caller.tenant_id) as session:
            leave_gap(session, caller.tenant_id)
        an_accepted_payment(gateway, context=an_asker(caller=caller))
        db.engine.dispose()
    before = migrated.rows(NOW)
    unhashed = [row for row in before if row[7] is None]
    assert (len(before), len(unhashed)) == (6, 4)

    migrated.flask("downgrade", "0013")
    there, schema = migrated.rows(BEFORE), migrated.schema()
    assert without_hash(there) == without_hash(before)
    migrated.flask("upgrade")
    back = migrated.rows(NOW)
    assert without_hash(back) == without_hash(before)
    assert [row[7] for row in back] == [row[7] for row in there]
    with migrated.app.app_context():
        assert verify_record(None, on_row=lambda: None).fault is None
        assert publish_and_checkpoint() == 1
        assert verify_record(None, on_row=lambda: None).fault is None
        last = read_events(owner, after=GAP, limit=9).events
        assert [one.position for one in last] == [GAP + 2, GAP + 3]
        db.engine.dispose()
    migrated.flask("downgrade", "base")
    migrated.flask("upgrade", "0013")
    assert migrated.schema() == schema


def without_hash(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(*row[:7], *row[8:]) for row in rows]


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


@pytest.mark.parametrize("way", ["plain role", "no server"])
def test_what_the_operator_can_set_right_is_a_line_and_no_traceback(
    make_app: Callable[..., Flask], servers: Servers, way: str
) -> None:
    url = NO_SERVER
    if way == "plain role":
        database = servers.postgres.create_database("maramoja_not_ours_to_change")
        url = servers.postgres.application_url(database)
    app = make_app(migration_database_url=url.replace("postgresql://", "postgresql+psycopg://"))
    result = app.test_cli_runner().invoke(args=["db", "upgrade"])
    said = [line for line in result.output.splitlines() if not line.startswith("{")]
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert len(said) == 1, result.output
    assert "MIGRATION_DATABASE_URL" in said[0]
