"""Fixtures of the attacks: a victim, its intruders, and databases with and without policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest
from flask import Flask
from psycopg import sql

from devstack.servers import Servers
from payments_app import create_app
from payments_app.kernel.database import db
from payments_app.settings import Settings
from tests.isolation.scene import Scene, set_up

MakeApp = Callable[[str], Flask]


@pytest.fixture(scope="module")
def scene(app: Flask) -> Scene:
    """A victim with payments, and its intruders."""
    return set_up(app)


@pytest.fixture(scope="module")
def app_on(servers: Servers, settings: Settings) -> Iterator[MakeApp]:
    """`app_on(database)`: the application on another database, closed at the end."""
    made: list[Flask] = []

    def make(database: str) -> Flask:
        url = servers.postgres.application_url(database)
        address = url.replace("postgresql:", "postgresql+psycopg:", 1)
        made.append(create_app(replace(settings, database_url=address)))
        return made[-1]

    yield make
    for application in made:
        with application.app_context():
            db.engine.dispose()
        application.extensions["maramoja"].redis.close()


@pytest.fixture(scope="module")
def walled(servers: Servers) -> str:
    """This module's own database, with row-level security as in production."""
    return servers.new_database()


@pytest.fixture(scope="module")
def wall_less(servers: Servers) -> str:
    """The same without its policies: only the code's own filters protect the rows."""
    name = servers.new_database()
    with psycopg.connect(servers.postgres.administrator_url(name), autocommit=True) as connection:
        policies = connection.execute(
            "SELECT policyname, tablename FROM pg_policies WHERE schemaname = 'public'"
        ).fetchall()
        assert policies
        for policy, table in policies:
            names = sql.Identifier(policy), sql.Identifier(table)
            connection.execute(sql.SQL("DROP POLICY {} ON {}").format(*names))
            connection.execute(
                sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY").format(sql.Identifier(table))
            )
    return name
