"""`flask doctor`: each thing that it checks is broken once, and it says what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from wsgiref.simple_server import make_server

import psycopg
import pytest
import time_machine
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import make_url

from devstack.postgres_server import PostgresServer
from devstack.servers import Servers
from payments_app.kernel import database
from payments_app.kernel.database import db
from payments_app.providers.contract import Failure, FailureCode
from payments_app.settings import Settings
from payments_app.tenants.caller import Caller
from payments_app.tenants.holds import hold_tenant
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    a_caller,
    a_tenant,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    rails_of,
)
from tests.commands.conftest import Commands, Outcome
from tests.conftest import Installation
from tests.storage.bending import LAWLESS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

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
        connection.execute("DELETE FROM events")
        yield connection


@pytest.fixture
def new_connections(app: Flask) -> Iterator[None]:
    """A setting of a role or a database applies to new connections, and to no later test's."""
    with app.app_context():
        db.engine.dispose()
    yield
    with app.app_context():
        db.engine.dispose()


def found(outcome: Outcome, check: str) -> list[dict[str, Any]]:
    return [one for one in outcome.document["data"] if one["check"] == check]


def levels(outcome: Outcome, check: str) -> list[str]:
    return [one["level"] for one in found(outcome, check)]


def remedy_of(outcome: Outcome, check: str, level: str) -> str:
    (one,) = [one for one in found(outcome, check) if one["level"] == level]
    return str(one["remedy"])


def look(flask: Commands) -> Outcome:
    return flask("doctor --offline --json")


def test_a_sound_installation_has_no_problem(installation_of_its_own: Installation) -> None:
    flask = Commands(installation_of_its_own.app)
    outcome = look(flask)
    # fsync is off in the tests' PostgreSQL, on purpose.
    problems = [o for o in outcome.document["data"] if o["level"] == "problem"]
    assert {one["check"] for one in problems} <= {"durability"}
    for check in (
        "PostgreSQL",
        "database role",
        "migrations",
        "tenant walls",
        "triggers",
        "functions",
        "rights",
        "columns",
        "sessions",
    ):
        assert levels(outcome, check) == ["ok"], found(outcome, check)
    for check in ("clock", "secrets", "work", "payments"):
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


@pytest.mark.parametrize(
    ("value", "is_said"), [("off", True), ("local", True), ("on", False), ("remote_apply", False)]
)
@pytest.mark.usefixtures("new_connections")
def test_a_commit_that_is_confirmed_too_early_is_a_problem(
    flask: Commands, superuser: psycopg.Connection, value: str, *, is_said: bool
) -> None:
    role = "ALTER ROLE maramoja_app"
    superuser.execute(f"{role} SET synchronous_commit = {value}")
    try:
        outcome = look(flask)
    finally:
        superuser.execute(f"{role} RESET synchronous_commit")
    said = found(outcome, "durability")[0]["found"]
    assert (f"synchronous_commit is {value}" in said) is is_said
    assert ("synchronous_commit" in said) is is_said


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
    superuser.execute("ALTER TABLE events DISABLE TRIGGER events_lawful")
    try:
        outcome = look(flask)
    finally:
        superuser.execute("ALTER TABLE events ENABLE TRIGGER events_lawful")
    assert levels(outcome, "triggers") == ["problem"]
    assert "events" in found(outcome, "triggers")[0]["found"]
    assert levels(look(flask), "triggers") == ["ok"]


