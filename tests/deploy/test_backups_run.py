"""Backups in Compose and Kubernetes: each command, run with exactly its environment."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from devstack.environment import Addresses, hermetic_environment
from devstack.places import remove, temporary_home
from devstack.postgres_binaries import program_directory
from devstack.programs import COMMAND_MAX_S, ROOT, Programs
from devstack.servers import Servers
from devstack.supervisor import Supervisor, wait_until
from devstack.users import server_user
from tests.deploy.fresh_postgres import START_MAX_S, fresh_postgres
from tests.deploy.manifests import Manifest, environment_of, read, workloads

SCRIPTS = ROOT / "deploy/backup"
WORKLOADS = workloads()
# The values of .env.
FILLED = {
    "POSTGRES_PASSWORD": "superusers0",
    "OWNER_DATABASE_PASSWORD": "owners0",
    "APP_DATABASE_PASSWORD": "apps0",
    "BACKUP_DATABASE_PASSWORD": "backups0",
    "SECRET_KEYS": "unused",
}
Done = subprocess.CompletedProcess[str]


def filled(value: str, given: Mapping[str, str]) -> str:
    """A value of docker-compose.yml with its variables from .env; $$ is a dollar."""

    def meaning(found: re.Match[str]) -> str:
        name, how, default = found[1], found[2], found[3]
        assert given.get(name) or how == ":-", f"{name} is needed"
        return given.get(name) or default

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", meaning, value).replace("$$", "$")


def service(name: str, given: Mapping[str, str] = FILLED) -> Manifest:
    """A service of docker-compose.yml, with its variables filled in."""
    found: Manifest = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]
    filled_in: Manifest = _filled_in(found, given)
    return filled_in


def _filled_in(value: Any, given: Mapping[str, str]) -> Any:
    match value:
        case str():
            return filled(value, given)
        case list():
            return [_filled_in(one, given) for one in value]
        case dict():
            return {name: _filled_in(one, given) for name, one in value.items()}
        case _:
            return value


@dataclass
class Installation:
    """A PostgreSQL in place of the containers' one, and a folder in place of /backups."""

    server: Mapping[str, str]
    folder: Path
    programs: Path

    def run(self, command: list[str], environment: Mapping[str, str]) -> Done:
        """Run it as the image does: our scripts and PostgreSQL's programs are on its PATH."""
        path = f"{SCRIPTS}:{self.programs}:{os.defpath}"
        here = [self._here(word) for word in command]
        # Start it by a shell, which looks the program up in this PATH.
        return subprocess.run(
            ["/bin/sh", "-c", 'exec "$@"', "sh", *here],
            env={**{name: self._here(value) for name, value in environment.items()}, "PATH": path},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_MAX_S,
            check=False,
        )

    def _here(self, text: str) -> str:
        text = text.replace("/roles.sql", str(ROOT / "deploy/postgres/roles.sql"))
        text = re.sub(r"(?<!\w)/backups\b", str(self.folder), text)
        return text.replace("@postgres:5432/", f"@127.0.0.1:{self.server['PGPORT']}/")

    def roles(self) -> Done:
        """Run the service that creates the roles."""
        roles = service("roles")
        # Its address is the server's in Compose; here the superuser connects by socket.
        environment = roles["environment"] | self.server
        return self.run([*roles["entrypoint"], *roles["command"]], environment)

    def ask(self, statement: str, database: str = "maramoja") -> object:
        """The superuser's query; its answer."""
        address = {"host": self.server["PGHOST"], "port": self.server["PGPORT"]}
        with psycopg.connect(**address, user="postgres", dbname=database, autocommit=True) as found:
            cursor = found.execute(statement.encode())
            return cursor.fetchall() if cursor.description else None

    def dumps(self) -> list[Path]:
        return sorted(self.folder.glob("*.dump"))


@contextmanager
def an_installation(root: Path, redis_url: str) -> Iterator[Installation]:
    programs, folder = program_directory(server_user()), root / "backups"
    folder.mkdir()
    with (
        Supervisor(root / "log") as supervisor,
        fresh_postgres(programs, root / "postgres", supervisor) as server,
    ):
        made = Installation(server, folder, programs)
        done = made.roles()
        assert done.returncode == 0, done.stderr
        migrate(made, redis_url)
        made.ask(f"ALTER ROLE postgres PASSWORD '{FILLED['POSTGRES_PASSWORD']}'")
        yield made


