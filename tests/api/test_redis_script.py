"""Redis scripts: each thread keeps its connection, and never reuses one with an unread reply."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Connection, ConnectionPool, Redis, RedisError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as TookTooLong

from devstack.redis_server import RedisServer
from devstack.servers import Servers
from payments_app.kernel.redis_script import Script
from tests.metrics.figures import figures_here

ECHO = "return {KEYS[1], ARGV[1]}"


@pytest.fixture
def server(servers: Servers) -> RedisServer:
    return servers.new_redis()


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    # So long that only a server that is stopped takes longer.
    with Redis.from_url(server.url, socket_timeout=5.0) as redis:
        yield redis


def test_each_thread_has_a_connection_and_keeps_it(redis: Redis) -> None:
    echo = Script(redis, ECHO)
    before = redis.info("stats")["total_connections_received"]

    def ask() -> None:
        for number in range(20):
            assert echo(["key"], [number]) == [b"key", str(number).encode()]

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    opened = redis.info("stats")["total_connections_received"] - before
    # A thread that gets NOSCRIPT opens one more connection; perhaps all three do.
    assert 3 <= opened <= 6


def test_a_restart_between_two_questions_is_not_noticed(redis: Redis, server: RedisServer) -> None:
    echo = Script(redis, ECHO)
    echo(["key"], ["before"])
    before = figures_here().total("redis_errors_total")
    server.restart()
    assert echo(["key"], ["after"]) == [b"key", b"after"]
    assert figures_here().total("redis_errors_total") == before


def test_one_that_is_away_is_one_error(redis: Redis, server: RedisServer) -> None:
    echo = Script(redis, ECHO)
    echo(["key"], ["before"])
    before = figures_here().total("redis_errors_total")
    server.stop()
    with pytest.raises(RedisError):
        echo(["key"], ["after"])
    assert figures_here().total("redis_errors_total") == before + 1


def test_a_redis_that_has_forgotten_the_script_is_told_it_again(redis: Redis) -> None:
    echo = Script(redis, ECHO)
    echo(["key"], ["before"])
    redis.script_flush()
    assert echo(["key"], ["after"]) == [b"key", b"after"]


def test_an_answer_that_comes_too_late_is_nobody_elses(redis: Redis, server: RedisServer) -> None:
    echo = Script(redis, ECHO)
    echo(["key"], ["first"])
    server.process.stop()
    try:
        with pytest.raises(TookTooLong):
            echo(["key"], ["second"])
    finally:
        server.process.cont()
    assert echo(["key"], ["third"]) == [b"key", b"third"]


class Ending(Connection):
    """Sends a command and ends its thread before it reads the reply, if `ends` is set."""

    ends = False

    def send_command(self, *words: Any, **options: Any) -> None:
        super().send_command(*words, **options)  # type: ignore[no-untyped-call]
        if Ending.ends:
            Ending.ends = False
            raise SystemExit


def test_an_answer_that_nobody_has_read_is_nobody_elses(server: RedisServer) -> None:
    pool = ConnectionPool.from_url(server.url, connection_class=Ending)
    echo = Script(Redis(connection_pool=pool), ECHO)
    echo(["key"], ["first"])
    Ending.ends = True
    with pytest.raises(SystemExit):
        echo(["key"], ["second"])
    assert echo(["key"], ["third"]) == [b"key", b"third"]


def test_what_the_script_does_wrong_is_said(redis: Redis) -> None:
    with pytest.raises(ResponseError):
        Script(redis, "return redis.call('nonsense')")([], [])
