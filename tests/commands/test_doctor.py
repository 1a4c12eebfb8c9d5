"""`flask doctor`: each thing that it looks at is made wrong once, and it says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import time_machine
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import make_url

from devstack.postgres_server import PostgresServer
from devstack.servers import Servers
from payments_app.settings import Settings
from payments_app.tenants.holds import hold_tenant
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    ScriptedProvider,
    a_tenant,
    an_accepted_payment,
    an_endpoint,
    rails_of,
)
from tests.commands.conftest import Commands, Outcome

MakeApp = Callable[..., Flask]


@pytest.fixture
def superuser(postgres_server: PostgresServer, database_name: str) -> Iterator[psycopg.Connection]:
    url = postgres_server.administrator_url(database_name)
    options = "-c session_replication_role=replica"
    with psycopg.connect(url, autocommit=True, options=options) as connection:
        connection.execute("UPDATE tenants SET held_at = NULL, held_why = NULL")
        connection.execute("DELETE FROM invariant_breaks")
        connection.execute("DELETE FROM webhook_endpoints")
        connection.execute("UPDATE payments SET next_action_at = 'infinity' WHERE status='PENDING'")
        connection.execute("DELETE FROM webhook_events")
        connection.execute("DELETE FROM payment_events")
        yield connection


def found(outcome: Outcome, check: str) -> list[dict[str, Any]]:
    return [one for one in outcome.document["data"] if one["check"] == check]


def levels(outcome: Outcome, check: str) -> list[str]:
    return [one["level"] for one in found(outcome, check)]


def remedy_of(outcome: Outcome, check: str, level: str) -> str:
    (one,) = [one for one in found(outcome, check) if one["level"] == level]
    return str(one["remedy"])


def look(flask: Commands) -> Outcome:
    return flask("doctor --offline --json")


@pytest.mark.usefixtures("superuser")
def test_a_sound_installation_has_no_problem(flask: Commands) -> None:
    outcome = look(flask)
    # The tests' PostgreSQL doesn't wait for its disk, on purpose.
    problems = [o for o in outcome.document["data"] if o["level"] == "problem"]
    assert {one["check"] for one in problems} <= {"durability"}
    for check in ("database role", "migrations", "tenant walls", "triggers", "rights"):
        assert levels(outcome, check) == ["ok"], found(outcome, check)
    for check in ("clock", "secrets", "work"):
        assert levels(outcome, check) == ["ok"], found(outcome, check)
    assert "ok" in levels(outcome, "redis")
    assert levels(outcome, "broker") == ["ok"]
    told = flask("doctor --offline")
    assert told.out.splitlines()[0].split() == ["LEVEL", "CHECK", "FOUND", "WHAT", "TO", "DO"]


def test_a_server_that_may_forget_is_a_problem_and_the_exit_code_says_so(flask: Commands) -> None:
    outcome = look(flask)
    assert outcome.code == 1
    assert outcome.document["well"] is False
    assert "fsync is off" in found(outcome, "durability")[0]["found"]


def test_a_table_without_its_wall(flask: Commands, superuser: psycopg.Connection) -> None:
    superuser.execute("ALTER TABLE callbacks NO FORCE ROW LEVEL SECURITY")
    try:
        outcome = look(flask)
    finally:
        superuser.execute("ALTER TABLE callbacks FORCE ROW LEVEL SECURITY")
    assert levels(outcome, "tenant walls") == ["problem"]
    assert "callbacks" in found(outcome, "tenant walls")[0]["found"]


WALL = "current_setting('maramoja.tenant', true) IN (tenant_id::text, '*')"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (
            "ALTER POLICY tenant_wall ON {} USING (true)",
            f"ALTER POLICY tenant_wall ON {{}} USING ({WALL})",
        ),
        (
            f"ALTER POLICY tenant_wall ON {{}} USING ({WALL} OR true)",
            f"ALTER POLICY tenant_wall ON {{}} USING ({WALL})",
        ),
        ("CREATE POLICY more ON {} USING (true)", "DROP POLICY more ON {}"),
    ],
)
def test_a_wall_with_a_hole(
    flask: Commands, superuser: psycopg.Connection, wrong: str, right: str
) -> None:
    superuser.execute(wrong.format("payments").encode())
    try:
        outcome = look(flask)
    finally:
        superuser.execute(right.format("payments").encode())
    assert levels(outcome, "tenant walls") == ["problem"]
    assert "payments" in found(outcome, "tenant walls")[0]["found"]


def test_triggers_that_are_switched_off(flask: Commands, superuser: psycopg.Connection) -> None:
    superuser.execute("ALTER TABLE payment_events DISABLE TRIGGER payment_events_append_only")
    try:
        outcome = look(flask)
    finally:
        superuser.execute("ALTER TABLE payment_events ENABLE TRIGGER payment_events_append_only")
    assert levels(outcome, "triggers") == ["problem"]
    assert "payment_events" in found(outcome, "triggers")[0]["found"]
    assert levels(look(flask), "triggers") == ["ok"]


@pytest.mark.parametrize(
    ("wrong", "right", "level"),
    [
        ("REVOKE INSERT ON payments FROM {}", "GRANT INSERT ON payments TO {}", "problem"),
        ("GRANT DELETE ON payments TO {}", "REVOKE DELETE ON payments FROM {}", "warning"),
        ("GRANT TRUNCATE ON callbacks TO {}", "REVOKE TRUNCATE ON callbacks FROM {}", "warning"),
    ],
)
def test_rights_that_are_too_few_or_too_many(
    flask: Commands,
    superuser: psycopg.Connection,
    settings: Settings,
    wrong: str,
    right: str,
    level: str,
) -> None:
    role = make_url(settings.database_url).username or ""
    superuser.execute(wrong.format(role).encode())
    try:
        outcome = look(flask)
    finally:
        superuser.execute(right.format(role).encode())
    assert levels(outcome, "rights") == [level]
    assert levels(look(flask), "rights") == ["ok"]


def test_a_schema_of_another_version(flask: Commands, superuser: psycopg.Connection) -> None:
    (head,) = superuser.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
    superuser.execute("UPDATE alembic_version SET version_num = '0001'")
    try:
        outcome = look(flask)
    finally:
        superuser.execute("UPDATE alembic_version SET version_num = %s", [head])
    assert levels(outcome, "migrations") == ["problem"]
    assert remedy_of(outcome, "migrations", "problem") == "flask db upgrade"


@pytest.mark.parametrize(("ahead_s", "level"), [(10, "warning"), (60, "problem")])
def test_a_clock_that_is_wrong(flask: Commands, ahead_s: int, level: str) -> None:
    with time_machine.travel(datetime.now(UTC) + timedelta(seconds=ahead_s)):
        outcome = look(flask)
    assert levels(outcome, "clock") == [level]
    assert "NTP" in remedy_of(outcome, "clock", level)


def test_a_secret_that_no_key_opens(
    app: Flask, flask: Commands, superuser: psycopg.Connection
) -> None:
    with app.app_context():
        endpoint = an_endpoint(Owner(a_tenant().id, "live")).endpoint
    other = Fernet(Fernet.generate_key()).encrypt(b"x").decode()
    superuser.execute(
        "UPDATE webhook_endpoints SET secret = %s WHERE id = %s", [other, endpoint.id]
    )
    outcome = look(flask)
    assert levels(outcome, "secrets") == ["problem"]
    assert "webhook_endpoint" in found(outcome, "secrets")[0]["found"]


def test_work_that_nobody_does(app: Flask, flask: Commands, superuser: psycopg.Connection) -> None:
    with app.app_context():
        an_accepted_payment(rails_of(app, ScriptedProvider()))
    superuser.execute(
        "UPDATE payments SET next_action_at = clock_timestamp() - interval '2 minutes'"
        " WHERE id = (SELECT id FROM payments ORDER BY created_at DESC LIMIT 1)"
    )
    superuser.execute(
        "UPDATE webhook_events SET created_at = clock_timestamp() - interval '2 minutes'"
    )
    superuser.execute(
        "UPDATE payment_events SET created_at = clock_timestamp() - interval '20 minutes'"
    )
    outcome = look(flask)
    assert levels(outcome, "work") == ["problem", "problem", "warning"]


def test_who_is_held_and_what_is_broken(
    app: Flask, flask: Commands, superuser: psycopg.Connection
) -> None:
    with app.app_context():
        tenant = a_tenant()
        hold_tenant(tenant.id, why="a test", actor="cli:test")
    superuser.execute(
        "INSERT INTO invariant_breaks (tenant_id, invariant, subject, detail)"
        " VALUES (%s, 'end_stands', %s, 'x')",
        [tenant.id, str(uuid4())],
    )
    outcome = look(flask)
    assert levels(outcome, "work") == ["problem", "warning"]
    assert remedy_of(outcome, "work", "problem") == "flask invariants list"
    assert tenant.slug in remedy_of(outcome, "work", "warning")


def test_settings_of_a_developers_machine(make_app: MakeApp) -> None:
    app = make_app(
        public_base_url="http://pay.example.com",
        webhook_allow_private_addresses=True,
        database_allow_superuser=True,
        secret_keys=tuple(Fernet.generate_key().decode() for _ in range(2)),
    )
    outcome = look(Commands(app))
    assert levels(outcome, "settings") == ["warning", "problem", "warning", "warning", "ok"]


def test_redis_that_is_away_or_forgets(make_app: MakeApp, servers: Servers) -> None:
    redis = servers.new_redis()
    app = make_app(redis_url=redis.url, celery_broker_url=redis.url)
    policy = ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    app.extensions["maramoja"].redis.execute_command(*policy)
    assert "warning" in levels(look(Commands(app)), "redis")
    redis.stop()
    outcome = look(Commands(app))
    assert levels(outcome, "redis") == ["warning"]
    assert levels(outcome, "broker") == ["warning"]


def test_a_database_that_is_away_is_said_and_nothing_breaks(make_app: MakeApp) -> None:
    app = make_app(database_url="postgresql+psycopg://maramoja_app@127.0.0.1:1/maramoja")
    outcome = look(Commands(app))
    assert outcome.code == 1
    assert outcome.err == ""
    for check in ("database role", "tenant walls", "clock", "secrets", "work"):
        assert levels(outcome, check) == ["problem"]
        assert "DATABASE_URL" in remedy_of(outcome, check, "problem")
        assert "refused" in found(outcome, check)[0]["found"]
    assert Commands(app)("doctor --offline").out.count("refused") == 1


def test_what_leaves_the_machine(make_app: MakeApp, settings: Settings) -> None:
    """Nobody listens at the platform's address, nor at PUBLIC_BASE_URL."""
    assert settings.platform_accounts
    app = make_app(public_base_url="http://127.0.0.1:9")
    outcome = Commands(app)("doctor --json")
    assert levels(outcome, "providers") == ["problem"]
    assert levels(outcome, "callbacks") == ["warning"]
    assert "connection_refused" in found(outcome, "callbacks")[0]["found"]


def test_without_a_platform_account_that_is_said(make_app: MakeApp) -> None:
    app = make_app(platform_accounts=())
    assert levels(Commands(app)("doctor --json"), "providers") == ["warning"]
