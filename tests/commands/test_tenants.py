"""`flask tenants`: the JSON forms are a contract, and an error is one line with a code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from devstack.environment import Addresses, hermetic_environment
from devstack.postgres_server import PostgresServer
from tests.commands.conftest import Commands

REPOSITORY = Path(__file__).parents[2]


def new_slug() -> str:
    return f"c-{uuid4().hex[:12]}"


def test_create_prints_the_tenant_as_one_json_document(flask: Commands) -> None:
    slug = new_slug()
    made = flask("tenants", "create", slug, "--name", "Kampala Märkte", "--json")
    assert (made.code, made.err) == (0, "")
    tenant = made.document
    assert UUID(tenant.pop("id")).version == 7
    assert tenant.pop("created_at").endswith("Z")
    assert tenant == {
        "slug": slug,
        "name": "Kampala Märkte",
        "status": "active",
        "require_idempotency_key": False,
        "rate_limit": None,
        "tenant_rate_limit": None,
        "default_provider": None,
        "held_at": None,
        "held_why": None,
    }


def test_create_takes_settings(flask: Commands) -> None:
    made = flask(
        *("tenants", "create", new_slug(), "--require-idempotency-key", "--json"),
        *("--rate-limit", "7 per minute", "--default-provider", "mtn_momo"),
    )
    assert made.document["require_idempotency_key"] is True
    assert made.document["rate_limit"] == "7 per minute"
    assert made.document["default_provider"] == "mtn_momo"


def test_a_taken_slug_is_one_line_on_stderr_and_exit_code_1(flask: Commands) -> None:
    slug = new_slug()
    flask(f"tenants create {slug}")
    again = flask(f"tenants create {slug}")
    assert (again.code, again.out) == (1, "")
    assert again.err == f"error: tenant_exists: There is a tenant {slug!r} already.\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("tenants create Not_A_Slug", "tenant_slug_invalid"),
        ("tenants show nobody", "tenant_not_found"),
        ("tenants suspend nobody", "tenant_not_found"),
        ("tenants resume nobody", "tenant_not_found"),
        ("tenants set nobody --require-idempotency-key", "tenant_not_found"),
        ("tenants create fine --rate-limit often", "tenant_setting_invalid"),
        ("tenants create fine --default-provider nobodys_rail", "provider_unknown"),
        ("keys issue nobody", "tenant_not_found"),
        ("keys revoke nothing", "key_not_found"),
        ("audit list nobody", "tenant_not_found"),
    ],
)
def test_errors_in_json_have_code_and_detail_on_stderr_alone(
    flask: Commands, words: str, code: str
) -> None:
    failed = flask(f"{words} --json")
    assert (failed.code, failed.out) == (1, "")
    assert failed.error["code"] == code
    assert failed.error["detail"].endswith(".")


def test_set_changes_what_is_given_and_default_gives_it_back(flask: Commands) -> None:
    slug = new_slug()
    flask(f"tenants create {slug}")
    flask("tenants", "set", slug, "--rate-limit", "5 per second", "--require-idempotency-key")
    shown = flask(f"tenants show {slug} --json").document
    assert (shown["rate_limit"], shown["require_idempotency_key"]) == ("5 per second", True)
    flask("tenants", "set", slug, "--rate-limit", "default", "--no-require-idempotency-key")
    shown = flask(f"tenants show {slug} --json").document
    assert (shown["rate_limit"], shown["require_idempotency_key"]) == (None, False)


def test_set_without_anything_to_set_is_a_usage_error(flask: Commands) -> None:
    slug = new_slug()
    flask(f"tenants create {slug}")
    assert flask(f"tenants set {slug}").code == 2


def test_a_suspended_tenant_shows_in_the_list_until_it_is_resumed(flask: Commands) -> None:
    slug = new_slug()
    flask(f"tenants create {slug}")
    assert flask(f"tenants suspend {slug} --json").document["status"] == "suspended"
    listed = {t["slug"]: t["status"] for t in flask("tenants list --json").document["data"]}
    assert listed[slug] == "suspended"
    assert flask(f"tenants resume {slug} --json").document["status"] == "active"


def test_the_list_for_people_is_an_aligned_table(flask: Commands) -> None:
    slug = new_slug()
    flask(f"tenants create {slug}")
    lines = flask("tenants list").out.splitlines()
    row = next(line for line in lines if line.startswith(slug))
    assert lines[0].split() == ["SLUG", "STATUS", "NAME", "ID"]
    assert lines[0].index("STATUS") == row.index("active")


def test_changes_are_in_the_audit_list_with_who_typed_them(flask: Commands) -> None:
    slug = new_slug()
    flask(f"tenants create {slug}")
    flask(f"tenants suspend {slug}")
    told = flask(f"audit list {slug} --json").document["data"]
    assert [entry["action"] for entry in told] == [
        "tenant.suspended",
        "tenant.data_key_made",
        "tenant.created",
    ]
    assert all(entry["actor"].startswith("cli:") for entry in told[::2])
    assert "tenant.suspended" in flask(f"audit list {slug} --limit 1").out
    assert len(flask(f"audit list {slug} --limit 1 --json").document["data"]) == 1


@pytest.mark.parametrize(
    "command",
    [
        *(f"tenants {verb}" for verb in ("create", "list", "show", "suspend", "resume", "set")),
        *(f"tenants {verb}" for verb in ("hold", "release")),
        *(f"invariants {verb}" for verb in ("check", "list", "resolve")),
        *(f"recovery {verb}" for verb in ("begin", "status", "finish")),
        *(f"keys {verb}" for verb in ("issue", "list", "revoke")),
        *(f"providers {verb}" for verb in ("set", "list", "check")),
        *(f"payments {verb}" for verb in ("show", "list", "explain", "recheck")),
        *(f"audit {verb}" for verb in ("list", "verify", "export")),
        "secrets generate-key",
        "doctor",
    ],
)
def test_every_command_has_json_and_an_example_in_its_help_and_in_the_docs(
    flask: Commands, command: str
) -> None:
    page = flask(f"{command} --help").out
    assert "--json" in page
    example = page.split("Example:\n")[1].strip()
    assert f"flask {command}" in example
    assert f"flask {command}" in (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")


def test_a_true_process_prints_the_document_and_nothing_else(
    database_url: str, migration_database_url: str, redis_url: str
) -> None:
    slug = new_slug()
    addresses = Addresses(database_url, migration_database_url, redis_url)
    ended = subprocess.run(
        [sys.executable, "-m", "flask", "tenants", "create", slug, "--json"],
        cwd=REPOSITORY,
        env=hermetic_environment(addresses, {"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f'"slug": "{slug}"' in ended.stdout
    assert ended.stdout.startswith("{")
    assert ended.stdout.endswith("}\n")


def test_without_a_database_the_error_has_no_address_and_no_traceback(redis_url: str) -> None:
    away = "postgresql://nobody:hunter2@127.0.0.1:1/none"
    ended = subprocess.run(
        [sys.executable, "-m", "flask", "tenants", "list", "--json"],
        cwd=REPOSITORY,
        env=hermetic_environment(Addresses(away, away, redis_url), {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert '"code": "database_unavailable"' in ended.stderr
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_before_the_migrations_the_error_says_what_to_run(
    postgres_server: PostgresServer, redis_url: str
) -> None:
    name = postgres_server.create_database(f"bare_{uuid4().hex[:8]}")
    bare = postgres_server.application_url(name)
    ended = subprocess.run(
        [sys.executable, "-m", "flask", "tenants", "list"],
        cwd=REPOSITORY,
        env=hermetic_environment(Addresses(bare, bare, redis_url), {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: database_not_migrated: ")
