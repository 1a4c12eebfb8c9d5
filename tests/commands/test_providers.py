"""`flask providers`: credentials are read without an echo, never printed; `check` tries them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from devstack.environment import Addresses, hermetic_environment
from payments_app.providers.contract import Mode
from payments_app.tenants.registry import find_tenant
from tests.builders import a_caller, a_tenant, an_accepted_payment, an_asker
from tests.commands.conftest import Commands, Outcome

REPOSITORY = Path(__file__).parents[2]
USER = "7d9f0b52-5e0c-4c4f-9a70-52f2c7a9e0d1"
SECRETS = ("subscription-key-0123456789abcdef", USER, "api-key-fedcba9876543210")
NAMES = ("collection_subscription_key", "collection_api_user", "collection_api_key")


@pytest.fixture
def slug(app: Flask) -> str:
    with app.app_context():
        return a_tenant().slug


class _Sandbox(BaseHTTPRequestHandler):
    """MTN's token and balance endpoints, with one valid subscription key."""

    def do_POST(self) -> None:
        self._answer({"access_token": "token", "token_type": "access_token", "expires_in": 3600})

    def do_GET(self) -> None:
        self._answer({"availableBalance": "1000", "currency": "EUR"})

    def log_message(self, *_arguments: object) -> None:
        """Log nothing."""

    def _answer(self, document: dict[str, Any]) -> None:
        right = self.headers["Ocp-Apim-Subscription-Key"] == SECRETS[0]
        body = json.dumps(document if right else {"statusCode": 401}).encode()
        self.send_response(200 if right else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def sandbox() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sandbox)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def set_account(
    flask: Commands, slug: str, *more: str, secrets: tuple[str, ...] = SECRETS
) -> Outcome:
    given = [word for name in NAMES for word in ("--credential", f"{name}=-")]
    return flask(
        *("providers", "set", slug, "mtn_momo", "--target-environment", "sandbox"),
        *given,
        *more,
        stdin="\n".join(secrets) + "\n",
    )


def test_set_reads_credentials_from_stdin_in_the_order_given(
    flask: Commands, slug: str, sandbox: str
) -> None:
    done = set_account(flask, slug, "--base-url", sandbox, "--json")
    assert done.code == 0, done.err
    account = done.document
    assert (account["provider"], account["owner"], account["mode"]) == (
        "mtn_momo",
        "tenant",
        "test",
    )
    assert account["credentials"] == {
        name: f"********{secret[-4:]}" for name, secret in zip(NAMES, SECRETS, strict=True)
    }
    (checked,) = flask(f"providers check {slug} --json").document["data"]
    assert (checked["owner"], checked["works"]) == ("tenant", True)


def test_set_reads_credentials_from_the_environment(
    flask: Commands, slug: str, sandbox: str
) -> None:
    given = [word for n in NAMES for word in ("--credential", f"{n}=env:T_{n.upper()}")]
    env = {f"T_{name.upper()}": secret for name, secret in zip(NAMES, SECRETS, strict=True)}
    done = flask(
        *("providers", "set", slug, "mtn_momo", "--target-environment", "sandbox", "--json"),
        *("--base-url", sandbox, *given),
        env=env,
    )
    assert done.code == 0, done.err
    assert flask(f"providers check {slug} mtn_momo --mode test").code == 0


def test_a_credential_on_the_command_line_is_refused_and_not_repeated(
    flask: Commands, slug: str
) -> None:
    done = flask(
        *("providers", "set", slug, "mtn_momo", "--target-environment", "sandbox"),
        *("--base-url", "http://127.0.0.1:1", "--credential", f"collection_api_key={SECRETS[2]}"),
    )
    assert done.code == 1
    assert "provider_account_invalid" in done.err
    assert SECRETS[2] not in done.err + done.out


@pytest.mark.parametrize(
    "words",
    [
        ("--credential", "collection_api_key=-"),
        ("--credential", "collection_api_key=env:NOT_SET_ANYWHERE"),
        ("--credential", "nonsense=-"),
        (),
    ],
)
def test_missing_and_unknown_credentials_are_refused(
    flask: Commands, slug: str, words: tuple[str, ...]
) -> None:
    done = flask(
        *("providers", "set", slug, "mtn_momo", "--target-environment", "sandbox", "--json"),
        *("--base-url", "http://127.0.0.1:1", *words),
        stdin="x\n",
    )
    assert (done.code, done.error["code"]) == (1, "provider_account_invalid")


def test_an_environment_that_the_provider_does_not_have_is_refused(
    flask: Commands, slug: str
) -> None:
    done = set_account(flask, slug, "--target-environment", "mtnatlantis", "--json")
    assert (done.code, done.error["code"]) == (1, "provider_account_invalid")


def test_an_unknown_provider_is_refused(flask: Commands, slug: str) -> None:
    done = flask(f"providers set {slug} nobodys_rail --target-environment sandbox --json")
    assert done.error["code"] == "provider_unknown"
    assert flask(f"providers check {slug} nobodys_rail --json").error["code"] == "provider_unknown"


