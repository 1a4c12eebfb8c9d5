"""Probes: what is away is said, and only the database decides whether work can be done."""

from __future__ import annotations

import psycopg
import pytest
from flask import Flask

from devstack.postgres_server import PostgresServer
from devstack.servers import Servers
from payments_app.api.health import LEAVING
from payments_app.settings import Settings
from tests.api.http_caller import MakeApp
from tests.conftest import Installation

NO_SERVER = "postgresql+psycopg://maramoja_app@127.0.0.1:1/maramoja"


def test_all_is_well(installation_of_its_own: Installation) -> None:
    """Of its own: what other tests heard of the provider is told here too."""
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
    assert app.test_client().get("/health/ready").get_json()["redis"] == "ok"


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

    answer = make_app(database_url=url).test_client().get("/health/ready")

    assert answer.status_code == 503
    assert answer.get_json()["database"] == "migrations pending: run flask db upgrade"


def test_a_schema_of_a_newer_version_is_ready(
    app: Flask, postgres_server: PostgresServer, database_name: str
) -> None:
    """Migrations only expand: the version before goes on while a deploy is under way."""
    url = postgres_server.administrator_url(database_name)
    with psycopg.connect(url, autocommit=True) as administrator:
        (head,) = administrator.execute("SELECT version_num FROM alembic_version").fetchone() or ""
        for version, status in (("9999", 200), ("0001", 503), (head, 200)):
            administrator.execute("UPDATE alembic_version SET version_num = %s", [version])
            assert app.test_client().get("/health/ready").status_code == status


def test_a_process_that_is_about_to_end_is_not_ready_and_serves_on(make_app: MakeApp) -> None:
    app = make_app()
    app.extensions[LEAVING] = lambda: True
    answer = app.test_client().get("/health/ready")
    assert answer.status_code == 503
    assert answer.get_json()["status"] == "draining"
    assert app.test_client().get("/health/live").status_code == 200
