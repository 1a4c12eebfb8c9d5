"""Each program exits at once with one line if a setting is wrong; and Unix sockets work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from kombu import Connection
from redis import Redis

from devstack.environment import surroundings
from devstack.places import remove, socket_directory
from devstack.redis_server import _server_program
from payments_app.settings import Settings
from tests.api.http_caller import HttpCaller, MakeApp, an_order, new_caller
from tests.builders import let_rings_be_heard

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
COMMANDS = {
    "gunicorn": ["gunicorn", "wsgi:app", "--bind=127.0.0.1:0", "--workers=2"],
    "celery": ["celery", "-A", "celery_worker", "worker"],
    "flask": ["flask", "tenants", "list"],
}
START_MAX_S = 60


def start(program: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    name, *arguments = COMMANDS[program]
    return subprocess.run(
        [PROGRAMS / name, *arguments],
        cwd=ROOT,
        env={**surroundings(), **env},
        capture_output=True,
        text=True,
        timeout=START_MAX_S,
        check=False,
    )


@pytest.mark.parametrize("program", COMMANDS)
def test_a_wrong_setting_ends_the_program_with_a_line(program: str, settings: Settings) -> None:
    env = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": "hunter2",
        "SECRET_KEYS": settings.secret_keys[0],
    }

    ended = start(program, env)

    told = ended.stdout + ended.stderr
    assert ended.returncode not in {0, -signal.SIGKILL}
    assert "REDIS_URL is malformed: it should be a Redis address such as redis://" in told
    assert "hunter2" not in told
    assert "Traceback" not in told


def test_an_unknown_target_environment_ends_the_program_too(settings: Settings) -> None:
    env = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "SECRET_KEYS": settings.secret_keys[0],
        "MTN_TARGET_ENVIRONMENT": "mtnatlantis",
        "MTN_COLLECTION_SUBSCRIPTION_KEY": "hunter2",
        "MTN_COLLECTION_API_USER": "hunter2",
        "MTN_COLLECTION_API_KEY": "hunter2",
    }

    ended = start("flask", env)

    assert ended.returncode != 0
    assert ended.stderr.startswith("MTN_TARGET_ENVIRONMENT is malformed: ")
    assert len(ended.stderr.splitlines()) == 1
    assert "hunter2" not in ended.stderr


class TestUnixSocket:
    """One address for the lock, the limiter and Celery."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> Iterator[str]:
        # A socket's path must be short, however long that of the test's folder is.
        folder = socket_directory(tmp_path, None)
        path = folder / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--requirepass", "p/w"]
        server = subprocess.Popen(
            [_server_program(), *options], stdout=subprocess.DEVNULL, env=dict(os.environ)
        )
        url = f"unix://:p%2Fw@{path}?db=3"
        deadline = time.monotonic() + START_MAX_S
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield url
        server.kill()
        server.wait()
        remove(folder)

    @pytest.fixture
    def caller(self, make_app: MakeApp, url: str) -> HttpCaller:
        app: Flask = make_app(redis_url=url, celery_broker_url=url)
        # The process may still avoid a broker that was away in an earlier test.
        let_rings_be_heard()
        with Redis.from_url(url) as redis:
            redis.flushdb()
        return new_caller(app)

    def test_locks_limits_and_rings(self, caller: HttpCaller, url: str) -> None:
        with Redis.from_url(url) as redis:
            accepted = caller.post(an_order(), key="5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a")

            assert accepted.status_code == 201
            assert list(redis.scan_iter("limit:*"))
            deadline = time.monotonic() + START_MAX_S
            while not redis.llen("payments") and time.monotonic() < deadline:
                time.sleep(0.02)
            assert redis.llen("payments") == 1
            assert redis.info("commandstats")["cmdstat_set"]["calls"] >= 1

    def test_is_an_address_that_a_worker_can_listen_at(self, caller: HttpCaller) -> None:
        broker = caller.app.extensions["celery"].conf.broker_url

        caller.pay()

        with Connection(broker) as connection:
            queue = connection.SimpleQueue("payments")
            assert queue.get(timeout=START_MAX_S).headers["task"] == "payments.process_due"
            queue.close()
