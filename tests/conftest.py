"""What every test may ask for: real servers, a migrated database, a whole running stack.

Each pytest-xdist worker is a process of its own and has its own servers, so tests that run side
by side never meet. They start at the first test that asks for them, take about a second, and are
gone with pytest, however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devstack.postgres_server import PostgresServer
from devstack.redis_server import RedisServer
from devstack.servers import Servers


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The session's servers; each starts when it is first used."""
    with Servers() as running:
        yield running


@pytest.fixture(scope="session")
def postgres_server(servers: Servers) -> PostgresServer:
    """A running PostgreSQL; `.restart()`, `.kill()`, `.create_database()`."""
    return servers.postgres


@pytest.fixture(scope="session")
def redis_server(servers: Servers) -> RedisServer:
    """A running Redis; `.flush()`, `.restart()`, `.kill()`. Start it again if you stop it."""
    return servers.redis


@pytest.fixture(scope="session")
def database_name(servers: Servers) -> str:
    """This worker's database: migrated once, cleaned by whoever writes to it."""
    return servers.new_database()


@pytest.fixture(scope="session")
def database_url(postgres_server: PostgresServer, database_name: str) -> str:
    """DATABASE_URL for this worker's database: the plain role, under row-level security."""
    return postgres_server.application_url(database_name)


@pytest.fixture(scope="session")
def migration_database_url(postgres_server: PostgresServer, database_name: str) -> str:
    """MIGRATION_DATABASE_URL for this worker's database: the owner of its tables."""
    return postgres_server.owner_url(database_name)


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    """REDIS_URL for this worker's Redis."""
    return redis_server.url
