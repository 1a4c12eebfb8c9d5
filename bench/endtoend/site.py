"""Whole installations, ours and the plain service's, and the stand-ins around them.

A stand-in is no part of a gateway: the provider's simulator, the tenants' receiver, the load generator.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import requests

from bench.accept import PAYMENTS
from bench.endtoend.load import Lane, LaneOutcome, Outcome, Plan
from bench.endtoend.recorded import Received, requests_in
from bench.load import ORDER
from bench.meters import processor_s
from bench.sites import SETTINGS, WORKERS, Rivals, await_port
from devstack.environment import surroundings
from devstack.places import free_port
from devstack.programs import ROOT, Programs, await_worker
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import Command, Process

CELERY_WORKERS = 2
# As many threads in each of the plain service's workers as in ours.
PLAIN_THREADS = 16
OURS = ("api", "worker", "beat", "postgres", "redis")
STAND_INS = ("simulator", "receiver", "load")
SIMULATOR_ANSWERS_MAX_S = 30.0
# The simulator allows any number of status checks. The gateway sends so many, as to a real provider.
CHECKS = {"STATUS_CHECKS_PER_S_MAX": "10"}


@dataclass(frozen=True)
class Tenant:
    """A tenant that posts. `endpoint`: the id of its webhook endpoint, if it has one."""

    slug: str
    key: str
    endpoint: str | None = None


@dataclass
class Receiver:
    """The process that is all tenants' endpoint."""

    process: Process
    url: str
    socket: str
    file: Path

    @property
    def size(self) -> int:
        """Bytes in the file so far."""
        return self.file.stat().st_size

    def since(self, start: int) -> list[Received]:
        """The requests received since the file had this size."""
        return list(requests_in(self.file, start=start))


class Site(Protocol):
    """A service that payments are posted to."""

    receiver: Receiver
    # Secrets of endpoints by path; empty if the service does not sign by Standard Webhooks.
    secrets: dict[str, str]

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far, by kind of process."""


@dataclass
class Installation:
    """Our running gateway: a `Site`."""

    stack: Stack
    receiver: Receiver
    secrets: dict[str, str] = field(default_factory=dict)

    def tenant(self, slug: str, *, path: str | None = "/hook") -> Tenant:
        """Create a tenant, with an endpoint at this path of the receiver or without one."""
        key = self.stack.issue_key(slug)
        if path is None:
            return Tenant(slug, key)
        target = f"{path}/{slug}"
        url = f"{self.receiver.url}{target}"
        options = ("--event", "payment.*", "--json")
        added = json.loads(self.stack.flask("webhooks", "add", slug, url, *options))
        self.secrets[target] = added["secret"]
        return Tenant(slug, key, str(added["id"]))

    def switch(self, tenant: Tenant, status: str) -> None:
        """Set the tenant's endpoint to `enabled` or `disabled`."""
        endpoint = tenant.endpoint or ""
        self.stack.flask("webhooks", "set", tenant.slug, endpoint, "--status", status)

    def give_account(self, tenant: Tenant, environment_name: str) -> str:
        """Give the tenant its own account at the simulator; returns its API user."""
        key, user = f"key-of-{tenant.slug}", str(uuid4())
        headers = {"Ocp-Apim-Subscription-Key": key, "X-Reference-Id": user}
        host = {"providerCallbackHost": str(urlsplit(self.stack.api_url).hostname)}
        self._provision("/v1_0/apiuser", headers, host)
        api_key = str(self._provision(f"/v1_0/apiuser/{user}/apikey", headers, {})["apiKey"])
        credentials = {"subscription_key": key, "api_user": user, "api_key": api_key}
        options = [
            word
            for name in credentials
            for word in ("--credential", f"collection_{name}=env:BENCH_{name.upper()}")
        ]
        environment = {f"BENCH_{name.upper()}": value for name, value in credentials.items()}
        Programs({**self.stack.environment, **environment}).flask(
            *(
                "providers",
                "set",
                tenant.slug,
                "mtn_momo",
                "--target-environment",
                environment_name,
            ),
            *("--base-url", self.stack.simulator_url, *options),
        )
        return user

    def _provision(
        self, path: str, headers: Mapping[str, str], body: Mapping[str, str]
    ) -> dict[str, str]:
        url = f"{self.stack.simulator_url}{path}"
        answer = requests.post(url, headers=headers, json=body, timeout=SIMULATOR_ANSWERS_MAX_S)
        answer.raise_for_status()
        made: dict[str, str] = answer.json() if answer.content else {}
        return made

    def simulator(self, method: str, path: str, document: object = None) -> dict[str, object]:
        """Call the simulator's admin API."""
        url = f"{self.stack.simulator_url}/_admin/{path}"
        answer = requests.request(method, url, json=document, timeout=SIMULATOR_ANSWERS_MAX_S)
        answer.raise_for_status()
        found: dict[str, object] = answer.json()
        return found

    def lane(self, tenant: Tenant, payments: int, **options: float | None) -> Lane:
        """What this tenant posts."""
        return lane_to(self.stack.api_url, PAYMENTS, tenant.key, payments, **options)

    def cpu_s(self) -> dict[str, float]:
        """See `Site`."""
        used = dict.fromkeys((*OURS, *STAND_INS), 0.0)
        for name, process in self.stack.processes.items():
            used[name.partition("-")[0]] += processor_s(process.pid)
        used["postgres"] = processor_s(self.stack.postgres.process.pid)
        used["redis"] = processor_s(self.stack.redis.process.pid)
        used["receiver"] = processor_s(self.receiver.process.pid)
        return used

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze all our processes but the stand-ins, while another service is measured."""
        processes = [one for name, one in self.stack.processes.items() if name != "simulator"]
        for process in processes:
            process.stop()
        try:
            yield
        finally:
            for process in processes:
                process.cont()


@dataclass
class PlainSite:
    """The plain service with its workers, which uses our simulator: a `Site`."""

    url: str
    receiver: Receiver
    processes: dict[str, Process]
    secrets: dict[str, str] = field(default_factory=dict)

    def lane(self, payments: int, **options: float | None) -> Lane:
        """What is posted to the plain service."""
        return lane_to(self.url, "/payments", "bench", payments, **options)

    def cpu_s(self) -> dict[str, float]:
        """See `Site`."""
        used = dict.fromkeys((*OURS, *STAND_INS), 0.0)
        for name, process in self.processes.items():
            used[name.partition("-")[0]] += processor_s(process.pid)
        return used


def lane_to(url: str, path: str, key: str, payments: int, **options: float | None) -> Lane:
    """A lane that posts the same order each time."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    body = json.dumps(ORDER)
    return Lane(host, port, path, key, body, payments, **options)  # type: ignore[arg-type]  # as they are