def migrate(installation: Installation, redis_url: str) -> None:
    at = f"127.0.0.1:{installation.server['PGPORT']}/maramoja"
    owner = f"postgresql://maramoja_owner:{FILLED['OWNER_DATABASE_PASSWORD']}@{at}"
    app = f"postgresql://maramoja_app:{FILLED['APP_DATABASE_PASSWORD']}@{at}"
    programs = Programs(hermetic_environment(Addresses(app, owner, redis_url), {}))
    programs.migrate()
    programs.flask("tenants", "create", "acme")


@pytest.fixture
def installation(servers: Servers) -> Iterator[Installation]:
    root = temporary_home(server_user())
    with an_installation(root, servers.redis.url) as made:
        yield made
    remove(root)


# It starts whole programs, each with its own limit.
@pytest.mark.timeout(360)
def test_each_shape_backs_up_all_tenants_and_compose_comes_back(installation: Installation) -> None:
    backup = service("backup")
    done = installation.run(backup["command"], backup["environment"])
    assert done.returncode == 0, done.stderr
    (dump,) = installation.dumps()
    assert re.fullmatch(r"maramoja-\d{4}-\d\d-\d\dT\d{6}Z\.dump", dump.name)
    assert FILLED["BACKUP_DATABASE_PASSWORD"] not in done.stdout + done.stderr
    assert dump.stat().st_mode & 0o077 == 0

    # docs/backup.md, steps 1 to 3 in Compose.
    await_nobody(installation)
    installation.ask("ALTER DATABASE maramoja RENAME TO maramoja_before", "postgres")
    assert installation.roles().returncode == 0
    restore = service("restore")
    command = [*restore["command"], f"/backups/{dump.name}"]
    done = installation.run(command, restore["environment"])
    assert done.returncode == 0, done.stderr
    for asked in (
        "SELECT slug FROM tenants",
        "SELECT * FROM alembic_version",
        "SELECT tableowner FROM pg_tables WHERE tablename = 'payments'",
        "SELECT has_table_privilege('maramoja_app', 'payments', 'INSERT')",
    ):
        assert installation.ask(asked) == installation.ask(asked, "maramoja_before")
    assert installation.ask("SELECT slug FROM tenants") == [("acme",)]

    kubernetes_backs_up_and_drops_the_old(installation)
    kubernetes_comes_back(installation)


def await_nobody(installation: Installation) -> None:
    """Wait until the sessions of programs that have ended are gone: PostgreSQL waits 5 s only."""
    sessions = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = 'maramoja' AND backend_type = 'client backend'"
    )
    wait_until(
        lambda: installation.ask(sessions, "postgres") == [(0,)],
        what="a session is open",
        limit_s=START_MAX_S,
    )


def kubernetes_backs_up_and_drops_the_old(installation: Installation) -> None:
    workload = WORKLOADS["backup"]
    url = service("backup")["environment"]["BACKUP_DATABASE_URL"]
    environment = environment_of(workload, {"BACKUP_DATABASE_URL": url})
    (dump,) = installation.dumps()
    # Each name has the time, to the second.
    dump = dump.rename(dump.with_name("maramoja-2026-01-01T000000Z.dump"))
    days = int(environment["BACKUP_KEEP_DAYS"])
    others = installation.folder / "notes.dump"
    for path, age in ((dump, days + 0.1), (others, 99)):
        path.touch()
        os.utime(path, (time.time() - age * 86400,) * 2)
    young = installation.folder / "maramoja-young.dump"
    young.touch()
    os.utime(young, (time.time() - (days - 0.1) * 86400,) * 2)

    failed = environment | {"BACKUP_DATABASE_URL": url.replace("backups0", "wrong")}
    assert installation.run(workload.container["args"], failed).returncode != 0
    assert set(installation.dumps()) == {dump, others, young}, "a failure takes nothing away"

    done = installation.run(workload.container["args"], environment)
    assert done.returncode == 0, done.stderr
    assert dump.name in done.stdout
    left = set(installation.dumps())
    assert left > {others, young}
    assert dump not in left
    assert len(left) == 3


def kubernetes_comes_back(installation: Installation) -> None:
    workload = WORKLOADS["restore"]
    await_nobody(installation)
    installation.ask("DROP DATABASE maramoja", "postgres")
    assert installation.roles().returncode == 0
    newest = max(installation.dumps(), key=lambda path: path.stat().st_mtime)
    given = {
        "RESTORE_DATABASE_URL": service("restore")["environment"]["RESTORE_DATABASE_URL"],
        "RESTORE_FILE": newest.name,
    }
    environment = environment_of(workload, given)
    args = [arg.replace("$(RESTORE_FILE)", newest.name) for arg in workload.container["args"]]
    done = installation.run(args, environment)
    assert done.returncode == 0, done.stderr
    assert installation.ask("SELECT slug FROM tenants") == [("acme",)]


