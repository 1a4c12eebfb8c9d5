"""The gateway's own processes and commands, as anyone would start them by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from devstack.environment import SimulatorAccount
from devstack.errors import StackError
from devstack.supervisor import Command

ROOT = Path(__file__).resolve().parent.parent

# A migration of a large table may take long; one that hangs must not hang a test run.
COMMAND_MAX_S = 300.0


@dataclass(frozen=True)
class Programs:
    """Commands that share one environment, run from the repository's root."""

    environment: Mapping[str, str]

    def api(self, *, port: int, workers: int, host: str = "127.0.0.1") -> Command:
        """The REST API: gunicorn with gunicorn.conf.py's settings."""
        bind = ("--bind", f"{host}:{port}", "--workers", str(workers))
        return self._command("api", "-m", "gunicorn", "wsgi:app", *bind)

    def worker(self, number: int, *, concurrency: int) -> Command:
        """A Celery worker with its child processes."""
        name = f"worker-{number}"
        options = ("--hostname", f"{name}@%h", "--concurrency", str(concurrency))
        # INFO whatever LOG_LEVEL says: the line that it is ready is how we know.
        return self._celery(name, "worker", "--loglevel", "INFO", *options)

    def beat(self, number: int, *, schedule: Path) -> Command:
        """Celery's clock; two of them are harmless."""
        return self._celery(f"beat-{number}", "beat", "--schedule", str(schedule))

    def simulator(self, *, port: int, store: Path, account: SimulatorAccount) -> Command:
        """The provider's stand-in over real HTTP."""
        options = ("--port", str(port), "--store", str(store), "--seed-account", account.seed())
        return self._command("simulator", "-m", "simulator", *options)

    def flask(self, *arguments: str) -> str:
        """Run `flask …` and return what it prints."""
        done = subprocess.run(  # noqa: S603 - our own argument list, no shell
            [sys.executable, "-m", "flask", "--app", "wsgi", *arguments],
            cwd=ROOT,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            capture_output=True,
            text=True,
            timeout=COMMAND_MAX_S,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-25:]
            raise StackError(
                f"`flask {' '.join(arguments)}` failed:\n"
                + "\n".join(f"  | {line}" for line in said),
                remedy="the lines above say why",
            )
        return done.stdout

    def flask_json(self, *arguments: str) -> dict[str, object]:
        """Run `flask … --json` and return the object that it prints."""
        found: dict[str, object] = json.loads(self.flask(*arguments, "--json"))
        return found

    def migrate(self) -> None:
        """Bring the schema to the newest version, the public way."""
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


def answers(url: str) -> bool:
    """Whether a GET gives a 200 now."""
    try:
        return requests.get(url, timeout=2.0).ok
    except requests.RequestException:
        return False
