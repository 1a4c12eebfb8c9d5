"""Probes: they report what is down, and only the database decides if the process is ready."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from cryptography.fernet import Fernet
from flask import Flask
from flask.testing import FlaskClient

from devstack.postgres_server import PostgresServer
from devstack.servers import Servers
from devstack.supervisor import wait_until
from payments_app.api.health import LEAVING
from payments_app.api.readiness import KNOWN_FOR_S, TOLD_FOR_S, LastFound
from payments_app.kernel.schema import needed_versions
from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import Mode
from payments_app.settings import Settings
from payments_app.tenants.accounts import NewAccount, set_account
from tests.api.http_caller import PAYMENTS, MakeApp, an_order, new_caller
from tests.conftest import Installation

WRONG_KEYS = "SECRET_KEYS opens nothing that is stored: put the right key back"
NO_SERVER = "postgresql+psycopg://maramoja_app@127.0.0.1:1/maramoja"


def test_all_is_well(installation_of_its_own: Installation) -> None:
    """On its own database: health also reports what other tests' calls to the provider came to."""
    client = installation_of_its_own.app.test_client()

    assert client.get("/health/live").get_json() == {"status": "ok"}
    assert client.get("/health/ready").get_json() == {
        "status": "ok",
        "database": "ok",
        "redis": "ok",
    }
    summary = client.get("/health")
    assert summary.status_code == 200
    assert summary.get_json() == {
        "status": "ok",
        "database": "ok",
        "redis": "ok",
        "providers": ["mtn_momo"],
        "provider_states": {"mtn_momo": "idle"},
        "platform_accounts": [{"provider": "mtn_momo", "target_environment": "sandbox"}],
    }


def test_no_credential_is_shown(app: Flask, settings: Settings) -> None:
    text = app.test_client().get("/health").text

    for account in settings.platform_accounts:
        for credential in account.credentials.values():
            assert credential not in text


def test_without_redis_it_is_ready_and_says_so(make_app: MakeApp, servers: Servers) -> None:
    redis = servers.new_redis()
    app = make_app(redis_url=redis.url)
    redis.stop()

    answer = app.test_client().get("/health/ready")

    assert answer.status_code == 200
    assert answer.get_json()["redis"] == "away: working without it, slower"
    redis.start()
    wait_until(
        lambda: app.test_client().get("/health/ready").get_json()["redis"] == "ok",
        what="Redis is back and nobody says so",
        limit_s=KNOWN_FOR_S + 5,
    )


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_without_postgres_it_is_alive_and_not_ready(make_app: MakeApp, path: str) -> None:
    client = make_app(database_url=NO_SERVER).test_client()

    answer = client.get(path)

    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.get_json()["status"] == "unavailable"
    assert answer.get_json()["database"] == "unreachable"
    assert client.get("/health/live").status_code == 200


def test_a_schema_that_is_not_this_versions_is_not_ready(
    make_app: MakeApp, postgres_server: PostgresServer
) -> None:
    empty = postgres_server.create_database("maramoja_empty")
    url = postgres_server.application_url(empty).replace("postgresql://", "postgresql+psycopg://")

    app = make_app(database_url=url)

    answer = app.test_client().get("/health/ready")

    assert answer.status_code == 503
    (needed,) = needed_versions(app.extensions["migrate"].directory)
    assert answer.get_json()["database"] == (
        f"migrations pending: the schema is at nothing, this version needs {needed}:"
        " run flask db upgrade"
    )


def test_a_schema_of_a_newer_version_is_ready(
    app: Flask, postgres_server: PostgresServer, database_name: str
) -> None:
    """Migrations only expand, so the version before still works while a deploy is under way."""
    url = postgres_server.administrator_url(database_name)
    with psycopg.connect(url, autocommit=True) as administrator:
        (head,) = administrator.execute("SELECT version_num FROM alembic_version").fetchone() or ""
        for version, status in (("9999", 200), ("0001", 503), (head, 200)):
            administrator.execute("UPDATE alembic_version SET version_num = %s", [version])
            wait_until(
                lambda status=status: app.test_client().get("/health/ready").status_code == status,
                what=f"version {version} does not answer {status}",
                limit_s=KNOWN_FOR_S + 5,
            )


@pytest.fixture
def wrong_keys(
    installation_of_its_own: Installation, make_app: MakeApp
) -> Callable[[], FlaskClient]:
    """A client of that installation, with a well-formed encryption key that is not its own."""
    url = installation_of_its_own.app.config["SQLALCHEMY_DATABASE_URI"]
    other = Fernet.generate_key().decode()
    return lambda: make_app(database_url=url, secret_keys=(other,)).test_client()


@pytest.mark.parametrize("stored", ["data key", "account"])
def test_secrets_that_no_key_opens_are_not_ready(
    installation_of_its_own: Installation, wrong_keys: Callable[[], FlaskClient], stored: str
) -> None:
    app = installation_of_its_own.app
    assert wrong_keys().get("/health/ready").status_code == 200, "nothing is stored yet"
    if stored == "data key":
        new_caller(app).pay()
    else:
        put_account(app)
    answer = wrong_keys().get("/health/ready")
    assert answer.status_code == 503
    assert answer.get_json()["database"] == WRONG_KEYS
    assert app.test_client().get("/health/ready").status_code == 200