def test_what_a_killed_backup_has_left_goes_with_the_next(tmp_path: Path) -> None:
    """Else the disk would be full one day, and no backup would succeed."""
    for name in ("pg_dump", "pg_restore"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
        program.chmod(0o700)
    folder = tmp_path / "backups"
    folder.mkdir()
    old, new = (folder / f"maramoja-{name}.dump.part" for name in ("old", "new"))
    for part in (old, new):
        part.touch()
    os.utime(old, (time.time() - 2.1 * 86400,) * 2)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "BACKUP_DATABASE_URL": "postgresql:///x"}
    done = subprocess.run(
        [SCRIPTS / "scheduled.sh", folder], env=environment, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert list(folder.iterdir()) == [new], "another backup may be under way"


@pytest.mark.parametrize("days", ["x", "0", "-1", "09", "1.5"])
def test_days_that_are_none_stop_it_before_it_begins(tmp_path: Path, days: str) -> None:
    environment = {"PATH": os.defpath, "BACKUP_KEEP_DAYS": days}
    done = subprocess.run(
        [SCRIPTS / "scheduled.sh", tmp_path], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"BACKUP_KEEP_DAYS" in done.stderr


def test_without_a_password_no_role_for_backups_is_made() -> None:
    """tests/devstack/test_containers.py shows what the SQL does with an empty password."""
    without = {name: value for name, value in FILLED.items() if "BACKUP" not in name}
    assert service("roles", without)["environment"]["BACKUP_PASSWORD"] == ""


def test_the_image_has_the_scripts_and_programs_that_are_new_enough() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    stage = re.search(
        r"^FROM postgres:(\d+)\S* AS backup\n(.*?)(?=^FROM )", dockerfile, re.MULTILINE | re.DOTALL
    )
    assert stage
    (folder,) = re.findall(r"^COPY deploy/backup (\S+)$", stage[2], re.MULTILINE)
    assert f"ENV PATH={folder}:$PATH" in stage[2]
    assert "USER 10001:10001" in stage[2]
    assert "!deploy/backup" in (ROOT / ".dockerignore").read_text().splitlines()
    # pg_dump refuses a newer server.
    server = service("postgres")["image"].removeprefix("postgres:")
    assert int(stage[1]) >= int(server)
    for started in (service("backup")["command"], service("restore")["command"]):
        assert os.access(SCRIPTS / started[0], os.X_OK)
    for name in ("backup", "restore"):
        assert service(name)["build"]["target"] == "backup"
        assert WORKLOADS[name].container["image"] == "maramoja-backup"
        assert os.access(SCRIPTS / WORKLOADS[name].container["args"][0], os.X_OK)


def test_a_backup_goes_to_a_volume_that_stays_and_has_one_right_only() -> None:
    (claim,) = read(ROOT / "deploy/kubernetes/components/backup/volume.yaml")
    for name in ("backup", "restore"):
        volumes = {one["name"]: one for one in WORKLOADS[name].pod["volumes"]}
        mounts = {
            one["name"]: one["mountPath"] for one in WORKLOADS[name].container["volumeMounts"]
        }
        claimed = volumes["backups"]["persistentVolumeClaim"]["claimName"]
        assert claimed == claim["metadata"]["name"]
        assert mounts["backups"] == "/backups"
        assert service(name)["volumes"] == ["/var/backups/maramoja:/backups"]
    assert set(environment_of(WORKLOADS["backup"], {})) == {
        "BACKUP_DATABASE_URL",
        "BACKUP_KEEP_DAYS",
    }
    assert set(service("backup")["environment"]) == {"BACKUP_DATABASE_URL", "BACKUP_KEEP_DAYS"}


def test_cron_starts_what_compose_has() -> None:
    page = (ROOT / "docs/backup.md").read_text()
    (line,) = re.findall(r"^17 2 \* \* \* root (.*)$", page, re.MULTILINE)
    assert line.endswith("docker compose run --rm backup")
    assert WORKLOADS["backup"].manifest["spec"]["schedule"] == "17 2 * * *"
    assert WORKLOADS["backup"].manifest["spec"]["concurrencyPolicy"] == "Forbid"
