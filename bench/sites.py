"""The services under measurement: ours, and the rivals under the same gunicorn."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

import psycopg
import requests

from bench.meters import Site
from devstack.environment import surroundings
from devstack.places import free_port
from devstack.programs import ROOT
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import Command, Process, wait_until

WORKERS = 2
# As in production, but without rate limits: the simulator sends all callbacks from one address.
_NO_LIMIT = "100000000 per minute"
SETTINGS = {
    "RATE_LIMIT_DEFAULT": _NO_LIMIT,
    "RATE_LIMIT_CALLBACKS": _NO_LIMIT,
    "LOG_LEVEL": "WARNING",
}
# On a machine under load, importing an app takes long.
START_MAX_S = 100.0
_RIVALS = Path(__file__).parent / "rivals"


def site_of(stack: Stack) -> Site:
    """Our site for accept, replay and reads: the API's processes."""
    return Site(
        name="ours",
        processes=(stack.processes["api"],),
        postgres=stack.postgres,
        database=stack.database,
        redis=stack.redis,
        url=stack.api_url,
    )


def durable_servers(given: Servers | None) -> AbstractContextManager[Servers]:
    """The given servers, or new ones with fsync."""
    return Servers(durable=True) if given is None else nullcontext(given)


class Rivals:
    """The rivals' database and Redis, and the rivals that are started; all end with the block."""

    def __init__(self, servers: Servers) -> None:
        """Create the database, its tables and Redis."""
        self._servers = servers
        self._started: list[Process] = []
        self.database = servers.postgres.create_database(f"rivals_{secrets.token_hex(4)}")
        self.redis = servers.new_redis()
        tables = (_RIVALS / "tables.sql").read_bytes()
        with psycopg.connect(servers.postgres.owner_url(self.database)) as connection:
            connection.execute(tables)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the rivals and remove their database."""
        for process in self._started:
            process.terminate()
        self.redis.stop()
        self._servers.postgres.drop_database(self.database)

    def start(self, module: str, *, worker_class: str | None = None) -> Site:
        """Serve `bench/rivals/<module>.py`; without a worker class, by the same class as ours."""
        port = free_port()
        command = self.command(module, port=port, workers=WORKERS, worker_class=worker_class)
        process = self._servers.supervisor.start(command)
        self._started.append(process)
        await_port(process, port)
        return Site(
            name=command.name,
            processes=(process,),
            postgres=self._servers.postgres,
            database=self.database,
            redis=self.redis,
            url=f"http://127.0.0.1:{port}",
        )

    def command(
        self,
        module: str,
        *,
        port: int,
        workers: int,
        worker_class: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Command:
        """The gunicorn command that serves a rival."""
        options = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
        if worker_class is not None:
            # With more than one thread, gunicorn turns "sync" into "gthread".
            options += ["--worker-class", worker_class, "--threads", "1"]
        return Command(
            name=f"{module}-{worker_class or 'as-ours'}-{port}",
            arguments=[
                *(sys.executable, "-m", "gunicorn", f"bench.rivals.{module}:app"),
                *("--config", str(_RIVALS / "served.py"), *options),
            ],
            environment={**surroundings(), **self.addresses(), **(environment or {})},
            directory=ROOT,
        )

    def addresses(self) -> dict[str, str]:
        """The rivals' database and Redis URLs, as environment variables."""
        return {
            "DATABASE_URL": self._servers.postgres.application_url(self.database),
            "REDIS_URL": self.redis.url,
        }


def await_port(process: Process, port: int) -> None:
    """Wait until the port answers with any status."""

    def answers() -> bool:
        try:
            requests.get(f"http://127.0.0.1:{port}/", timeout=2.0)
        except requests.RequestException:
            return False
        return True

    wait_until(
        answers, what=f"{process.name} does not answer", processes=[process], limit_s=START_MAX_S
    )
