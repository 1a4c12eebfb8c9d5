"""Commands of the command server: each as at a terminal, only sooner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import psycopg
import pytest

from devstack import command_server
from devstack.environment import hermetic_environment
from devstack.errors import StackError
from devstack.programs import COMMAND_MAX_S, Programs
from devstack.servers import Servers
from devstack.supervisor import wait_until

# migrations/env.py's ADVISORY_LOCK.
MIGRATION_LOCK: Final = 0x6D617261


@pytest.fixture
def environment(servers: Servers) -> Iterator[dict[str, str]]:
    name = servers.new_database()
    yield hermetic_environment(servers.addresses(name, servers.redis), {})
    servers.postgres.drop_database(name)


def test_each_command_has_its_own_environment(
    servers: Servers, environment: dict[str, str]
) -> None:
    path = servers.command_server
    other = hermetic_environment(servers.addresses(servers.new_database(), servers.redis), {})
    Programs(environment, path).flask("tenants", "create", "acme", "--name", "Acme")
    listed = ("tenants", "list", "--json")
    assert "acme" in Programs(environment, path).flask(*listed)
    assert "acme" not in Programs(other, path).flask(*listed)


def test_it_prints_what_a_new_process_prints(servers: Servers, environment: dict[str, str]) -> None:
    given = ("tenants", "create", "acme", "--name", "Ácme", "--json")
    Programs(environment, servers.command_server).flask(*given)
    listed = ("tenants", "list", "--json")
    warm = Programs(environment, servers.command_server).flask(*listed)
    assert warm == Programs(environment).flask(*listed)
    assert "Ácme" in json.dumps(json.loads(warm), ensure_ascii=False)


def test_a_command_that_fails_says_why(servers: Servers, environment: dict[str, str]) -> None:
    programs = Programs(environment, servers.command_server)
    with pytest.raises(StackError, match="No such command 'nonsense'"):
        programs.flask("nonsense")
    done = command_server.run(
        servers.command_server, ["nonsense"], environment, limit_s=COMMAND_MAX_S
    )
    assert (done.code, done.stdout) == (2, "")


def test_a_command_that_takes_too_long_is_killed(
    servers: Servers, environment: dict[str, str]
) -> None:
    path, before = servers.command_server, commands_of(servers)
    with psycopg.connect(environment["MIGRATION_DATABASE_URL"]) as held:
        # The migration waits for this lock as long as we hold it.
        held.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        with pytest.raises(TimeoutError):
            command_server.run(path, ["db", "upgrade"], environment, limit_s=5.0)
        wait_until(
            lambda: not commands_of(servers) - before, what="it runs on", limit_s=COMMAND_MAX_S
        )


def test_a_server_that_has_ended_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(StackError, match="the command server has ended"):
        command_server.run(tmp_path / "none", ["tenants", "list"], environment, limit_s=5.0)


def test_a_setting_that_is_read_at_import_is_refused(servers: Servers) -> None:
    given = {"PROMETHEUS_MULTIPROC_DIR": "somewhere"}
    with pytest.raises(ValueError, match="PROMETHEUS_MULTIPROC_DIR"):
        command_server.run(servers.command_server, [], given, limit_s=COMMAND_MAX_S)


def commands_of(servers: Servers) -> set[psutil.Process]:
    """The server and its forks that run now."""
    path = str(servers.command_server)
    return {
        process
        for process in psutil.process_iter(["cmdline"])
        if path in (process.info["cmdline"] or [])
    }
