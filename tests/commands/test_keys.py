"""`flask keys`: the key is printed once, and no other command ever has it."""

from __future__ import annotations

from uuid import UUID

import pytest
from flask import Flask

from payments_app.providers.contract import Mode
from payments_app.tenants.keys import verify_key
from tests.builders import a_tenant
from tests.commands.conftest import Commands


@pytest.fixture
def slug(app: Flask) -> str:
    with app.app_context():
        return a_tenant().slug


def test_issue_prints_id_prefix_and_the_key_that_works(
    app: Flask, flask: Commands, slug: str
) -> None:
    issued = flask("keys", "issue", slug, "--name", "till 1", "--json").document
    UUID(issued["id"])
    assert issued["key"].startswith(f"{issued['prefix']}_")
    assert issued["prefix"].startswith("mara_live_")
    assert (issued["mode"], issued["name"]) == ("live", "till 1")
    with app.app_context():
        caller = verify_key(issued["key"])
    assert caller is not None
    assert (caller.tenant_slug, caller.mode) == (slug, Mode.LIVE)


def test_a_test_key_says_so(flask: Commands, slug: str) -> None:
    assert flask(f"keys issue {slug} --mode test --json").document["key"].startswith("mara_test_")
    assert flask(f"keys issue {slug} --mode both").code == 2


def test_people_are_told_that_it_is_shown_once(flask: Commands, slug: str) -> None:
    shown = flask(f"keys issue {slug}").out
    assert "mara_live_" in shown
    assert "can't be shown again" in shown


def test_the_list_has_prefixes_and_never_a_key_or_its_hash(flask: Commands, slug: str) -> None:
    issued = flask(f"keys issue {slug} --json").document
    (listed,) = flask(f"keys list {slug} --json").document["data"]
    assert set(listed) == {"id", "prefix", "mode", "name", "created_at", "revoked_at"}
    assert listed["id"] == issued["id"]
    secret = issued["key"].removeprefix(issued["prefix"])
    for words in (f"keys list {slug}", f"audit list {slug}", f"audit list {slug} --json"):
        assert secret not in flask(words).out


def test_no_keys_yet_is_said(flask: Commands, slug: str) -> None:
    assert flask(f"keys list {slug}").out == f"{slug} has no API keys yet.\n"
    assert flask(f"keys list {slug} --json").document == {"data": []}


@pytest.mark.parametrize("handle", ["id", "prefix"])
def test_a_revoked_key_opens_nothing(app: Flask, flask: Commands, slug: str, handle: str) -> None:
    issued = flask(f"keys issue {slug} --json").document
    revoked = flask(f"keys revoke {issued[handle]} --json").document
    assert revoked["id"] == issued["id"]
    assert revoked["revoked_at"].endswith("Z")
    with app.app_context():
        assert verify_key(issued["key"]) is None
