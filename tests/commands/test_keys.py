"""`flask keys`: the key is printed once, and no other command ever has it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from flask import Flask

from payments_app.providers.contract import Mode
from payments_app.tenants.accounts import NewAccount, set_account
from payments_app.tenants.caller import verify_key
from payments_app.tenants.errors import ApiKeyExpired
from payments_app.tenants.registry import find_tenant
from tests.builders import a_tenant
from tests.commands.conftest import Commands

ROOT = Path(__file__).parents[2]


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
    assert issued["prefix"].startswith("mara_test_")
    assert (issued["mode"], issued["name"]) == ("test", "till 1")
    assert "payouts:write" not in issued["scopes"]
    with app.app_context():
        caller = verify_key(issued["key"])
    assert caller is not None
    assert (caller.tenant_slug, caller.mode) == (slug, Mode.TEST)


def test_a_live_key_where_all_is_play_money_is_refused(
    app: Flask, flask: Commands, slug: str
) -> None:
    refused = flask(f"keys issue {slug} --mode live --json").error
    assert refused["code"] == "key_mode_unusable"
    assert "--mode test" in refused["detail"]
    assert flask(f"keys list {slug} --json").document == {"data": []}

    credentials = dict.fromkeys(("collection_subscription_key", "collection_api_key"), "x") | {
        "collection_api_user": str(uuid4())
    }
    with app.app_context():
        uganda = NewAccount("mtn_momo", Mode.LIVE, "http://127.0.0.1:1", "mtnuganda", credentials)
        cipher = app.extensions["maramoja"].cipher
        set_account(find_tenant(slug), uganda, cipher=cipher, actor="cli:test")
    issued = flask(f"keys issue {slug} --mode live --json").document
    assert issued["prefix"].startswith("mara_live_")


def test_on_a_terminal_the_mode_is_asked_for(app: Flask, slug: str) -> None:
    """Only on a terminal: a script that gives no mode gets a key that moves no money."""
    ours, theirs = pty.openpty()
    os.write(ours, b"\n")
    settings = app.extensions["maramoja"].settings
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "SECRET_KEYS": ",".join(settings.secret_keys),
    }
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "keys", "issue", slug, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=theirs, capture_output=True, text=True, check=True
    )
    assert "Mode (live, test) [test]" in done.stderr
    assert json.loads(done.stdout)["mode"] == "test"
    os.close(ours)
    os.close(theirs)


def test_the_list_tells_what_each_key_may_do(flask: Commands, slug: str) -> None:
    flask(f"keys issue {slug} --scope payments:read --scope payers:read")
    assert "payers:read payments:read" in flask(f"keys list {slug}").out


def test_a_test_key_says_so(flask: Commands, slug: str) -> None:
    assert flask(f"keys issue {slug} --mode test --json").document["key"].startswith("mara_test_")
    assert flask(f"keys issue {slug} --mode both").code == 2


def test_people_are_told_that_it_is_shown_once(flask: Commands, slug: str) -> None:
    shown = flask(f"keys issue {slug}").out
    assert "mara_test_" in shown
    assert "payments:write" in shown
    assert "can't be shown again" in shown


def test_the_list_has_prefixes_and_never_a_key_or_its_hash(flask: Commands, slug: str) -> None:
    issued = flask(f"keys issue {slug} --json").document
    (listed,) = flask(f"keys list {slug} --json").document["data"]
    assert set(listed) == {
        *("id", "prefix", "mode", "name", "scopes", "networks"),
        *("created_at", "expires_at", "last_used_at", "revoked_at"),
    }
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


def test_a_key_is_issued_for_little(flask: Commands, slug: str) -> None:
    issued = flask(
        *("keys", "issue", slug, "--scope", "payments:read", "--network", "203.0.113.0/24"),
        *("--network", "2001:db8::/32", "--expires-in", "2h", "--json"),
    ).document
    assert issued["scopes"] == ["payments:read"]
    assert issued["networks"] == ["203.0.113.0/24", "2001:db8::/32"]
    span = datetime.fromisoformat(issued["expires_at"]) - datetime.fromisoformat(
        issued["created_at"]
    )
    assert timedelta(minutes=119) < span < timedelta(minutes=121)


@pytest.mark.parametrize(
    ("option", "value", "code", "word"),
    [
        ("--scope", "everything", 1, "scope_unknown"),
        ("--network", "203.0.113.7/24", 2, "203.0.113.0/24"),
        ("--network", "here", 2, "203.0.113.0/24"),
        ("--expires-in", "soon", 2, "30d"),
    ],
)
def test_what_a_key_can_not_be_is_said(
    flask: Commands, slug: str, option: str, value: str, code: int, word: str
) -> None:
    refused = flask("keys", "issue", slug, option, value)
    assert refused.code == code
    assert word in refused.err
    assert flask(f"keys list {slug} --json").document == {"data": []}


def test_a_rotated_key_goes_on_for_the_overlap_beside_its_successor(
    app: Flask, flask: Commands, slug: str
) -> None:
    words = f"keys issue {slug} --mode test --name till --scope payments:read --json"
    old = flask(words).document
    new = flask(f"keys rotate {old['prefix']} --overlap 1h --json").document
    assert new["replaces"] == old["id"]
    assert (new["mode"], new["name"], new["scopes"]) == ("test", "till", ["payments:read"])
    assert new["expires_at"] is None
    with app.app_context():
        assert verify_key(old["key"]) is not None
        assert verify_key(new["key"]) is not None
    listed = {key["id"]: key for key in flask(f"keys list {slug} --json").document["data"]}
    assert listed[old["id"]]["expires_at"] == new["old_expires_at"]
    actions = [e["action"] for e in flask(f"audit list {slug} --json").document["data"]]
    assert actions[:2] == ["key.rotated", "key.issued"]


def test_a_rotated_keys_successor_has_an_end_if_it_is_given_one(flask: Commands, slug: str) -> None:
    old = flask(f"keys issue {slug} --expires-in 30m --json").document
    new = flask(f"keys rotate {old['id']} --json").document
    newest = flask(f"keys rotate {new['id']} --expires-in 90d --json").document
    half_an_hour = timedelta(minutes=30)
    for key in (old, new):
        ends, begins = (datetime.fromisoformat(key[n]) for n in ("expires_at", "created_at"))
        assert abs(ends - begins - half_an_hour) < timedelta(seconds=5)
    assert newest["expires_at"] > newest["old_expires_at"] > newest["created_at"]
    endless = flask(f"keys rotate {newest['id']} --no-end --json").document
    assert endless["expires_at"] is None
    assert flask(f"keys rotate {endless['id']} --no-end --expires-in 90d").code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [("--expires-in 15m", "--overlap"), ("--overlap 0m --expires-in 0m", "too short")],
)
def test_no_successor_ends_before_the_key_that_it_replaces(
    flask: Commands, slug: str, words: str, said: str
) -> None:
    old = flask(f"keys issue {slug} --json").document
    refused = flask(f"keys rotate {old['id']} {words}")
    assert refused.code == 2
    assert said in refused.err
    assert len(flask(f"keys list {slug} --json").document["data"]) == 1


def test_a_rotation_makes_no_key_live_longer(app: Flask, flask: Commands, slug: str) -> None:
    old = flask(f"keys issue {slug} --expires-in 30m --json").document
    new = flask(f"keys rotate {old['id']} --overlap 24h --json").document
    assert new["old_expires_at"] == old["expires_at"] < new["expires_at"]
    flask(f"keys rotate {new['id']} --overlap 0m --json")
    with app.app_context(), pytest.raises(ApiKeyExpired):
        verify_key(new["key"])
    again = flask(f"keys rotate {new['id']}")
    assert again.code == 1
    assert "key_ended" in again.err