@pytest.mark.parametrize(
    ("whose", "name", "value"),
    [
        ("ROLE maramoja_app", "search_path", "nowhere"),
        ("ROLE maramoja_app", "default_transaction_read_only", "on"),
        ("ROLE maramoja_app", "work_mem", "64kB"),
        ("ROLE maramoja_app", "synchronous_commit", "off"),
        ("ROLE maramoja_app", "synchronous_commit", "remote_write"),
        ("ROLE maramoja_app IN DATABASE {database}", "TimeZone", "Asia/Tokyo"),
        ("ROLE maramoja_owner", "search_path", "nowhere"),
        ("ROLE maramoja_owner IN DATABASE {database}", "lock_timeout", "1"),
        ("DATABASE {database}", "session_replication_role", "replica"),
        ("ROLE ALL", "lock_timeout", "1"),
        ("ROLE ALL IN DATABASE {database}", "search_path", ""),
    ],
)
@pytest.mark.usefixtures("new_connections")
def test_settings_that_somebody_put_for_our_sessions(
    flask: Commands, superuser: psycopg.Connection, whose: str, name: str, value: str
) -> None:
    place = whose.format(database=superuser.info.dbname)
    superuser.execute(f"ALTER {place} SET {name} = '{value}'".encode())
    remedy = ""
    try:
        outcome = look(flask)
        assert levels(outcome, "sessions") == ["problem"]
        assert name in found(outcome, "sessions")[0]["found"]
        remedy = remedy_of(outcome, "sessions", "problem")
        superuser.execute(remedy.removeprefix("as a superuser: ").split(";")[0].encode())
        assert levels(look(flask), "sessions") == ["ok"], remedy
    finally:
        superuser.execute(f"ALTER {place} RESET ALL".encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("synchronous_commit", "remote_apply"),
        ("synchronous_commit", "on"),
        ("timezone", "utc"),
        ("jit", "off"),
        ("search_path", "public, pg_temp"),
        ("log_min_duration_statement", "1000"),
    ],
)
@pytest.mark.usefixtures("new_connections")
def test_settings_that_bend_nothing(
    flask: Commands, superuser: psycopg.Connection, name: str, value: str
) -> None:
    superuser.execute(f"ALTER ROLE maramoja_app SET {name} = {value}".encode())
    try:
        outcome = look(flask)
    finally:
        superuser.execute("ALTER ROLE maramoja_app RESET ALL")
    assert levels(outcome, "sessions") == ["ok"]


def test_a_pooler_that_drops_what_a_connection_asks_for(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "asking_for", lambda _settings, _url: {})
    outcome = look(Commands(make_app()))
    assert levels(outcome, "sessions") == ["problem"]
    assert "search_path" in found(outcome, "sessions")[0]["found"]


ELSEWHERE = "ALTER FUNCTION refuse_change() SET search_path = {}"
HERE = ELSEWHERE.format("pg_catalog, public, pg_temp")
DEFAULT = "ALTER DEFAULT PRIVILEGES FOR ROLE maramoja_owner {} EXECUTE ON FUNCTIONS {} PUBLIC"


@pytest.mark.parametrize(
    ("wrong", "right", "named"),
    [
        ("ALTER FUNCTION refuse_change() RESET search_path", HERE, "refuse_change()"),
        (ELSEWHERE.format("pg_catalog, public"), HERE, "refuse_change()"),
        (ELSEWHERE.format("pg_temp, pg_catalog, public"), HERE, "refuse_change()"),
        (ELSEWHERE.format("public, pg_catalog, pg_temp"), HERE, "refuse_change()"),
        (
            "CREATE FUNCTION later() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "DROP FUNCTION later()",
            "later()",
        ),
        (
            "GRANT EXECUTE ON FUNCTION turn_webhook_attempts() TO PUBLIC",
            "REVOKE EXECUTE ON FUNCTION turn_webhook_attempts() FROM PUBLIC",
            "turn_webhook_attempts()",
        ),
        (DEFAULT.format("GRANT", "TO"), DEFAULT.format("REVOKE", "FROM"), "maramoja_owner"),
    ],
)
def test_functions_that_look_elsewhere_or_are_anybodys_to_call(
    flask: Commands, superuser: psycopg.Connection, wrong: str, right: str, named: str
) -> None:
    superuser.execute(wrong.encode())
    try:
        outcome = look(flask)
    finally:
        superuser.execute(right.encode())
    assert set(levels(outcome, "functions")) == {"problem"}
    assert all(named in one["found"] for one in found(outcome, "functions"))
    assert levels(look(flask), "functions") == ["ok"]


