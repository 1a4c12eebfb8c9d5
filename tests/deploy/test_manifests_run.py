"""Each manifest's command, run with exactly the environment of its container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import requests
from cryptography.fernet import Fernet

from devstack.environment import surroundings
from devstack.places import free_port
from devstack.programs import COMMAND_MAX_S, READY_MAX_S, ROOT
from devstack.servers import Servers
from devstack.supervisor import Command, Supervisor, wait_until
from tests.deploy.manifests import environment_of, workloads

WORKLOADS = workloads()
PROGRAMS = Path(sys.executable).parent
# The settings of the ports for probes. A manifest's port may be in use on this machine.
PORT_OF = {"api": "PORT", "worker": "WORKER_PORT", "beat": "BEAT_PORT"}


@pytest.fixture
def secret_values(servers: Servers) -> dict[str, str]:
    """The two Secrets, filled in as their template says; the database was never migrated."""
    database = servers.postgres.create_database("maramoja_manifests")
    return {
        "DATABASE_URL": servers.postgres.application_url(database),
        "MIGRATION_DATABASE_URL": servers.postgres.owner_url(database),
        "REDIS_URL": servers.redis.url,
        "SECRET_KEYS": Fernet.generate_key().decode(),
        "MTN_COLLECTION_SUBSCRIPTION_KEY": "subscription",
        "MTN_COLLECTION_API_USER": "4f1c9c1e-6f2f-4b0e-8f57-0d6a3f6f7a01",
        "MTN_COLLECTION_API_KEY": "secret",
    }


# It starts whole programs, each with its own limit.
@pytest.mark.timeout(360)
def test_the_migration_and_then_all_that_serves(
    secret_values: dict[str, str], tmp_path: Path
) -> None:
    migrate = WORKLOADS["migrate"]
    name, *arguments = migrate.container["args"]
    done = subprocess.run(
        [PROGRAMS / name, *arguments],
        cwd=ROOT,
        env={**surroundings(), **environment_of(migrate, secret_values)},
        capture_output=True,
        text=True,
        timeout=COMMAND_MAX_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with psycopg.connect(secret_values["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM tenants").fetchone() == (0,)
    with Supervisor(tmp_path) as supervisor:
        for part, port_setting in PORT_OF.items():
            serve(supervisor, part, port_setting, secret_values)


def serve(
    supervisor: Supervisor, part: str, port_setting: str, secret_values: dict[str, str]
) -> None:
    """Start it, and wait until it answers the first probe of its manifest."""
    workload, port = WORKLOADS[part], free_port()
    name, *arguments = workload.container["args"]
    given = environment_of(workload, secret_values) | {port_setting: str(port)}
    command = Command(
        name=part,
        arguments=[str(PROGRAMS / name), *arguments],
        environment={**surroundings(), **given},
        directory=ROOT,
    )
    process = supervisor.start(command)
    probes = workload.container
    asked = probes.get("readinessProbe", probes["startupProbe"])["httpGet"]["path"]

    def answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}{asked}", timeout=2).ok
        except requests.RequestException:
            return False

    wait_until(answers, what=f"{part} does not answer", processes=[process], limit_s=READY_MAX_S)
    process.terminate()