@contextmanager
def installed(
    servers: Servers, *, settings: Mapping[str, str] | None = None
) -> Iterator[Installation]:
    """Gunicorn with two processes, two Celery workers, beat, PostgreSQL with fsync, Redis."""
    everything = {**SETTINGS, **CHECKS, **(settings or {})}
    with (
        Stack(
            workers=WORKERS, celery_workers=CELERY_WORKERS, settings=everything, servers=servers
        ) as stack,
        receiving(servers) as receiver,
    ):
        yield Installation(stack, receiver)


@contextmanager
def plain_service(servers: Servers, ours: Installation) -> Iterator[PlainSite]:
    """Run the plain service, with as many processes of each kind as ours."""
    with Rivals(servers) as rivals:
        site = rivals.start("plain")
        environment = {
            **surroundings(),
            **rivals.addresses(),
            **{name: ours.stack.environment[name] for name in _PROVIDER},
            "PLAIN_WEBHOOK_URL": f"{ours.receiver.url}/plain",
        }
        workers = [
            _started(servers, f"plain-worker-{number}", _PLAIN_WORKER, environment)
            for number in range(CELERY_WORKERS)
        ]
        try:
            for worker in workers:
                await_worker(worker, rivals.redis.url)
            processes = {f"worker-{number}": one for number, one in enumerate(workers)}
            processes |= {"api": site.processes[0], "redis": rivals.redis.process}
            processes |= {"postgres": servers.postgres.process}
            processes |= {"simulator": ours.stack.processes["simulator"]}
            processes |= {"receiver": ours.receiver.process}
            yield PlainSite(site.url, ours.receiver, processes)
        finally:
            for worker in workers:
                worker.terminate()


_PROVIDER = (
    "MTN_BASE_URL",
    "MTN_TARGET_ENVIRONMENT",
    "MTN_COLLECTION_SUBSCRIPTION_KEY",
    "MTN_COLLECTION_API_USER",
    "MTN_COLLECTION_API_KEY",
)
_PLAIN_WORKER = (
    *("-m", "celery", "-A", "bench.rivals.plain:celery", "worker", "--loglevel", "WARNING"),
    *("--pool", "threads", "--concurrency", str(PLAIN_THREADS)),
)


@contextmanager
def receiving(servers: Servers) -> Iterator[Receiver]:
    """Run a receiver for the block."""
    port = free_port()
    directory = servers.home / f"receiver-{port}"
    directory.mkdir()
    socket, file = str(directory / "ends.sock"), directory / "received"
    arguments = ("-m", "bench.endtoend.receiver", str(port), socket, str(file))
    process = _started(servers, f"receiver-{port}", arguments, surroundings())
    try:
        await_port(process, port)
        yield Receiver(process, f"http://127.0.0.1:{port}", socket, file)
    finally:
        process.terminate()


def _started(
    servers: Servers, name: str, arguments: tuple[str, ...], environment: Mapping[str, str]
) -> Process:
    if name.startswith("plain-worker"):
        arguments = (*arguments, "--hostname", f"{name}@%h")
    return servers.supervisor.start(
        Command(
            name=name,
            arguments=[sys.executable, *arguments],
            environment={**environment, "PYTHONUNBUFFERED": "1"},
            directory=ROOT,
        )
    )


def post(plan: Plan) -> Outcome:
    """Run the load generator as a separate process, and wait for the ends."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.endtoend.load"],
        cwd=ROOT,
        input=json.dumps(asdict(plan)),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    read = json.loads(done.stdout)
    lanes = [LaneOutcome(**lane) for lane in read["lanes"]]
    return Outcome(lanes, read["cpu_s"])
