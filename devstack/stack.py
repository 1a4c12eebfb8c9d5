"""The whole real stack for a test or a benchmark, with control of each of its processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, repeat
from types import TracebackType
from typing import Final, Self

from devstack.environment import SimulatorAccount, hermetic_environment
from devstack.errors import StackError
from devstack.places import free_port
from devstack.postgres_server import PostgresServer
from devstack.programs import Programs, await_api, await_simulator, await_worker
from devstack.redis_server import RedisServer
from devstack.servers import Servers
from devstack.supervisor import Process, Supervisor

# Log events that are an error of the gateway in every test and every chaos run.
FORBIDDEN: Final = {
    "payments.recorded_one_by_one": "see docs/runbooks/recorded-one-by-one.md",
    "database.deadlock": "see docs/runbooks/deadlocks.md",
}


@dataclass
class Stack:
    """gunicorn, Celery workers, beats and the simulator, on their own database and Redis.

        with Stack(workers=2, settings={"RATE_LIMIT_DEFAULT": "100000 per minute"}) as stack:
            key = stack.issue_key("acme")
            requests.post(f"{stack.api_url}/api/v1/payments", headers={"X-API-Key": key}, ...)
            stack.processes["worker-1"].kill()         # SIGKILL; restart() brings it back
            stack.processes["api"].stop()              # SIGSTOP; cont() goes on
            stack.redis.flush()                        # or stop(), kill(), start()
            stack.postgres.restart("immediate")        # or kill(), start()

    The processes are named `api`, `simulator`, `worker-1`…, `beat-1`…; each has `pid`, `alive`,
    `kill()`, `stop()`, `cont()`, `terminate()`, `start()`, `restart()`, `children()`, `log_text()`.
    The environment's own settings do not reach the processes; only `settings` do.

    Without `servers` it starts its own PostgreSQL, which a test may kill. With them it starts two
    seconds faster, on a copy of their migrated template; `Servers(durable=True)` waits for the disk,
    as in production.
    """

    workers: int = 2
    celery_workers: int = 1
    concurrency: int | None = None
    # The queues of each worker, as after -Q; workers beyond the list consume all queues.
    worker_queues: Sequence[str | None] = ()
    beats: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    servers: Servers | None = None
    # Own servers are a copy of these: see Servers.
    copy_of: Servers | None = None

    processes: dict[str, Process] = field(init=False, default_factory=dict)
    api_url: str = field(init=False, default="")
    simulator_url: str = field(init=False, default="")
    database: str = field(init=False, default="")
    environment: dict[str, str] = field(init=False, default_factory=dict)

    def __enter__(self) -> Self:
        """Start everything and wait until it works; a failed start ends what it has started."""
        with ExitStack() as cleanup:
            self._prepare(cleanup)
            self._start()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything; after a failure print the end of each log, because the logs are removed."""
        if error is not None:
            sys.stderr.write(self.log_tails())
        never = [] if error is not None else self.forbidden_events()
        self._cleanup.close()
        if never:
            raise StackError(
                f"a log tells of what must never happen: {', '.join(never)}",
                remedy=FORBIDDEN[never[0]],
            )

    @property
    def postgres(self) -> PostgresServer:
        """The server with our database: our own, or that of the given `servers`."""
        return self._servers.postgres

    @property
    def redis(self) -> RedisServer:
        """Our own Redis server."""
        return self._redis

    @property
    def database_url(self) -> str:
        """The gateway's address, with its plain role."""
        return self.environment["DATABASE_URL"]

    @property
    def owner_url(self) -> str:
        """The address for the tables' owner."""
        return self.environment["MIGRATION_DATABASE_URL"]

    @property
    def administrator_url(self) -> str:
        """The superuser's address, for a test's own queries: it sees the rows of all tenants."""
        return self.postgres.administrator_url(self.database)

    def issue_key(self, tenant: str, *, mode: str = "test") -> str:
        """Issue an API key for the tenant of this slug; the first call creates the tenant.

        A live key needs an account that is not a sandbox.
        """
        if tenant not in self._tenants:
            self._programs.flask_json("tenants", "create", tenant, "--name", tenant.title())
            self._tenants.add(tenant)
        return str(self._programs.flask_json("keys", "issue", tenant, "--mode", mode)["key"])

    def flask(self, *arguments: str) -> str:
        """Run `flask …` on this stack and return what it prints."""
        return self._programs.flask(*arguments)

    def check(self) -> None:
        """Raise for the first process that ended although no test ended it."""
        self._supervisor.check()

    def forbidden_events(self) -> list[str]:
        """The events in the logs of all processes that no run may have, whatever fails in it."""
        logs = [process.log_text() for process in self.processes.values()]
        return [event for event in FORBIDDEN if any(event in text for text in logs)]

    def log_tails(self) -> str:
        """The end of each process's log."""
        return "".join(
            f"── {name}\n{process.log_tail()}\n" for name, process in self.processes.items()
        )

    def _prepare(self, cleanup: ExitStack) -> None:
        self._tenants: set[str] = set()
        self._servers = self.servers or cleanup.enter_context(Servers(copy_of=self.copy_of))
        self.database = self._servers.new_database()
        if self.servers is not None:
            cleanup.callback(self._drop_database)
        self._redis = self._servers.new_redis()
        cleanup.callback(self._redis.stop)
        self._directory = self._servers.home / self.database
        self._supervisor = Supervisor(self._directory / "log")
        cleanup.callback(self._supervisor.abandon)
        self._ports = {"api": free_port(), "simulator": free_port()}
        self.api_url = f"http://127.0.0.1:{self._ports['api']}"
        self.simulator_url = f"http://127.0.0.1:{self._ports['simulator']}"
        self._account = SimulatorAccount()
        self.environment = hermetic_environment(
            self._servers.addresses(self.database, self._redis),
            {
                "PUBLIC_BASE_URL": self.api_url,
                "WEBHOOK_ALLOW_PRIVATE_ADDRESSES": "true",
                **self._account.settings(self.simulator_url),
                **self.settings,
            },
        )
        self._programs = Programs(self.environment, self._servers.command_server)

    def _start(self) -> None:
        programs = self._programs
        store = self._directory / "simulator.db"
        commands = [
            programs.simulator(port=self._ports["simulator"], store=store, account=self._account),
            programs.api(port=self._ports["api"], workers=self.workers),
            *(
                programs.worker(f"worker-{number}", concurrency=self.concurrency, queues=queues)
                for number, queues in zip(
                    range(1, self.celery_workers + 1),
                    chain(self.worker_queues, repeat(None)),
                    strict=False,
                )
            ),
            *(programs.beat(f"beat-{number}") for number in range(1, self.beats + 1)),
        ]
        for command in commands:
            self.processes[command.name] = self._supervisor.start(command)
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until every running process works, at the start or after restarts."""
        broker_url = self.environment.get("CELERY_BROKER_URL", self._redis.url)
        for name, process in self.processes.items():
            if not process.alive:
                if process.wanted:
                    raise process.death_notice()
                continue
            if name == "simulator":
                await_simulator(process)
            elif name == "api":
                await_api(process, self.api_url)
            elif name.startswith("worker-"):
                await_worker(process, broker_url)

    def _drop_database(self) -> None:
        """Drop our database. Continues or restarts a server that a test has stopped: others need it."""
        self.postgres.process.cont()
        self.postgres.start()
        self.postgres.drop_database(self.database)
