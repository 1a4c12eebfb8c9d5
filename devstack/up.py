"""`make run`: every part of Maramoja on this machine, in order, until Ctrl-C."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import click

from devstack import demo
from devstack.checkout import Checkout, DemoAccess
from devstack.demo import Shown
from devstack.environment import Addresses, SimulatorAccount
from devstack.errors import StackError
from devstack.places import port_is_free
from devstack.postgres_server import PostgresServer
from devstack.programs import Programs, await_api, await_simulator, await_worker
from devstack.redis_server import RedisServer
from devstack.supervisor import Process, Supervisor

DATABASE = "maramoja"
TENANT = "demo"
# A tenant has one account for its live keys, so the second market has its own tenant.
MARKETS = {"mtnuganda": TENANT, "mtnzambia": "demo-zambia"}
# A person sends one request at a time, and few processes start faster than many.
API_WORKERS = 2
# How often the processes are checked for one that died.
WATCH_EVERY_S = 0.5


@dataclass(frozen=True)
class Options:
    """The options of the command line and the environment."""

    host: str
    port: int
    given: Mapping[str, str]

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://{self.host}:{self.port}"

    @property
    def simulated(self) -> bool:
        """Whether the provider is our simulator: not if the settings name an MTN account."""
        return not any(name.startswith("MTN_") for name in self.given)


@dataclass
class Run:
    """One run of the stack, with the parts that are started so far."""

    options: Options
    checkout: Checkout
    supervisor: Supervisor
    environment: dict[str, str] = field(default_factory=dict)
    simulator_url: str | None = None

    def start(self) -> None:
        """Start everything and wait until it works."""
        check_port(self.options)
        addresses = self._start_servers()
        self._configure(addresses)
        programs = Programs(self.environment)
        with step("migrations") as note:
            programs.migrate()
            note("the schema is up to date")
        self._start_programs(programs)

    def demo_access(self) -> DemoAccess:
        """The demo tenants' keys: those of an earlier start if they still work, else new ones."""
        with step("demo tenant") as note:
            kept = self.checkout.demo_access()
            if kept is not None and self._works(kept):
                note(f"{TENANT}, with the keys of an earlier start")
                return kept
            access = self._issue_keys(Programs(self.environment))
            self.checkout.keep_demo_access(access)
            note(f"{TENANT}, with new API keys")
        return access

    def pay_once(self, access: DemoAccess) -> Shown:
        """Make the demo payment; check the processes first, because a dead one explains more."""
        with step("demo payment") as note:
            self.supervisor.check()
            shown = demo.pay_once(
                api_url=self.options.url, key=access.key, simulator_url=self.simulator_url
            )
            note(f"{shown.status} after {shown.seconds:.1f} s")
        return shown

    def watch(self) -> None:
        """Never return; raise for the first process that dies."""
        while True:
            self.supervisor.check()
            time.sleep(WATCH_EVERY_S)

    def _start_servers(self) -> Addresses:
        given = self.options.given
        database_url = given.get("DATABASE_URL")
        owner_url = given.get("MIGRATION_DATABASE_URL", database_url or "")
        with step("PostgreSQL") as note:
            if database_url is None:
                postgres = PostgresServer(self.supervisor, self.checkout.postgres)
                postgres.start()
                if not postgres.has_database(DATABASE):
                    postgres.create_database(DATABASE)
                database_url = postgres.application_url(DATABASE)
                owner_url = postgres.owner_url(DATABASE)
                note(f"data in {postgres.data}")
            else:
                note("DATABASE_URL is given: ours is not started")
        return Addresses(database_url, owner_url, self._start_redis())

    def _start_redis(self) -> str:
        with step("Redis") as note:
            if (given := self.options.given.get("REDIS_URL")) is not None:
                note("REDIS_URL is given: ours is not started")
                return given
            redis = RedisServer(self.supervisor, self.checkout.redis)
            redis.start()
            note(redis.url)
            return redis.url

    def _configure(self, addresses: Addresses) -> None:
        """Set the stack's settings; settings that the user gives take precedence."""
        ours = {
            **addresses.settings(),
            "PUBLIC_BASE_URL": self.options.url,
            "WEBHOOK_ALLOW_PRIVATE_ADDRESSES": "true",
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "console",
        }
        if "SECRET_KEYS" not in self.options.given:
            ours["SECRET_KEYS"] = self.checkout.secret_key()
        if self.options.simulated:
            self.simulator_url = f"http://127.0.0.1:{self.checkout.simulator_port()}"
            ours.update(SimulatorAccount().settings(self.simulator_url))
        settings = {**ours, **self.options.given}
        self.environment = {**os.environ, **settings}
        self.checkout.keep_environment(settings)

    def _start_programs(self, programs: Programs) -> None:
        """Start all programs, then wait for each: they import in parallel for a second."""
        options = self.options
        commands = [
            programs.worker("worker-1"),
            programs.beat("beat"),
            programs.api(port=options.port, host=options.host, workers=API_WORKERS),
        ]
        if self.simulator_url is not None:
            port = int(self.simulator_url.rpartition(":")[2])
            store = self.checkout.simulator
            commands.insert(
                0, programs.simulator(port=port, store=store, account=SimulatorAccount())
            )
        started = {command.name: self.supervisor.start(command) for command in commands}
        broker_url = self.environment.get("CELERY_BROKER_URL", self.environment["REDIS_URL"])
        if self.simulator_url is not None:
            self._await("simulator", self.simulator_url, await_simulator, started["simulator"])
        self._await("API", options.url, lambda it: await_api(it, options.url), started["api"])
        self._await(
            "worker and beat",
            "Celery",
            lambda it: await_worker(it, broker_url),
            started["worker-1"],
        )

    def _await(
        self, title: str, remark: str, wait: Callable[[Process], None], process: Process
    ) -> None:
        with step(title) as note:
            wait(process)
            note(remark)

    def _works(self, kept: DemoAccess) -> bool:
        """Whether the API accepts the keys, and the accounts have the simulator's address."""
        return kept.simulator_url == self.simulator_url and all(
            demo.key_works(self.options.url, key) for key in (kept.key, *kept.live.values())
        )

    def _issue_keys(self, programs: Programs) -> DemoAccess:
        with suppress(StackError):  # it exists already; `keys issue` reports any other error
            programs.flask_json("tenants", "create", TENANT, "--name", "Demo shop")
        issued = programs.flask_json("keys", "issue", TENANT, "--mode", "test")
        live = {}
        if self.simulator_url is not None:
            for environment, tenant in MARKETS.items():
                live[environment] = self._open_market(programs, environment, tenant)
        return DemoAccess(str(issued["key"]), live, self.simulator_url)

    def _open_market(self, programs: Programs, environment: str, tenant: str) -> str:
        """Create the tenant and its account at the simulator; returns a live key."""
        with suppress(StackError):
            programs.flask_json("tenants", "create", tenant, "--name", f"Demo shop, {environment}")
        names = ("SUBSCRIPTION_KEY", "API_USER", "API_KEY")
        given = (f"--credential=collection_{n.lower()}=env:MTN_COLLECTION_{n}" for n in names)
        programs.flask(
            *("providers", "set", tenant, "mtn_momo", "--target-environment", environment),
            *("--base-url", str(self.simulator_url), "--may-move", *given),
        )
        issued = programs.flask_json("keys", "issue", tenant, "--mode", "live")
        return str(issued["key"])


@contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Print one line for a step, with its time, once it is done."""
    started = time.monotonic()
    remarks: list[str] = []
    yield remarks.append
    seconds = f"({time.monotonic() - started:.1f} s)"
    click.echo(f"✓ {title:<16}{' '.join(remarks)} {click.style(seconds, dim=True)}")


def check_port(options: Options) -> None:
    """Raise before anything starts if the API's port is taken."""
    if not port_is_free(options.port, options.host):
        raise StackError(
            f"port {options.port} is taken by another program",
            remedy=f"end it, or take another port: make run PORT={options.port + 1}",
        )
