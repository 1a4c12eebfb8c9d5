"""What the tests of the ways out share."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from tests.providers.bare_server import BareServer


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[BareServer, socket.socket], None]], BareServer]]:
    """Starts bare servers; `behave(server, peer)` runs once for each connection."""
    servers: list[BareServer] = []

    def start(behave: Callable[[BareServer, socket.socket], None]) -> BareServer:
        server = BareServer(lambda peer: behave(server, peer))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def app_context() -> Iterator[None]:
    """The transport asks whether this context holds a transaction."""
    with Flask(__name__).app_context():
        yield
