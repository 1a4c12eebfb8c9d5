"""Fixtures for the tests of outgoing HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from flask import Flask
from redis import Redis

from devstack.redis_server import RedisServer
from payments_app.kernel.http.transport import Transport
from payments_app.kernel.secrets import Cipher
from payments_app.providers.tokens import TokenCache
from tests.providers.bare_server import BareServer
from tests.providers.leaping import LeapingClock, leaping
from tests.providers.minting import SECRET_KEY, a_client, keys


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[BareServer, socket.socket], None]], BareServer]]:
    """Start bare servers; `behave(server, peer)` runs once for each connection."""
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
    """The transport checks that this context has no open transaction."""
    with Flask(__name__).app_context():
        yield


@pytest.fixture
def transport() -> Transport:
    return Transport(user_agent="Maramoja/test")


@pytest.fixture
def clock() -> Iterator[LeapingClock]:
    """The product's clock, moved by the test."""
    with leaping() as found:
        yield found


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    redis_server.flush()
    with a_client(redis_server.url) as client:
        yield client


@pytest.fixture
def process(redis: Redis) -> Callable[[], TokenCache]:
    """Each call gives a cache as another process would have it."""
    return lambda: TokenCache(redis, Cipher([SECRET_KEY]))


@pytest.fixture
def pass_time(redis: Redis, clock: LeapingClock) -> Callable[[float], None]:
    """`pass_time(seconds)`: for the product's clock and for what expires in Redis."""

    def act(seconds: float) -> None:
        clock.leap(seconds)
        for name in keys(redis, "*"):
            if (left_ms := cast("int", redis.pttl(name))) > 0:
                redis.pexpire(name, left_ms - int(seconds * 1000))

    return act
