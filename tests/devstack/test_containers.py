"""The containers' files, as far as they can be held to their word without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import psycopg
import pytest
import yaml

from devstack.environment import hermetic_environment
from devstack.postgres_binaries import program_directory
from devstack.postgres_server import PostgresServer
from devstack.programs import ROOT, Programs
from devstack.servers import Servers

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def names_in_example() -> set[str]:
    return set(re.findall(r"^#?([A-Z][A-Z_]+)=", EXAMPLE, flags=re.MULTILINE))


def test_what_compose_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert asked - names_in_example() <= {"MARAMOJA_VERSION"}


def test_each_setting_of_the_example_reaches_the_gateway() -> None:
    passed = set(SERVICES["migrate"]["environment"]) | set(SERVICES["api"]["environment"])
    about_compose = {
        *("POSTGRES_PASSWORD", "OWNER_DATABASE_PASSWORD", "APP_DATABASE_PASSWORD"),
        *("COMPOSE_PROFILES", "PORT"),
    }
    assert names_in_example() - about_compose == passed


def test_the_gateway_never_gets_the_owners_password() -> None:
    for name in ("api", "worker", "beat"):
        assert "OWNER" not in str(SERVICES[name]["environment"])
        assert "MIGRATION_DATABASE_URL" not in SERVICES[name]["environment"]


@pytest.mark.parametrize("name", ["api", "worker", "beat"])
def test_nothing_starts_before_the_migration_is_through(name: str) -> None:
    conditions = SERVICES[name]["depends_on"]
    assert conditions["migrate"]["condition"] == "service_completed_successfully"
    assert conditions["redis"]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", ["migrate", "api", "worker", "beat", "simulator"])
def test_what_is_ours_has_no_rights_and_writes_nowhere(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_a_full_redis_refuses_instead_of_forgetting() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"


def test_the_image_is_made_of_what_is_here() -> None:
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    for name in " ".join(sources).split():
        assert (ROOT / name).exists()
        assert f"!{name}\n" in (ROOT / ".dockerignore").read_text()
    assert "USER 10001" in DOCKERFILE
    assert "requirements-dev" not in DOCKERFILE


def run_roles_script(server: PostgresServer) -> None:
    """Compose's own script, its variables as compose would fill them in."""
    service = SERVICES["roles"]
    script = service["command"][0].replace("$$", "$")
    host = re.search(r"host=(.+)", server.administrator_url())
    assert host is not None
    environment = {
        "PATH": f"{program_directory(None)}:{os.defpath}",
        "PGHOST": host[1],
        "PGUSER": "postgres",
        "OWNER_PASSWORD": "it's the owner's",
        "APP_PASSWORD": "the app's",
    }
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-euc", script], env=environment, check=True)


def test_the_roles_script_makes_a_plain_role_that_the_gateway_works_with() -> None:
    with Servers() as servers:
        run_roles_script(servers.postgres)
        run_roles_script(servers.postgres)  # every start runs it
        addresses = servers.addresses("maramoja", servers.redis)
        programs = Programs(hermetic_environment(addresses, {}))
        programs.migrate()
        programs.flask_json("tenants", "create", "acme", "--name", "Acme")
        with psycopg.connect(addresses.database_url) as connection:
            rights = connection.execute(
                "SELECT rolsuper, rolbypassrls, pg_get_userbyid(relowner) FROM pg_roles, pg_class"
                " WHERE rolname = current_user AND pg_class.oid = 'tenants'::regclass"
            ).fetchone()
    assert rights == (False, False, "maramoja_owner")
