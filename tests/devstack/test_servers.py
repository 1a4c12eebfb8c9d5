"""The servers that all other tests use: real, killable, and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from devstack.errors import StackError
from devstack.places import free_port, port_is_free
from devstack.postgres_server import START_MAX_S, PostgresServer
from devstack.programs import READY_MAX_S, ROOT
from devstack.redis_server import RedisServer
from devstack.servers import Servers
from devstack.supervisor import Command, Supervisor, wait_until

# A guardian and the processes that it ends may wait for a core.
GONE_MAX_S = READY_MAX_S


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "log") as running:
        yield running


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """Durable as in production, and this module's alone: it is killed here."""
    with Servers(durable=True) as servers:
        yield servers.postgres


@pytest.fixture
def redis_alone(supervisor: Supervisor, tmp_path: Path) -> RedisServer:
    server = RedisServer(supervisor, tmp_path / "redis")
    server.start()
    return server


def a_table_with_one_row(server: PostgresServer, database: str) -> None:
    with psycopg.connect(server.owner_url(database)) as connection:
        connection.execute("CREATE TABLE coin (id bigserial PRIMARY KEY, word text)")
        connection.execute("INSERT INTO coin (word) VALUES ('kept')")


def words(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [word for (word,) in connection.execute("SELECT word FROM coin").fetchall()]


def test_application_role_reads_and_writes_rows_but_changes_no_table(
    postgres: PostgresServer,
) -> None:
    database = postgres.create_database("rights")
    a_table_with_one_row(postgres, database)
    with psycopg.connect(postgres.application_url(database), autocommit=True) as connection:
        connection.execute("INSERT INTO coin (word) VALUES ('mine')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("ALTER TABLE coin ADD COLUMN owner text")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("TRUNCATE coin")


def test_neither_role_may_walk_past_row_level_security(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.administrator_url()) as connection:
        rows = connection.execute(
            "SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname LIKE 'maramoja_%'"
        ).fetchall()
    assert rows == [(False, False), (False, False)]


def test_a_copy_of_a_template_has_its_rows_and_rights(postgres: PostgresServer) -> None:
    a_table_with_one_row(postgres, postgres.create_database("original"))
    copy = postgres.create_database("copy", template="original")
    assert words(postgres.application_url(copy)) == ["kept"]


@pytest.mark.parametrize("end", ["immediate", "fast", "kill"])
def test_what_was_committed_outlives_the_end_of_the_server(
    postgres: PostgresServer, end: str
) -> None:
    database = postgres.create_database(f"outlives_{end}")
    a_table_with_one_row(postgres, database)
    before = postgres.process.pid
    if end == "kill":
        children = postgres.process.children()
        postgres.kill()
        # kill() has waited for them: no server starts while one still has the shared memory.
        assert not any(map(runs, children))
        postgres.start()
    else:
        postgres.restart("immediate" if end == "immediate" else "fast")
    assert postgres.process.pid != before
    assert words(postgres.owner_url(database)) == ["kept"]


def test_a_frozen_server_goes_on_where_it_was(postgres: PostgresServer) -> None:
    postgres.process.stop()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.administrator_url(), connect_timeout=2)
    postgres.process.cont()
    psycopg.connect(postgres.administrator_url(), connect_timeout=round(START_MAX_S)).close()


def test_a_lock_left_by_another_boot_does_not_stop_the_start(postgres: PostgresServer) -> None:
    postgres.stop()
    stale = f"{os.getpid()}\n{postgres.data}\n0\n5432\n\n\n\n"
    (postgres.data / "postmaster.pid").write_text(stale, encoding="ascii")
    postgres.start()
    assert postgres.process.alive


def test_redis_keeps_its_port_and_its_appended_writes(redis_alone: RedisServer) -> None:
    with redis_alone.client() as client:
        client.set("lock", "held")
    redis_alone.restart()
    with redis_alone.client() as client:
        assert client.get("lock") == b"held"
    redis_alone.flush()
    with redis_alone.client() as client:
        assert client.dbsize() == 0


def test_redis_that_is_full_refuses_instead_of_evicting(redis_alone: RedisServer) -> None:
    with redis_alone.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    redis_alone.kill()
    with redis_alone.client() as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_a_process_that_dies_is_named_with_the_end_of_its_log(supervisor: Supervisor) -> None:
    process = supervisor.start(a_command("broken", "print('no such table'); raise SystemExit(3)"))
    wait_until(lambda: not process.alive, what="it runs on", limit_s=GONE_MAX_S)
    with pytest.raises(StackError, match=r"broken ended with exit code 3") as raised:
        supervisor.check()
    assert "| no such table" in raised.value.what


def test_a_process_ended_on_purpose_is_no_casualty(supervisor: Supervisor) -> None:
    process = supervisor.start(a_command("sleeper", "import time; time.sleep(60)"))
    process.kill()
    supervisor.check()
    process.restart()
    assert process.alive


def test_a_kill_takes_the_children_along(supervisor: Supervisor) -> None:
    child = "import subprocess; subprocess.run(['sleep', '60'])"
    process = supervisor.start(a_command("parent", child))
    wait_until(lambda: bool(process.children()), what="no child", limit_s=GONE_MAX_S)
    children = process.children()
    process.kill()
    assert gone_in_time(lambda: not [pid for pid in children if runs(pid)])


def test_nothing_outlives_a_stack_that_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from devstack.servers import Servers\n"
        "servers = Servers()\n"
        "print(servers.home, servers.postgres.process.pid, servers.redis.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    stack = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert stack.stdout is not None
    home, *pids = stack.stdout.readline().split()
    assert all(runs(int(pid)) for pid in pids)
    stack.send_signal(signal.SIGKILL)
    stack.wait()
    stack.stdout.close()
    assert gone_in_time(lambda: not any(runs(int(pid)) for pid in pids))
    assert gone_in_time(lambda: not Path(home).exists())


def test_ports_are_below_those_that_clients_get() -> None:
    first_of_clients = 32_768
    assert free_port() < first_of_clients


def test_a_port_is_given_to_one_process_only() -> None:
    """Its server listens later, so that the port itself shows nobody that it is taken."""
    port = free_port()
    program = (
        "from devstack import places\n"
        f"places.PORTS = range({port}, {port + 1})\n"
        "places.SystemRandom.sample = lambda self, ports, k: list(ports)\n"
        "places.free_port()\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert port_is_free(port)
    assert "all are taken" in other.stderr


def a_command(name: str, program: str) -> Command:
    return Command(
        name=name, arguments=[sys.executable, "-c", program], environment={}, directory=ROOT
    )


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_in_time(gone: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GONE_MAX_S
    while not gone() and time.monotonic() < deadline:
        time.sleep(0.05)
    return gone()
