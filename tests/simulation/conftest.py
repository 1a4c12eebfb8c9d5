"""One installation for all tests of this folder: a database, and the engine on the virtual clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devstack.servers import Servers
from tests.simulation.installation import Installation, installed


@pytest.fixture(scope="module")
def installation(servers: Servers) -> Iterator[Installation]:
    name, postgres = servers.new_database(), servers.postgres
    urls = postgres.application_url(name), postgres.administrator_url(name)
    with installed(*urls) as here:
        yield here
    postgres.drop_database(name)
