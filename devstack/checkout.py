"""What `make run` keeps between two starts, all below var/ of this checkout."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from devstack.environment import new_secret_key
from devstack.errors import StackError
from devstack.places import free_port, port_is_free

# An empty stack takes 60 MB; with less than this free, PostgreSQL would soon fail.
DISK_FREE_MIN_MB = 200


@dataclass(frozen=True)
class DemoAccess:
    """The demo tenants' API keys: each is shown once, so the run that issues it has to keep it.

    `key`: a test key, for the sandbox. `live`: live keys by target environment, for the simulator
    too. `simulator_url`: the address in the live keys' accounts.
    """

    key: str
    live: Mapping[str, str] = field(default_factory=dict)
    simulator_url: str | None = None


class Checkout:
    """The files of one checkout's stack, locked by one run at a time."""

    def __init__(self, directory: Path) -> None:
        """Name the files; `claim` makes and locks them."""
        self.directory = directory
        self.logs = directory / "log"
        self.pids = directory / "pids"
        self.postgres = directory / "postgres"
        self.redis = directory / "redis"
        self.simulator = directory / "simulator.sqlite3"
        self._lock: TextIO | None = None

    def claim(self) -> None:
        """Make the directory and lock it until this process ends, in whatever way."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / "lock").open("a+", encoding="ascii")
        except OSError as error:
            raise StackError(
                f"{self.directory} cannot be written: {error.strerror}",
                remedy="run from a checkout of your own, or give the directory back to yourself",
            ) from error
        self._check_disk()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise StackError(
                f"this checkout's stack runs already (process {self._lock.read().strip()})",
                remedy="use that one, or end it with Ctrl-C in its terminal, or `make down`",
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def running_pid(self) -> int | None:
        """The id of the process that has locked this checkout."""
        path = self.directory / "lock"
        if not path.exists():
            return None
        with path.open("a+", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                return int(lock.read())
        return None

    def secret_key(self) -> str:
        """SECRET_KEYS, made at the first start: what it has encrypted must stay readable."""
        path = self.directory / "secret-key"
        if not path.exists():
            _write_private(path, new_secret_key())
        return path.read_text(encoding="ascii")

    def simulator_port(self) -> int:
        """The same port at each start, because open payments are polled where they were sent."""
        path = self.directory / "simulator-port"
        if path.exists() and port_is_free(port := int(path.read_text(encoding="ascii"))):
            return port
        port = free_port()
        path.write_text(str(port), encoding="ascii")
        return port

    def demo_access(self) -> DemoAccess | None:
        """The key of an earlier start, if there was one."""
        path = self.directory / "demo.json"
        if not path.exists():
            return None
        return DemoAccess(**json.loads(path.read_text(encoding="utf-8")))

    def keep_demo_access(self, access: DemoAccess) -> None:
        """Keep the key for the next start."""
        _write_private(self.directory / "demo.json", json.dumps(vars(access)))

    def environment(self) -> dict[str, str] | None:
        """The settings of the running stack, for other commands."""
        path = self.directory / "environment.json"
        if self.running_pid() is None or not path.exists():
            return None
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def keep_environment(self, settings: dict[str, str]) -> None:
        """Store this run's settings for other commands."""
        _write_private(self.directory / "environment.json", json.dumps(settings))

    def reset(self) -> None:
        """Remove everything but the lock file."""
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def _check_disk(self) -> None:
        free_mb = shutil.disk_usage(self.directory).free // 1_000_000
        if free_mb < DISK_FREE_MIN_MB:
            raise StackError(
                f"the disk of {self.directory} has {free_mb} MB free",
                remedy=f"free at least {DISK_FREE_MIN_MB} MB",
            )


def _write_private(path: Path, text: str) -> None:
    """Write a file atomically; only the owner may read it, from its first byte on."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