@pytest.mark.parametrize(
    ("right", "place", "whose"),
    [
        ("TEMPORARY", "DATABASE {database}", "PUBLIC"),
        ("TEMPORARY", "DATABASE {database}", "{role}"),
        ("CREATE", "DATABASE {database}", "{role}"),
        ("CREATE", "SCHEMA public", "PUBLIC"),
    ],
)
def test_a_role_that_may_make_objects(
    flask: Commands,
    superuser: psycopg.Connection,
    settings: Settings,
    right: str,
    place: str,
    whose: str,
) -> None:
    url = make_url(settings.database_url)
    names = {"database": url.database, "role": url.username}
    where, whom = place.format(**names), whose.format(**names)
    superuser.execute(f"GRANT {right} ON {where} TO {whom}".encode())
    try:
        outcome = look(flask)
    finally:
        superuser.execute(f"REVOKE {right} ON {where} FROM {whom}".encode())
    assert levels(outcome, "rights") == ["problem"]
    assert right in remedy_of(outcome, "rights", "problem")
    assert levels(look(flask), "rights") == ["ok"]


def test_a_role_that_may_act_as_the_owner(
    flask: Commands, superuser: psycopg.Connection, settings: Settings
) -> None:
    role = make_url(settings.database_url).username
    superuser.execute(f"GRANT maramoja_owner TO {role} WITH INHERIT FALSE".encode())
    try:
        outcome = look(flask)
    finally:
        superuser.execute(f"REVOKE maramoja_owner FROM {role}".encode())
    assert levels(outcome, "database role") == ["warning"]
    assert "as who does" in found(outcome, "database role")[0]["found"]
    assert levels(look(flask), "database role") == ["ok"]


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


@pytest.mark.parametrize(
    ("wrong", "right", "named"),
    [
        (
            "GRANT UPDATE (scopes) ON api_keys TO {}",
            "REVOKE UPDATE (scopes) ON api_keys FROM {}",
            "what it never does: api_keys.scopes",
        ),
        (
            "GRANT UPDATE (url) ON webhook_attempts_default TO {}",
            "REVOKE UPDATE (url) ON webhook_attempts_default FROM {}",
            "what it never does: webhook_attempts_default.url",
        ),
        (
            "GRANT UPDATE (actor) ON audit_entries TO PUBLIC",
            "REVOKE UPDATE (actor) ON audit_entries FROM PUBLIC",
            "what it never does: audit_entries.actor",
        ),
        (
            "REVOKE UPDATE (hinted) ON payments FROM {}",
            "GRANT UPDATE (hinted) ON payments TO {}",
            "may not change: payments.hinted",
        ),
    ],
)
def test_columns_that_may_be_changed_and_should_not_and_the_other_way_round(
    flask: Commands,
    superuser: psycopg.Connection,
    settings: Settings,
    wrong: str,
    right: str,
    named: str,
) -> None:
    role = make_url(settings.database_url).username or ""
    superuser.execute(wrong.format(role).encode())
    try:
        outcome = look(flask)
    finally:
        superuser.execute(right.format(role).encode())
    assert levels(outcome, "columns") == ["problem"]
    assert named in found(outcome, "columns")[0]["found"]
    assert levels(look(flask), "columns") == ["ok"]


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
    put = "UPDATE webhook_endpoints SET secret = %s WHERE id = %s"
    superuser.execute(put, [other, endpoint.id])
    try:
        outcome = look(flask)
    finally:
        superuser.execute(put, [endpoint.secret, endpoint.id])
    assert levels(outcome, "secrets") == ["problem"]
    assert "webhook_endpoint" in found(outcome, "secrets")[0]["found"]


