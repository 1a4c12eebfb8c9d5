"""A real PostgreSQL that is our own child, so that it can be killed, frozen and started again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, LiteralString
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from devstack.errors import StackError
from devstack.orphans import end_orphan
from devstack.places import data_directory, remove, socket_directory
from devstack.postgres_binaries import program_directory
from devstack.supervisor import Command, Process, Supervisor, wait_until
from devstack.users import popen_options, server_user

# Owns the tables and runs the migrations. Not a superuser: those bypass row-level security.
OWNER = "maramoja_owner"
# The gateway connects as this role; it may read and write rows, and nothing else.
APPLICATION = "maramoja_app"
_SUPERUSER = "postgres"

# Recovery after a kill replays the log written since the last checkpoint.
START_MAX_S = 60.0
# How long the other processes may take to notice that the postmaster was killed.
_ENDED_MAX_S = 60.0

ShutdownMode = Literal["smart", "fast", "immediate"]
_SHUTDOWN_SIGNALS: Mapping[ShutdownMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

# No wait for the disk: tests do not survive a crash of the machine anyway.
# A killed server still loses nothing, because the operating system keeps what was written. This needs
# synchronous_commit: without it, a commit may be answered before it is written at all.
_FORGETFUL = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer:
    """One PostgreSQL with its data in `home`, which listens on a private Unix socket only.

    `durable=False` is for tests: commits do not wait for the disk.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        home: Path,
        *,
        durable: bool = True,
        name: str = "postgres",
        copy_of: Path | None = None,
    ) -> None:
        """Choose the directories; `start` makes the data directory and runs the server.

        `copy_of`: the data directory of a stopped server, which is copied instead.
        """
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.user = server_user()
        self.data = data_directory(home, self.user)
        self._durable = durable
        self._name = name
        self._copy_of = copy_of
        self._supervisor = supervisor
        self._process: Process | None = None
        self._socket = socket_directory(home, self.user)

    @property
    def process(self) -> Process:
        """The supervised postmaster: its pid, log, `stop` (SIGSTOP) and `cont`."""
        if self._process is None:
            message = "PostgreSQL has not been started"
            raise RuntimeError(message)
        return self._process

    def start(self) -> None:
        """Make the data directory if there is none, run the server, wait until it answers."""
        if self._process is not None and self._process.alive:
            return
        programs = program_directory(self.user)
        self._socket = socket_directory(self.home, self.user)
        self._supervisor.discard_at_end(self._socket)
        if not (self.data / "PG_VERSION").exists():
            self._make_data_directory(programs)
        self._end_orphan()
        if self._process is None:
            self._process = Process(self._supervisor, self._command(programs))
        self._process.start()
        wait_until(
            self._answers,
            what="PostgreSQL does not answer",
            processes=[self._process],
            limit_s=START_MAX_S,
        )
        self._ensure_roles()

    def stop(self, mode: ShutdownMode = "fast") -> None:
        """Shut down: `fast` ends sessions and checkpoints, `immediate` leaves it to recovery."""
        if self._process is not None:
            self._process.terminate(_SHUTDOWN_SIGNALS[mode])

    def kill(self) -> None:
        """SIGKILL the postmaster, and wait until its other processes have noticed and ended.

        PostgreSQL does not start while one of them still has the shared memory.
        """
        # A stopped postmaster starts no backend that we would not know of.
        self.process.stop()
        others = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        wait_until(
            lambda: not any(map(_runs, others)),
            what="a process of a killed PostgreSQL runs on",
            limit_s=_ENDED_MAX_S,
        )

    def restart(self, mode: ShutdownMode = "immediate") -> None:
        """Shut down and start again at the same address: every open connection breaks."""
        self.stop(mode)
        self.start()

    def discard(self) -> None:
        """Stop the server, and remove its data and its home."""
        self.stop("immediate")
        for path in (self.data.parent, self._socket, self.home):
            remove(path)

    def url(self, role: str, database: str) -> str:
        """The address for a role, in libpq's form for Unix sockets."""
        return f"postgresql://{role}@/{database}?host={quote(str(self._socket), safe='/')}"

    def application_url(self, database: str) -> str:
        """DATABASE_URL: the gateway's role."""
        return self.url(APPLICATION, database)

    def owner_url(self, database: str) -> str:
        """MIGRATION_DATABASE_URL: the owner of the tables."""
        return self.url(OWNER, database)

    def administrator_url(self, database: str = _SUPERUSER) -> str:
        """The superuser's address, for what only a test or a set-up may do."""
        return self.url(_SUPERUSER, database)

    def has_database(self, name: str) -> bool:
        """Whether a database of this name exists."""
        with self._administrator() as connection:
            row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            return row.fetchone() is not None

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Make a database owned by the owner role and return its name.

        With a template it is a copy: tables, rights and rows (a few milliseconds). No connection
        to the template may be open then.
        """
        statement = sql.SQL("CREATE DATABASE {} OWNER {}").format(
            sql.Identifier(name), sql.Identifier(OWNER)
        )
        if template is not None:
            copy = sql.SQL(" TEMPLATE {} STRATEGY = FILE_COPY").format(sql.Identifier(template))
            statement = statement + copy
        with self._administrator() as connection:
            connection.execute(statement)
            # A copy has the template's rights to all objects in it, but not to the database itself.
            connection.execute(
                sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name))
            )
        if template is None:
            self._grant_by_default(name)
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, and end the connections to it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        with self._administrator() as connection:
            connection.execute(statement.format(sql.Identifier(name)))

    def _administrator(self, database: str = _SUPERUSER) -> psycopg.Connection:
        return psycopg.connect(self.administrator_url(database), autocommit=True)

    def _make_data_directory(self, programs: Path) -> None:
        """Make it under another name first, so that an interrupted one is never used."""
        draft = self.data.with_name("data.new")
        remove(draft)
        draft.mkdir(mode=0o700, parents=True)
        if self.user is not None:
            os.chown(draft, self.user.uid, self.user.gid)
        if self._copy_of is not None:
            subprocess.run(["/bin/cp", "-a", f"{self._copy_of}/.", str(draft)], check=True)
        else:
            self._init_database(programs, draft)
        draft.rename(self.data)

    def _init_database(self, programs: Path, draft: Path) -> None:
        done = subprocess.run(
            [
                str(programs / "initdb"),
                *("-D", str(draft), "-U", _SUPERUSER, "--auth=trust", "--encoding=UTF8"),
                *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--no-instructions", *([] if self._durable else ["--no-sync"])),
            ],
            cwd=draft,
            capture_output=True,
            text=True,
            check=False,
            **popen_options(self.user),
        )
        if done.returncode != 0:
            raise StackError(
                f"PostgreSQL's initdb failed: {done.stderr.strip()}",
                remedy=f"see that {self.data.parent} is writable and the disk has 100 MB free",
            )

    def _command(self, programs: Path) -> Command:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket),
            "max_connections": "200",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %d ",
            # Omits the values of a row that a constraint refused: they can be phone numbers.
            "log_error_verbosity": "terse",
            **({} if self._durable else _FORGETFUL),
        }
        pairs = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Command(
            name=self._name,
            arguments=[str(programs / "postgres"), "-D", str(self.data), *pairs],
            environment={"PATH": os.defpath, "LC_ALL": "C"},
            directory=self.data,
            user=self.user,
            farewell=signal.SIGINT,
            # SIGKILL would leave its shared memory behind for good.
            last_word=signal.SIGINT,
        )

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            self._administrator().close()
            return True
        return False

    def _end_orphan(self) -> None:
        """End a server that an earlier run left on our data, and remove its lock file.

        PostgreSQL refuses to start if the id in its lock file is that of any live process of the
        same account. After a restart of the machine, that may be an unrelated process.
        """
        lock = self.data / "postmaster.pid"
        with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            orphan = psutil.Process(int(lock.read_text(encoding="ascii").splitlines()[0]))
            if str(self.data) in orphan.cmdline():
                end_orphan(orphan, signal.SIGINT, limit_s=START_MAX_S)
        lock.unlink(missing_ok=True)

    def _ensure_roles(self) -> None:
        with self._administrator() as connection:
            rows = connection.execute("SELECT rolname FROM pg_roles").fetchall()
            missing = {OWNER, APPLICATION} - {str(name) for (name,) in rows}
            for role in sorted(missing):
                connection.execute(
                    sql.SQL(
                        "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS"
                    ).format(sql.Identifier(role))
                )

    def _grant_by_default(self, database: str) -> None:
        statements: tuple[LiteralString, ...] = (
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE {owner}"
                " GRANT SELECT, INSERT ON TABLES TO {application}"
            ),
            "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT USAGE ON SEQUENCES TO {application}",
        )
        roles = {"owner": sql.Identifier(OWNER), "application": sql.Identifier(APPLICATION)}
        with self._administrator(database) as connection:
            for statement in statements:
                connection.execute(sql.SQL(statement).format(**roles))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
