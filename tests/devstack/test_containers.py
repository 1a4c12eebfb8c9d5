"""The containers' files, as far as they can be tested without a Docker engine."""

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
from tests.deploy.settings_known import known_settings

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = ["migrate", "api", "worker", "beat"]


def names_in_example() -> set[str]:
    return set(re.findall(r"^#?([A-Z][A-Z_]+)=", EXAMPLE, flags=re.MULTILINE))


def test_what_compose_asks_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert asked - names_in_example() <= {"MARAMOJA_VERSION"}


def test_each_setting_of_the_example_reaches_the_gateway() -> None:
    passed = set(SERVICES["migrate"]["environment"]) | set(SERVICES["api"]["environment"])
    about_compose = {
        *("POSTGRES_PASSWORD", "OWNER_DATABASE_PASSWORD", "APP_DATABASE_PASSWORD"),
        *("BACKUP_DATABASE_PASSWORD", "BACKUP_FOLDER", "BACKUP_KEEP_DAYS"),
        *("COMPOSE_PROFILES", "PORT", "GRAFANA_ADMIN_PASSWORD"),
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


@pytest.mark.parametrize("name", OURS)
def test_each_variable_is_a_setting(name: str) -> None:
    assert set(SERVICES[name]["environment"]) <= known_settings()


@pytest.mark.parametrize(("name", "port"), [("worker", "9101"), ("beat", "9102")])
def test_worker_and_beat_are_asked_at_the_port_that_they_answer_at(name: str, port: str) -> None:
    assert SERVICES[name]["environment"][f"{name.upper()}_PORT"] == port
    question = SERVICES[name]["healthcheck"]["test"][-1]
    assert f"http://127.0.0.1:{port}/health/live" in question
    # The health check is valid Python, and its program is in the image.
    assert SERVICES[name]["healthcheck"]["test"][1] == "python"
    compile(question, name, "exec")


def test_prometheus_asks_each_at_its_port() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    asked = {job["job_name"]: job["dns_sd_configs"][0] for job in jobs}
    ports = {name: (found["names"], found["port"]) for name, found in asked.items()}
    assert ports == {"api": (["api"], 8000), "worker": (["worker"], 9101), "beat": (["beat"], 9102)}


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_may_take_the_whole_machine(name: str) -> None:
    assert {"memory", "pids"} <= set(SERVICES[name]["deploy"]["resources"]["limits"])
    assert SERVICES[name]["logging"]["options"]["max-size"]
    assert re.search(r":.*[0-9]", SERVICES[name]["image"]) or "build" in SERVICES[name]


def test_no_way_leads_from_outside_to_what_is_stored() -> None:
    assert COMPOSE["networks"]["data"] == {"internal": True}
    for name in ("postgres", "redis", "roles"):
        assert SERVICES[name]["networks"] == ["data"]
        assert "ports" not in SERVICES[name]
    for name in ("prometheus", "grafana"):
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
        assert SERVICES[name]["profiles"] == ["observability"]


@pytest.mark.parametrize("name", ["migrate", "api", "worker", "beat", "backup", "simulator"])
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
    for base in re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, flags=re.MULTILINE):
        assert base in ("python:3.11-slim-bookworm", "postgres:18-bookworm")
    for label in ("version", "revision"):
        assert f"org.opencontainers.image.{label}=" in DOCKERFILE
        assert f"\nARG {label.upper()}=" in DOCKERFILE


def run_roles_script(server: PostgresServer) -> None:
    """Run compose's own script, with its variables filled in as compose does."""
    service = SERVICES["roles"]
    script = service["command"][0].replace("$$", "$")
    (mounted,) = service["volumes"]
    here, there, _ = mounted.split(":")
    script = script.replace(there, str(ROOT / here))
    host = re.search(r"host=(.+)", server.administrator_url())
    assert host is not None
    environment = {
        "PATH": f"{program_directory(None)}:{os.defpath}",
        "PGHOST": host[1],
        "PGUSER": "postgres",
        "OWNER_PASSWORD": "it's the owner's",
        "APP_PASSWORD": "the app's",
        "BACKUP_PASSWORD": "",
    }
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run([shell, "-euc", script], env=environment, check=True)


# It starts whole programs, each with its own limit.
@pytest.mark.timeout(360)
def test_the_roles_script_makes_a_plain_role_that_the_gateway_works_with() -> None:
    with Servers() as servers:
        run_roles_script(servers.postgres)
        run_roles_script(servers.postgres)  # every start runs it
        addresses = servers.addresses("maramoja", servers.redis)
        with psycopg.connect(addresses.database_url) as connection:
            makes = "SELECT has_database_privilege(current_database(), 'TEMPORARY')"
            assert connection.execute(makes).fetchone() == (False,)
        programs = Programs(hermetic_environment(addresses, {}))
        programs.migrate()
        programs.flask_json("tenants", "create", "acme", "--name", "Acme")
        with psycopg.connect(addresses.database_url) as connection:
            rights = connection.execute(
                "SELECT rolsuper, rolbypassrls, pg_get_userbyid(relowner) FROM pg_roles, pg_class"
                " WHERE rolname = current_user AND pg_class.oid = 'tenants'::regclass"
            ).fetchone()
            backup = "SELECT count(*) FROM pg_roles WHERE rolname = 'maramoja_backup'"
            assert connection.execute(backup).fetchone() == (0,), "nobody asked for it"
    assert rights == (False, False, "maramoja_owner")
