"""Fixtures for every test: real servers, a migrated database, a whole running stack.

Each pytest-xdist worker is a process of its own with its own servers, so tests that run at the
same time share nothing. The servers start when a test first needs them, in about a second, and
stop with pytest, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from cryptography.fernet import Fernet
from flask import Flask

from devstack.postgres_server import PostgresServer
from devstack.redis_server import RedisServer
from devstack.servers import Servers
from devstack.stack import Stack
from payments_app import create_app
from payments_app.kernel.database import db
from payments_app.settings import Settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests or a stack run first: the quick ones fill all workers to the end."""
    slow = {
        item.path
        for item in items
        if item.get_closest_marker("slow")
        or (isinstance(item, pytest.Function) and "stack_factory" in item.fixturenames)
    }
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def migrated_servers() -> Iterator[Servers]:
    """What all servers of the session are copies of: initdb and the migrations run once."""
    with Servers() as source:
        yield source


@pytest.fixture(scope="session")
def servers(migrated_servers: Servers) -> Iterator[Servers]:
    """The session's servers; each starts when it is first used."""
    with Servers(copy_of=migrated_servers) as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server(servers: Servers) -> PostgresServer:
    """A running PostgreSQL; `.restart()`, `.kill()`, `.create_database()`."""
    return servers.postgres


@pytest.fixture(scope="session")
def redis_server(servers: Servers) -> RedisServer:
    """A running Redis; `.flush()`, `.restart()`, `.kill()`. Start it again if you stop it."""
    return servers.redis


@pytest.fixture(scope="module")
def database_name(servers: Servers) -> Iterator[str]:
    """This module's database: no other module sees its rows."""
    name = servers.new_database()
    yield name
    servers.postgres.drop_database(name)


@pytest.fixture(scope="module")
def database_url(postgres_server: PostgresServer, database_name: str) -> str:
    """DATABASE_URL for this module's database: the plain role, under row-level security."""
    return postgres_server.application_url(database_name)


@pytest.fixture(scope="module")
def migration_database_url(postgres_server: PostgresServer, database_name: str) -> str:
    """MIGRATION_DATABASE_URL for this module's database: the owner of its tables."""
    return postgres_server.owner_url(database_name)


@pytest.fixture(scope="module")
def redis_url(redis_server: RedisServer) -> str:
    """REDIS_URL for this worker's Redis, empty at the module's start."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def stack_factory(migrated_servers: Servers) -> partial[Stack]:
    """The whole stack as real processes: `with stack_factory(workers=2) as stack: …`.

    Each stack has its own PostgreSQL: killing the one that this session's other tests use would
    break the connections that they keep.
    """
    return partial(Stack, copy_of=migrated_servers)


@pytest.fixture(scope="module")
def settings(database_url: str, migration_database_url: str, redis_url: str) -> Settings:
    """Settings with MTN's sandbox as the platform account; nothing listens at its address."""
    return Settings.from_env(
        {
            "DATABASE_URL": database_url,
            "MIGRATION_DATABASE_URL": migration_database_url,
            "REDIS_URL": redis_url,
            "SECRET_KEYS": Fernet.generate_key().decode(),
            "RATE_LIMIT_DEFAULT": "100000 per minute",
            "RATE_LIMIT_UNAUTHENTICATED": "100000 per minute",
            "RATE_LIMIT_CALLBACKS": "100000 per minute",
            "MTN_BASE_URL": "http://127.0.0.1:1",
            "MTN_TARGET_ENVIRONMENT": "sandbox",
            "MTN_COLLECTION_SUBSCRIPTION_KEY": "subscription",
            "MTN_COLLECTION_API_USER": "4f1c9c1e-6f2f-4b0e-8f57-0d6a3f6f7a01",
            "MTN_COLLECTION_API_KEY": "secret",
        }
    )


@dataclass(frozen=True)
class Installation:
    """One test's own migrated database, and an app on it."""

    app: Flask
    administrator_url: str


@pytest.fixture
def installation_of_its_own(
    servers: Servers, postgres_server: PostgresServer, settings: Settings
) -> Iterator[Installation]:
    """For a test that changes the schema, or whose rows must be the only ones."""
    name = servers.new_database()
    own = Settings.from_env(
        {
            "DATABASE_URL": postgres_server.application_url(name),
            "MIGRATION_DATABASE_URL": postgres_server.owner_url(name),
            "REDIS_URL": settings.redis_url,
            "SECRET_KEYS": settings.secret_keys[0],
        }
    )
    application = create_app(replace(own, platform_accounts=settings.platform_accounts))
    yield Installation(application, postgres_server.administrator_url(name))
    with application.app_context():
        db.engine.dispose()
    application.extensions["maramoja"].redis.close()


@pytest.fixture(scope="module")
def app(settings: Settings) -> Iterator[Flask]:
    """The application on this module's database and Redis. No app context is open."""
    application = create_app(settings)
    yield application
    with application.app_context():
        db.engine.dispose()
    application.extensions["maramoja"].redis.close()


@pytest.fixture
def make_app(settings: Settings) -> Iterator[Callable[..., Flask]]:
    """`make_app(redis_url=…)`: an app with other settings, closed at the end."""
    made: list[Flask] = []

    def make(**changes: Any) -> Flask:
        made.append(create_app(replace(settings, **changes)))
        return made[-1]

    yield make
    for application in made:
        with application.app_context():
            db.engine.dispose()
        application.extensions["maramoja"].redis.close()
