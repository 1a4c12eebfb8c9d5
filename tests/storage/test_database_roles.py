"""A role that bypasses row-level security is refused; even the tables' owner is subject to it."""

from __future__ import annotations

import psycopg
import pytest
from flask import Flask
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from devstack.postgres_server import PostgresServer
from payments_app import refuse_unsafe_role
from payments_app.kernel.database import EVERY_TENANT, db, init_database, snapshot, transaction
from payments_app.kernel.postgres import DatabaseRoleUnsafe
from tests.builders import a_tenant


def an_app(url: str, *, allow_superuser: bool = False) -> Flask:
    app = Flask("roles")
    address = url.replace("postgresql:", "postgresql+psycopg:", 1)
    init_database(app, address, allow_superuser=allow_superuser)
    return app


def test_a_superuser_is_refused_at_the_start_and_at_each_connection(
    administrator_url: str,
) -> None:
    app = an_app(administrator_url)
    with pytest.raises(SystemExit, match="superuser"):
        refuse_unsafe_role(app)
    with app.app_context(), pytest.raises(DatabaseRoleUnsafe), transaction(EVERY_TENANT) as session:
        session.execute(text("SELECT 1"))


def test_a_role_with_bypassrls_is_refused(
    postgres_server: PostgresServer, database_name: str
) -> None:
    with psycopg.connect(postgres_server.administrator_url(), autocommit=True) as administrator:
        administrator.execute("DROP ROLE IF EXISTS bypasser")
        administrator.execute("CREATE ROLE bypasser LOGIN BYPASSRLS")
    with pytest.raises(SystemExit, match="BYPASSRLS"):
        refuse_unsafe_role(an_app(postgres_server.url("bypasser", database_name)))


def test_development_may_use_a_superuser(administrator_url: str) -> None:
    app = an_app(administrator_url, allow_superuser=True)
    refuse_unsafe_role(app)
    with app.app_context():
        db.engine.dispose()


def test_a_database_that_is_away_is_no_reason_not_to_start() -> None:
    refuse_unsafe_role(an_app("postgresql://nobody@127.0.0.1:1/nothing"))


def test_the_tables_owner_is_behind_the_wall_too(migration_database_url: str) -> None:
    mine, other = a_tenant(), a_tenant()
    app = an_app(migration_database_url)
    refuse_unsafe_role(app)
    with app.app_context():
        with transaction(mine.id) as session:
            assert session.scalars(text("SELECT id FROM tenants")).all() == [mine.id]
        with snapshot() as connection:
            assert connection.scalar(text("SELECT count(*) FROM tenants")) == 0
        with transaction(EVERY_TENANT) as session:
            assert set(session.scalars(text("SELECT id FROM tenants"))) == {mine.id, other.id}
        db.engine.dispose()


def test_a_row_for_another_tenant_is_refused() -> None:
    mine, other = a_tenant(), a_tenant()
    planted = text(
        "INSERT INTO api_keys (id, tenant_id, prefix, key_hash, mode)"
        " VALUES (gen_random_uuid(), :tenant, 'planted', sha256('x'), 'live')"
    )
    with pytest.raises(ProgrammingError) as refused, transaction(mine.id) as session:
        session.execute(planted, {"tenant": other.id})
    assert isinstance(refused.value.orig, InsufficientPrivilege)
