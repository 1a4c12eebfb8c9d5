"""A PostgreSQL as a package installs it: a superuser by socket, passwords over TCP, no roles."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from devstack.places import free_port, socket_directory
from devstack.supervisor import Command, Supervisor, wait_until
from devstack.users import popen_options, server_user

START_MAX_S = 60.0


@contextmanager
def fresh_postgres(programs: Path, home: Path, supervisor: Supervisor) -> Iterator[dict[str, str]]:
    """A server of these programs while the block runs; libpq's variables for its superuser."""
    user, port, data = server_user(), free_port(), home / "data"
    home.mkdir(mode=0o755)
    sockets = socket_directory(home, user)
    data.mkdir(mode=0o700)
    if user is not None:
        os.chown(data, user.uid, user.gid)
    subprocess.run(
        [
            *(str(programs / "initdb"), "-D", str(data), "-U", "postgres", "--no-instructions"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C"),
        ],
        cwd=data,
        check=True,
        capture_output=True,
        **popen_options(user),
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(sockets),
    }
    pairs = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = Command(
        name="postgres",
        arguments=[str(programs / "postgres"), "-D", str(data), *pairs],
        environment={"PATH": os.defpath, "LC_ALL": "C"},
        directory=data,
        user=user,
        farewell=signal.SIGINT,
        last_word=signal.SIGINT,
    )
    process = supervisor.start(command)
    as_superuser = {"PGHOST": str(sockets), "PGPORT": str(port), "PGUSER": "postgres"}

    def answers() -> bool:
        try:
            psycopg.connect(host=str(sockets), port=port, user="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(answers, what="no PostgreSQL", processes=[process], limit_s=START_MAX_S)
    yield {**as_superuser, "PSQL": str(programs / "psql")}
    process.terminate()


def oldest_installed() -> Path | None:
    """The programs of the oldest server that Debian's packages have installed here."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return min(found, key=lambda path: int(path.parent.name), default=None)
