"""docs/systemd.md followed word by word: a fresh machine, the first start, the next version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import requests
from sqlalchemy import make_url

from devstack.places import remove, temporary_home
from devstack.postgres_binaries import program_directory
from devstack.programs import READY_MAX_S
from devstack.servers import Servers
from devstack.supervisor import Process, Supervisor, wait_until
from devstack.users import server_user
from tests.deploy.fresh_postgres import fresh_postgres, oldest_installed
from tests.deploy.machine import Machine
from tests.docs.pages import blocks_of, read

PAGE = "docs/systemd.md"
FILE = "/etc/maramoja/maramoja.env"
# What an operator may have added, by mistake or on purpose.
MORE = f"""
cat >> {FILE} <<'ENV'
WEB_CONCURRENCY=1
OTEL_SERVICE_NAME="the gateway of the shop"
WORKER_PORT=1
BEAT_PORT=1
ENV
"""
pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("curl") and shutil.which("openssl")),
    reason="PAGE NOT FOLLOWED: no bash, curl or openssl",
)


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path, because sockets are in it."""
    found = temporary_home(server_user())
    yield found
    remove(found)


def commands(*, upgrade: bool) -> str:
    """The page's commands before its heading "Upgrade", or those after it."""
    from_line = read(PAGE).split("## Upgrade")[0].count("\n")
    return "\n".join(
        block.text + (MORE if f"tee {FILE}" in block.text else "")
        for block in blocks_of(PAGE)
        if (block.line > from_line) == upgrade
    )


# The page's own waits take more than a test's usual time on a slow machine.
@pytest.mark.timeout(600)
def test_the_page_makes_a_gateway_and_upgrades_it(servers: Servers, root: Path) -> None:
    with a_machine(program_directory(server_user()), servers, root) as machine:
        the_gateway_starts(machine)
        the_gateway_is_upgraded(machine)


@pytest.mark.timeout(360)
def test_the_page_makes_a_gateway_on_the_oldest_server_that_is_here(
    servers: Servers, root: Path
) -> None:
    if (programs := oldest_installed()) is None:
        pytest.skip("PAGE NOT FOLLOWED ON AN OLDER POSTGRESQL: none is installed")
    with a_machine(programs, servers, root) as machine:
        the_gateway_starts(machine)


def test_a_dollar_in_an_argument_is_a_dollar(root: Path) -> None:
    """systemd would replace $NAME by a variable's value, and show SECRET_KEYS on the screen."""
    machine = Machine(root / "m", Supervisor(root / "log"), {"PGPORT": "0", "PSQL": "false"}, 0)
    folder = machine.root / "etc/maramoja"
    folder.mkdir()
    (folder / "maramoja.env").write_text("SECRET_KEYS=much secret\n")
    bin_folder = machine.root / "opt/maramoja/current/.venv/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "flask").symlink_to("/bin/echo")
    script = Path(__file__).parents[2] / "deploy/maramoja-flask"
    (machine.root / "usr/local/sbin/maramoja-flask").symlink_to(script)
    done = machine.run(
        "maramoja-flask tenants create 'a b' --name '${SECRET_KEYS} $SECRET_KEYS $5'"
    )
    assert done.stdout == "tenants create a b --name ${SECRET_KEYS} $SECRET_KEYS $5\n", done.stderr
    assert machine.run("maramoja-flask").returncode == 2
    machine.supervisor.close()
    machine.close()


@contextmanager
def a_machine(programs: Path, servers: Servers, root: Path) -> Iterator[Machine]:
    """A fresh machine, with a server of these programs."""
    redis = servers.new_redis()
    with (
        Supervisor(root / "log") as supervisor,
        fresh_postgres(programs, root / "postgres", supervisor) as postgres,
    ):
        machine = Machine(root / "m", supervisor, postgres, redis.port)
        try:
            yield machine
        finally:
            machine.close()
    redis.stop()


def the_gateway_starts(machine: Machine) -> None:
    done = machine.run(commands(upgrade=False))
    logs = "\n".join(process.log_tail() for process in machine.services.values())
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{logs}"
    assert set(machine.services) == {
        "maramoja-api",
        "maramoja-worker@1",
        "maramoja-worker@2",
        "maramoja-beat",
    }
    each_has_its_port(machine)
    settings = environment_of(machine, "maramoja-api")
    assert settings["RATE_LIMIT_DEFAULT"] == "100 per minute"
    assert settings["OTEL_SERVICE_NAME"] == "the gateway of the shop"
    each_command_has_the_units_environment_and_shows_none_of_it(machine, settings, done.stdout)
    the_files_are_roots_alone(machine)
    (dump,) = (machine.root / "var/lib/maramoja-backups").glob("maramoja-*.dump")
    assert dump.stat().st_size > 0
    the_roles_are_what_they_should_be(settings)


def the_gateway_is_upgraded(machine: Machine) -> None:
    before = environment_of(machine, "maramoja-worker@2")
    api = machine.services["maramoja-api"].pid
    done = machine.run(commands(upgrade=True))
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.services["maramoja-api"].pid == api, "a reload, and no pause"
    each_has_its_port(machine)
    assert environment_of(machine, "maramoja-worker@2") == before
    # The reload only sends a signal: the API follows the link when it handles that.
    api_process = machine.services["maramoja-api"]
    wait_until(
        lambda: folder_of(api_process) == "v0.3.0",
        what="the API is in the folder of the old version",
        processes=[api_process],
        limit_s=READY_MAX_S,
    )
    assert {folder_of(one) for one in machine.services.values()} == {"v0.3.0"}


def folder_of(process: Process) -> str:
    return Path(psutil.Process(process.pid).cwd()).name


def each_command_has_the_units_environment_and_shows_none_of_it(
    machine: Machine, settings: dict[str, str], shown: str
) -> None:
    assert [ran.arguments[1] for ran in machine.ran] == ["doctor", "tenants", "keys"]
    for ran in machine.ran:
        assert ran.unit.startswith("maramoja-flask-")
        assert ran.environment == settings | {"LOGNAME": "amina"}
        secrets = (settings["SECRET_KEYS"], make_url(settings["DATABASE_URL"]).password)
        assert not any(str(secret) in f"{ran.arguments}{shown}" for secret in secrets)


def environment_of(machine: Machine, service: str) -> dict[str, str]:
    """The process's real environment, without what its shell added."""
    found = psutil.Process(machine.services[service].pid).environ()
    return {
        name: value for name, value in found.items() if name not in ("PWD", "OLDPWD", "SHLVL", "_")
    }


def the_files_are_roots_alone(machine: Machine) -> None:
    for name in ("maramoja.env", "migration.env", "backup.env"):
        assert (machine.root / "etc/maramoja" / name).stat().st_mode & 0o777 == 0o600


def the_roles_are_what_they_should_be(settings: dict[str, str]) -> None:
    assert "MIGRATION_DATABASE_URL" not in settings
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        role = "SELECT rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole FROM pg_roles"
        row = connection.execute(f"{role} WHERE rolname = current_user")
        assert row.fetchone() == (False,)
        tenants = connection.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'tenants'")
        assert tenants.fetchone() == ("maramoja_owner",)


def each_has_its_port(machine: Machine) -> None:
    first = int(f"{machine.worker_ports}1")
    for port in (first, first + 1, machine.beat_port):
        await_live(machine, port)


def await_live(machine: Machine, port: int) -> None:
    def answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/health/live", timeout=2).ok
        except requests.RequestException:
            return False

    services = [one for name, one in machine.services.items() if name != "maramoja-api"]
    wait_until(answers, what=f"nobody at {port}", processes=services, limit_s=READY_MAX_S)
