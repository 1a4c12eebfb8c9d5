"""PostgreSQL and Redis for one test session or one benchmark: started once, removed at the end."""

from __future__ import annotations

import sys
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from devstack.command_server import LISTENING
from devstack.environment import Addresses, hermetic_environment, surroundings
from devstack.places import remove, socket_directory, temporary_home
from devstack.postgres_server import PostgresServer
from devstack.programs import READY_MAX_S, ROOT, Programs
from devstack.redis_server import RedisServer
from devstack.supervisor import Command, Supervisor, wait_until
from devstack.users import server_user

_TEMPLATE = "maramoja_template"
IMPORTED_BY_COMMANDS = ("payments_app", "flask_migrate", "alembic.command")


class Servers:
    """A PostgreSQL, a Redis, and databases that are copies of one migrated template.

        with Servers() as servers:
            name = servers.new_database()              # migrated, empty, its own
            url = servers.postgres.application_url(name)
            other = servers.new_redis()                # to flush, stop or kill at will

    `durable=True` makes commits wait for the disk, as in production. `copy_of`: other servers, whose
    `migrated_data` is copied: then neither initdb nor the migrations run.
    """

    def __init__(self, *, durable: bool = False, copy_of: Servers | None = None) -> None:
        """Prepare a temporary home and a guardian; each server starts at its first use."""
        self.home = temporary_home(server_user())
        self.supervisor = Supervisor(self.home / "log")
        self.supervisor.discard_at_end(self.home)
        self._durable = durable
        self._copy_of = copy_of
        self._numbers = count(1)

    def __enter__(self) -> Self:
        """Return the servers; leaving the block ends them and removes their files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the servers, also when the block failed."""
        self.close()

    @cached_property
    def postgres(self) -> PostgresServer:
        """The PostgreSQL server, running."""
        server = PostgresServer(
            self.supervisor,
            self.home / "postgres",
            durable=self._durable,
            copy_of=None if self._copy_of is None else self._copy_of.migrated_data,
        )
        server.start()
        return server

    @cached_property
    def migrated_data(self) -> Path:
        """The data directory of a stopped server that has the template; copy it, do not use it."""
        server = PostgresServer(
            self.supervisor, self.home / "migrated", durable=self._durable, name="migrated"
        )
        server.start()
        self._migrate(server)
        server.stop()
        return server.data

    @cached_property
    def redis(self) -> RedisServer:
        """The shared Redis server, running."""
        return self.new_redis("redis")

    @cached_property
    def command_server(self) -> Path:
        """The socket of a running command server; with `copy_of`, theirs."""
        if self._copy_of is not None:
            return self._copy_of.command_server
        directory = socket_directory(self.home, None)
        self.supervisor.discard_at_end(directory)
        path = directory / "commands.sock"
        process = self.supervisor.start(
            Command(
                name="command-server",
                arguments=[
                    *(sys.executable, "-m", "devstack.command_server", str(path)),
                    *IMPORTED_BY_COMMANDS,
                ],
                environment=surroundings(),
                directory=ROOT,
            )
        )
        wait_until(
            lambda: LISTENING in process.log_text(),
            what="the command server does not listen",
            processes=[process],
            limit_s=READY_MAX_S,
        )
        return path

    @cached_property
    def template(self) -> str:
        """A database with the whole schema, made by `flask db upgrade`; copy it, do not use it."""
        return _TEMPLATE if self._copy_of is not None else self._migrate(self.postgres)

    def new_database(self) -> str:
        """An empty database with the whole schema; returns its name."""
        name = f"maramoja_{next(self._numbers)}"
        return self.postgres.create_database(name, template=self.template)

    def new_redis(self, name: str | None = None) -> RedisServer:
        """Another Redis server, running."""
        name = name or f"redis-{next(self._numbers)}"
        server = RedisServer(self.supervisor, self.home / name, durable=self._durable, name=name)
        server.start()
        return server

    def addresses(self, database: str, redis: RedisServer) -> Addresses:
        """The addresses of a database and a Redis, as settings."""
        return _addresses(self.postgres, database, redis)

    def close(self) -> None:
        """End the servers and remove all that they wrote."""
        self.supervisor.close()
        if self._copy_of is None and "command_server" in vars(self):
            remove(self.command_server.parent)
        remove(self.home)

    def _migrate(self, server: PostgresServer) -> str:
        name = server.create_database(_TEMPLATE)
        environment = hermetic_environment(_addresses(server, name, self.redis), {})
        Programs(environment, self.command_server).migrate()
        return name


def _addresses(server: PostgresServer, database: str, redis: RedisServer) -> Addresses:
    return Addresses(
        database_url=server.application_url(database),
        migration_database_url=server.owner_url(database),
        redis_url=redis.url,
    )