def test_a_secret_that_would_open_in_anothers_row_and_one_that_was_moved(
    app: Flask, flask: Commands, superuser: psycopg.Connection
) -> None:
    with app.app_context():
        mine, theirs = (an_endpoint(Owner(a_tenant().id, "live")).endpoint for _ in range(2))
    unbound = app.extensions["maramoja"].cipher.encrypt("whsec_x")
    put = "UPDATE webhook_endpoints SET secret = %s WHERE id = %s"
    try:
        superuser.execute(put, [unbound, mine.id])
        outcome = look(flask)
        superuser.execute(put, [theirs.secret, mine.id])
        moved = look(flask)
    finally:
        superuser.execute(put, [mine.secret, mine.id])
    assert levels(outcome, "secrets") == ["warning"]
    assert "flask secrets rotate" in remedy_of(outcome, "secrets", "warning")
    assert levels(moved, "secrets") == ["problem"]


def test_work_that_nobody_does(app: Flask, flask: Commands, superuser: psycopg.Connection) -> None:
    with app.app_context():
        an_accepted_payment(rails_of(app, ScriptedProvider()))
    superuser.execute(
        "UPDATE payments SET next_action_at = clock_timestamp() - interval '2 minutes'"
        " WHERE id = (SELECT id FROM payments ORDER BY created_at DESC LIMIT 1)"
    )
    superuser.execute("UPDATE events SET created_at = clock_timestamp() - interval '20 minutes'")
    outcome = look(flask)
    assert levels(outcome, "work") == ["problem", "problem", "warning"]


def test_payments_that_do_not_leave_or_do_not_end_and_accounts_that_are_refused(
    installation_of_its_own: Installation,
) -> None:
    app = installation_of_its_own.app
    flask = Commands(app)
    refused = replace(
        ANSWERS["refused"], failure=Failure(FailureCode.CURRENCY_REFUSED, "NOT_ALLOWED")
    )
    with app.app_context():
        unsent, waiting, failed, held = (a_caller() for _ in range(4))
        for caller, answer in (
            *((waiting, ANSWERS["accepted"]), (failed, refused)),
            # These are last: they are due again in a second, and a later provider would get them.
            *((unsent, ANSWERS["not_sent"]), (held, ANSWERS["not_sent"])),
        ):
            # A payment whose status is checked meanwhile must stay open.
            pay(app, caller, ScriptedProvider(submits=[answer], checks=[ANSWERS["pending"]]))
        hold_tenant(held.tenant_id, why="a test", actor="cli:test")
    outcome = look(flask)
    assert [unsent.tenant_slug in one["found"] for one in found(outcome, "payments")] == [False]
    url = installation_of_its_own.administrator_url
    with psycopg.connect(url, autocommit=True, options=LAWLESS) as superuser:
        ago = "UPDATE payments SET created_at = created_at - interval"
        superuser.execute(f"{ago} '6 minutes' WHERE stage = 'accepted'".encode())
        superuser.execute(f"{ago} '25 hours' WHERE stage = 'awaiting_payer'".encode())
    outcome = look(flask)
    assert levels(outcome, "payments") == ["warning", "problem", "warning"]
    said = [one["found"] for one in found(outcome, "payments")]
    assert "25 hours" in said[0]
    assert waiting.tenant_slug in said[0]
    assert "1 payments at scripted were not sent" in said[1]
    assert unsent.tenant_slug in said[1]
    assert remedy_of(outcome, "payments", "problem") == (
        f"flask providers check {unsent.tenant_slug} scripted"
    )
    assert failed.tenant_slug in said[2]
    assert "NOT_ALLOWED" in found(outcome, "payments")[2]["remedy"]
    assert held.tenant_slug not in " ".join(said)


def pay(app: Flask, caller: Caller, provider: ScriptedProvider) -> None:
    """A payment of this caller, after its first submission."""
    gateway = rails_of(app, provider)
    an_accepted_payment(gateway, context=an_asker(caller=caller))
    advance(gateway)


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