def test_the_address_left_out_is_the_platforms_for_the_same_environment(
    flask: Commands, slug: str
) -> None:
    assert set_account(flask, slug, "--json").document["base_url"] == "http://127.0.0.1:1"


def test_a_new_account_elsewhere_needs_an_address(flask: Commands, slug: str) -> None:
    done = set_account(flask, slug, "--target-environment", "mtnuganda", "--json")
    assert done.error["code"] == "provider_account_invalid"
    assert "--base-url" in done.error["detail"]


def test_an_account_moves_only_when_that_is_said(flask: Commands, slug: str, sandbox: str) -> None:
    set_account(flask, slug, "--base-url", "http://127.0.0.1:1")
    refused = set_account(flask, slug, "--base-url", sandbox, "--json")
    assert refused.error["code"] == "provider_account_moved"
    moved = set_account(flask, slug, "--base-url", sandbox, "--may-move", "--json").document
    assert (moved["base_url"], moved["version"]) == (sandbox, 2)


def test_another_merchant_is_refused_while_the_present_ones_payments_are_open(
    app: Flask, flask: Commands, slug: str, sandbox: str
) -> None:
    def as_user(user: str, *more: str) -> Outcome:
        secrets = (SECRETS[0], user, SECRETS[2])
        return set_account(flask, slug, "--base-url", sandbox, "--json", *more, secrets=secrets)

    first, second, third = str(uuid4()), str(uuid4()), str(uuid4())
    as_user(first)
    assert as_user(second).document["version"] == 2, "nothing is open"
    with app.app_context():
        context = an_asker(caller=a_caller(tenant=find_tenant(slug), mode=Mode.TEST))
        an_accepted_payment(app.extensions["maramoja"].gateway, context=context)
    assert as_user(second).document["version"] == 3, "it is the same merchant"
    refused = as_user(third)
    assert refused.error["code"] == "provider_account_moved"
    assert "for 1 open payments" in refused.error["detail"]
    assert as_user(third, "--may-move").document["version"] == 4


def test_check_says_which_account_does_not_work_and_ends_with_1(
    flask: Commands, slug: str, sandbox: str
) -> None:
    set_account(flask, slug, "--base-url", sandbox, secrets=("wrong", USER, "wrong"))
    checked = flask(f"providers check {slug} --json")
    assert checked.code == 1
    own = next(a for a in checked.document["data"] if a["mode"] == "test")
    assert own["works"] is False
    assert own["http_status"] == 401


def test_check_without_a_tenant_tries_the_platforms_account(flask: Commands) -> None:
    checked = flask("providers check --json")
    assert checked.code == 1
    (account,) = checked.document["data"]
    assert (account["owner"], account["works"]) == ("platform", False)
    assert account["reason"] == "token_connection_refused"


def test_no_credential_is_printed_or_told_anywhere(
    flask: Commands, slug: str, sandbox: str
) -> None:
    printed = set_account(flask, slug, "--base-url", sandbox).out
    for words in ("providers list", f"providers list {slug}", f"providers check {slug}"):
        printed += flask(words).out + flask(f"{words} --json").out
    printed += flask(f"audit list {slug} --json").out
    for secret in (*SECRETS, "4f1c9c1e-6f2f-4b0e-8f57-0d6a3f6f7a01"):
        assert secret not in printed


def test_the_list_has_the_tenants_accounts_and_the_platforms(
    app: Flask, flask: Commands, slug: str, sandbox: str
) -> None:
    set_account(flask, slug, "--base-url", sandbox, "--mode", "test")
    with app.app_context():
        tenant_id = str(find_tenant(slug).id)
    owners = [a["owner"] for a in flask(f"providers list {tenant_id} --json").document["data"]]
    assert owners == ["tenant", "platform"]
    owners = [a["owner"] for a in flask("providers list --json").document["data"]]
    assert owners == ["platform"]


def test_on_a_terminal_credentials_are_asked_for_and_not_echoed(
    slug: str, database_url: str, migration_database_url: str, redis_url: str
) -> None:
    addresses = Addresses(database_url, migration_database_url, redis_url)
    words = (
        f"providers set {slug} mtn_momo --target-environment sandbox --base-url http://x.example"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", *words.split()],
        cwd=REPOSITORY,
        env=hermetic_environment(addresses, {}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # A session without a terminal of its own: the prompt falls back to stdin, which is ours.
        start_new_session=True,
    )
    os.close(theirs)
    screen = _converse(ours, dict(zip(NAMES, SECRETS, strict=True)))
    assert process.wait(30) == 0, screen
    os.close(ours)
    assert "New payments go through it from now on." in screen
    for secret in SECRETS:
        assert secret not in screen


def _converse(terminal: int, answers: dict[str, str]) -> str:
    """Answer each prompt once it is shown; all that was on the screen."""
    screen = ""
    for name, secret in answers.items():
        while not screen.endswith(f"{name}: "):
            screen += os.read(terminal, 1024).decode()
        os.write(terminal, f"{secret}\n".encode())
    with suppress(OSError):  # EIO: the other side has ended
        while part := os.read(terminal, 1024):
            screen += part.decode()
    return screen