def test_one_secret_that_does_not_open_is_its_own_tenants_trouble(
    installation_of_its_own: Installation,
) -> None:
    app = installation_of_its_own.app
    for _ in range(2):
        new_caller(app).pay()
    other = Cipher([Fernet.generate_key().decode()]).encrypt("x")
    with psycopg.connect(installation_of_its_own.administrator_url) as administrator:
        newest = "(SELECT id FROM tenants ORDER BY id DESC LIMIT 1)"
        change = f"UPDATE tenants SET data_key = %s WHERE id = {newest}"  # noqa: S608
        administrator.execute(change.encode(), [other])
    assert app.test_client().get("/health/ready").status_code == 200


def test_what_is_wrong_is_logged_when_it_begins_and_when_it_ends(
    installation_of_its_own: Installation,
    wrong_keys: Callable[[], FlaskClient],
    capsys: pytest.CaptureFixture[str],
) -> None:
    caller = new_caller(installation_of_its_own.app)
    caller.pay()
    client = wrong_keys()
    capsys.readouterr()
    # No probe has run yet: the first request that fails for the wrong key starts the check.
    refused = client.post(PAYMENTS, json=an_order(), headers={"X-API-Key": caller.key.key})
    assert refused.status_code == 503
    for _ in range(2):
        assert client.get("/health/ready").status_code == 503
        time.sleep(KNOWN_FOR_S)
    assert said(capsys) == [("health.not_ready", WRONG_KEYS)]
    with psycopg.connect(installation_of_its_own.administrator_url) as administrator:
        administrator.execute("SET session_replication_role = replica")
        administrator.execute("UPDATE tenants SET data_key = NULL")
    assert client.get("/health/ready").status_code == 200
    assert said(capsys) == [("health.ready", None)]


def said(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str | None]]:
    lines = [json.loads(line) for line in "".join(capsys.readouterr()).splitlines()]
    found = [(line["event"], line.get("why")) for line in lines]
    return [(event, why) for event, why in found if event.startswith("health.")]


def put_account(app: Flask) -> None:
    """A tenant's own account, whose credentials are stored encrypted."""
    new = NewAccount(
        provider="mtn_momo",
        mode=Mode.TEST,
        base_url="https://momo.example",
        target_environment="sandbox",
        credentials={"api_key": "x"},
    )
    tenant = new_caller(app).tenant
    with app.app_context():
        set_account(tenant, new, cipher=app.extensions["maramoja"].cipher, actor="cli:ada")


def test_what_was_found_is_told_for_a_second() -> None:
    now, looks = [0.0], iter(range(10))
    found, look = LastFound(seconds=lambda: now[0]), lambda: next(looks)

    def told(at_s: float) -> int:
        now[0] = at_s
        return found.get(look)

    assert [told(at_s) for at_s in (0.0, 0.5, 0.99, 1.0, 1.5, 2.0)] == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("age_s", "is_told"), [(2.99, True), (3.0, False)])
def test_while_one_looks_what_is_told_is_never_older_than_three_seconds(
    age_s: float, *, is_told: bool
) -> None:
    now, asked, go_on = [0.0], threading.Event(), threading.Event()
    found, answers = LastFound(seconds=lambda: now[0]), iter(["first", "second", "third"])

    def look() -> str:
        answer = next(answers)
        if answer == "second":
            asked.set()
            assert go_on.wait(10)
        return answer

    assert found.get(look) == "first"
    now[0] = age_s
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(found.get, look)
        assert asked.wait(10)
        other = threads.submit(found.get, look)
        wait_until(
            lambda: other.done() or not is_told, what="it waits for the other's look", limit_s=10
        )
        assert is_told or not other.done()
        go_on.set()
        slow.result(10)
        assert (other.result(10) == "first") == is_told


def test_while_one_looks_others_are_told_what_is_not_old() -> None:
    """A database that hangs blocks one request, and others once the last result is too old."""
    now, asked, go_on = [0.0], threading.Event(), threading.Event()
    found, answers = LastFound(seconds=lambda: now[0]), iter(["first", "second", "third"])

    def look() -> str:
        answer = next(answers)
        if answer == "second":
            asked.set()
            assert go_on.wait(10)
        return answer

    assert found.get(look) == "first"
    now[0] = KNOWN_FOR_S
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(found.get, look)
        assert asked.wait(10)
        assert found.get(look) == "first"
        now[0] = TOLD_FOR_S
        late = threads.submit(found.get, look)
        assert not late.done()
        go_on.set()
        assert (slow.result(10), late.result(10)) == ("second", "third")


def test_a_process_that_is_about_to_end_is_not_ready_and_serves_on(make_app: MakeApp) -> None:
    app = make_app()
    app.extensions[LEAVING] = lambda: True
    answer = app.test_client().get("/health/ready")
    assert answer.status_code == 503
    assert answer.get_json()["status"] == "draining"
    assert app.test_client().get("/health/live").status_code == 200