def test_redis_without_room(make_app: MakeApp, servers: Servers) -> None:
    redis = servers.new_redis()
    app = make_app(redis_url=redis.url, celery_broker_url=redis.url)
    client = app.extensions["maramoja"].redis
    # Far more than the memory that the doctor's own connections take.
    for number in range(400):
        client.set(f"ballast {number}", bytes(2**16))
    used = client.info("memory")["used_memory"]
    for most, level in ((2 * used, None), (int(used / 0.95), "warning"), (used // 2, "problem")):
        client.execute_command("CONFIG", "SET", "maxmemory", most)
        outcome = look(Commands(app))
        for check in ("redis", "broker"):
            said = [one for one in found(outcome, check) if "MiB" in one["found"]]
            assert [one["level"] for one in said] == ([level] if level else []), said
    # Full, but now Redis evicts keys to make room: that is another finding.
    client.execute_command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert "problem" not in levels(look(Commands(app)), "redis")
    redis.stop()


def test_open_payments_that_nobody_can_read(installation_of_its_own: Installation) -> None:
    app = installation_of_its_own.app
    with app.app_context():
        ended, readable, lost, moved = (a_caller() for _ in range(4))
        pay(app, ended, ScriptedProvider(submits=[ANSWERS["refused"]]))
        gateway = rails_of(app, ScriptedProvider())
        for caller in (readable, lost, lost, moved, moved):
            an_accepted_payment(gateway, context=an_asker(caller=caller))
    url = installation_of_its_own.administrator_url
    with psycopg.connect(url, autocommit=True, options=LAWLESS) as superuser:
        forget = "UPDATE tenants SET data_key = NULL WHERE id = %s"
        superuser.execute(forget, [lost.tenant_id])
        # One of the two can't be decrypted with the tenant's key.
        bend = "UPDATE payments SET payer = payer || 'x' WHERE id = (SELECT max(id::text)::uuid"
        superuser.execute(f"{bend} FROM payments WHERE tenant_id = %s)".encode(), [moved.tenant_id])
        superuser.execute(forget, [ended.tenant_id])
        before = superuser.execute("SELECT id, data_key FROM tenants ORDER BY id").fetchall()
        outcome = look(Commands(app))
        after = superuser.execute("SELECT id, data_key FROM tenants ORDER BY id").fetchall()
    said = [one["found"] for one in found(outcome, "payments") if one["level"] == "problem"]
    assert [line.split(" open")[0] for line in said] == [
        f"{lost.tenant_slug}: 2",
        f"{moved.tenant_slug}: 1",
    ]
    assert all("data_key_unreadable" in line for line in said)
    assert after == before, "the doctor changes nothing"


def test_the_way_in_for_callbacks_is_asked_as_a_provider_would(make_app: MakeApp) -> None:
    """Through a proxy that passes on only what the example's ingress does."""
    inner = make_app()

    def proxy(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith(tuple(let_in)):
            return inner(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"404 page not found"]

    let_in = ["/api/", "/callbacks/", "/problems/"]
    server = make_server("127.0.0.1", 0, proxy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        app = make_app(public_base_url=f"http://127.0.0.1:{server.server_port}")
        assert levels(Commands(app)("doctor --json"), "callbacks") == ["ok"]
        let_in.remove("/callbacks/")
        assert levels(Commands(app)("doctor --json"), "callbacks") == ["warning"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


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
    """Nothing listens at the platform's address, nor at PUBLIC_BASE_URL."""
    assert settings.platform_accounts
    app = make_app(public_base_url="http://127.0.0.1:9")
    outcome = Commands(app)("doctor --json")
    assert levels(outcome, "providers") == ["problem"]
    assert levels(outcome, "callbacks") == ["warning"]
    assert "connection_refused" in found(outcome, "callbacks")[0]["found"]


def test_without_a_platform_account_that_is_said(make_app: MakeApp) -> None:
    app = make_app(platform_accounts=())
    assert levels(Commands(app)("doctor --json"), "providers") == ["warning"]
