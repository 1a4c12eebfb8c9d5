"""The gateway's own processes and commands, as a person would start them by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
import requests

from devstack import command_server
from devstack.command_server import Finished
from devstack.environment import SimulatorAccount
from devstack.errors import StackError
from devstack.supervisor import Command, Process, wait_until

ROOT = Path(__file__).resolve().parent.parent

# A migration of a large table may take long; one that hangs must not hang a test run.
COMMAND_MAX_S = 300.0

# Importing the app takes a second; on a machine under load, many.
READY_MAX_S = 100.0
# As in the deploy files: a Celery worker exchanges no messages with other workers.
WITHOUT_PEERS = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass(frozen=True)
class Programs:
    """Commands that share one environment, run from the repository's root."""

    environment: Mapping[str, str]
    # The socket of a command server, which runs commands without importing the app for each.
    command_server: Path | None = None

    def api(self, *, port: int, workers: int, host: str = "127.0.0.1") -> Command:
        """The REST API: gunicorn with gunicorn.conf.py's settings."""
        bind = ("--bind", f"{host}:{port}", "--workers", str(workers))
        return self._command("api", "-m", "gunicorn", "wsgi:app", *bind)

    def worker(
        self, name: str, *, concurrency: int | None = None, queues: str | None = None
    ) -> Command:
        """A Celery worker; without options, with the app's concurrency and for all queues."""
        options = [] if concurrency is None else ["--concurrency", str(concurrency)]
        options += [] if queues is None else ["-Q", queues]
        return self._celery(name, "worker", *WITHOUT_PEERS, "--hostname", f"{name}@%h", *options)

    def beat(self, name: str) -> Command:
        """Celery's beat; two of them are harmless."""
        return self._celery(name, "beat")

    def simulator(self, *, port: int, store: Path, account: SimulatorAccount) -> Command:
        """The provider simulator."""
        options = ("--port", str(port), "--store", str(store), "--seed-account", account.seed())
        return self._command("simulator", "-m", "simulator", *options)

    def flask(self, *arguments: str) -> str:
        """Run `flask …` and return what it prints."""
        done = self._finished(arguments)
        if done.code != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-25:]
            raise StackError(
                f"`flask {' '.join(arguments)}` failed:\n"
                + "\n".join(f"  | {line}" for line in said),
                remedy="the lines above say why",
            )
        return done.stdout

    def _finished(self, arguments: Sequence[str]) -> Finished:
        environment = {**self.environment, "PYTHONUNBUFFERED": "1"}
        if self.command_server is not None:
            return command_server.run(
                self.command_server, arguments, environment, limit_s=COMMAND_MAX_S
            )
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "wsgi", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_MAX_S,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def flask_json(self, *arguments: str) -> dict[str, object]:
        """Run `flask … --json` and return the object that it prints."""
        found: dict[str, object] = json.loads(self.flask(*arguments, "--json"))
        return found

    def migrate(self) -> None:
        """Migrate the schema to the newest version, by the public command."""
        self.flask("db", "upgrade")

    def _celery(self, name: str, *arguments: str) -> Command:
        return self._command(name, "-m", "celery", "-A", "celery_worker", *arguments)

    def _command(self, name: str, *arguments: str) -> Command:
        return Command(
            name=name,
            arguments=[sys.executable, *arguments],
            environment={**self.environment, "PYTHONUNBUFFERED": "1"},
            directory=ROOT,
        )


def await_api(process: Process, url: str) -> None:
    """Wait until a worker of gunicorn answers."""

    def answers() -> bool:
        try:
            return requests.get(f"{url}/health/live", timeout=2.0).ok
        except requests.RequestException:
            return False

    wait_until(answers, what="the API does not answer", processes=[process], limit_s=READY_MAX_S)


def await_simulator(process: Process) -> None:
    """Wait until the simulator logs that it listens."""
    wait_until(
        lambda: "simulator listening on http" in process.log_text(),
        what="the simulator does not listen",
        processes=[process],
        limit_s=READY_MAX_S,
    )


def await_worker(process: Process, broker_url: str) -> None:
    """Wait until the worker waits for tasks: one of its connections is in a blocking pop.

    It queries Redis and does not read the worker's log, because the operator chooses the log level.
    """
    if not broker_url.startswith("redis://"):
        return

    def waits_for_work() -> bool:
        ours = {
            f"{connection.laddr.ip}:{connection.laddr.port}"
            for connection in psutil.Process(process.pid).net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED
        }
        with redis.Redis.from_url(broker_url, socket_timeout=5.0) as client:
            clients = client.client_list()
        return any(found["cmd"] == "brpop" and found["addr"] in ours for found in clients)

    wait_until(
        waits_for_work, what="the worker does not start", processes=[process], limit_s=READY_MAX_S
    )
