"""Encryption keys are rotated while everything runs; then an old one can be removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import text

from devstack.postgres_server import PostgresServer
from devstack.supervisor import wait_until
from payments_app import create_app
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.kernel.http.egress import EgressRules
from payments_app.kernel.secrets import Cipher, SecretUnreadable
from payments_app.providers.contract import Mode
from payments_app.settings import Settings
from payments_app.tenants.accounts import NewAccount, set_account
from payments_app.tenants.errors import ProviderAccountUnreadable
from payments_app.tenants.model import Tenant
from payments_app.webhooks.endpoints import EndpointChanges, Owner, add_endpoint
from tests.builders import a_tenant
from tests.commands.conftest import Commands
from tests.nobodys_addresses import NOBODYS_URL

MakeApp = Callable[..., Flask]
ACCOUNT = NewAccount(
    "mtn_momo", Mode.LIVE, "https://momo.example", "mtnuganda", {"collection_api_key": "s3cret"}
)

# A backend that waits for another's lock.
WAITING = (
    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


def new_key() -> str:
    return Fernet.generate_key().decode()


@pytest.fixture
def keyed(settings: Settings) -> Iterator[MakeApp]:
    """`keyed("new", "old")`: an installation with these SECRET_KEYS."""
    made: list[Flask] = []

    def make(*keys: str) -> Flask:
        made.append(create_app(replace(settings, secret_keys=keys)))
        return made[-1]

    yield make
    for app in made:
        with app.app_context():
            db.engine.dispose()
        app.extensions["maramoja"].redis.close()


def store(app: Flask, tenant: Tenant) -> None:
    with app.app_context():
        set_account(tenant, ACCOUNT, cipher=app.extensions["maramoja"].cipher, actor="cli:test")


def secret(app: Flask, tenant: Tenant) -> str:
    accounts = app.extensions["maramoja"].accounts
    accounts.forget()
    with app.app_context():
        found = accounts.find(tenant_id=tenant.id, provider="mtn_momo", mode=Mode.LIVE)
    return str(found.credentials["collection_api_key"])


@pytest.fixture
def tenant(app: Flask) -> Iterator[Tenant]:
    """A tenant whose credentials are emptied after: the next test's keys can't decrypt them."""
    with app.app_context():
        made = a_tenant()
    yield made
    with app.app_context(), transaction(EVERY_TENANT) as session:
        session.execute(
            text("UPDATE provider_accounts SET credentials = :c WHERE tenant_id = :t"),
            {"c": app.extensions["maramoja"].cipher.encrypt("{}"), "t": made.id},
        )


def test_after_a_rotation_the_old_key_can_be_left_out(keyed: MakeApp, tenant: Tenant) -> None:
    old, new = new_key(), new_key()
    store(keyed(old), tenant)
    both = keyed(new, old)
    assert secret(both, tenant) == "s3cret"

    rotated = Commands(both)("secrets rotate --json")

    assert rotated.document["rewrapped"] >= 1
    assert secret(both, tenant) == "s3cret"
    assert secret(keyed(new), tenant) == "s3cret"
    with pytest.raises(ProviderAccountUnreadable):
        secret(keyed(old), tenant)
    again = Commands(both)("secrets rotate --json")
    assert again.document["rewrapped"] == 0
    listed = Commands(both)("audit", "list", tenant.slug, "--json").document["data"]
    assert [entry["action"] for entry in listed].count("provider_account.rewrapped") == 1


def test_what_no_key_opens_is_named_and_stays_as_it_is(keyed: MakeApp, tenant: Tenant) -> None:
    old, new = new_key(), new_key()
    store(keyed(old), tenant)

    rotated = Commands(keyed(new))("secrets rotate --json")

    assert rotated.code == 1
    assert rotated.document["unreadable"]
    assert secret(keyed(old), tenant) == "s3cret"


def test_it_is_read_all_the_while(keyed: MakeApp, tenant: Tenant) -> None:
    keys = [new_key() for _ in range(4)]
    store(keyed(keys[0]), tenant)
    reader, stop = keyed(*reversed(keys)), threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(secret(reader, tenant))

    def await_reads() -> None:
        """Wait for one that begins from now on: the next may have begun before."""
        wanted = len(seen) + 2
        wait_until(lambda: len(seen) >= wanted, what="it is not read", limit_s=30)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        await_reads()
        for number in range(1, 4):
            assert Commands(keyed(*reversed(keys[: number + 1])))("secrets rotate --json").document[
                "rewrapped"
            ]
            await_reads()
    finally:
        stop.set()
        thread.join()
    assert set(seen) == {"s3cret"}


def test_a_secret_that_is_taken_away_meanwhile_is_no_unreadable_one(
    keyed: MakeApp, tenant: Tenant, postgres_server: PostgresServer, database_name: str
) -> None:
    old, new = new_key(), new_key()
    with keyed(old).app_context():
        owner = Owner(tenant.id, Mode.LIVE)
        wanted = EndpointChanges(url=NOBODYS_URL)
        rules, cipher = EgressRules(), Cipher([old])
        made = add_endpoint(owner, wanted, cipher=cipher, rules=rules, actor="cli:test")
    rotate = Commands(keyed(new, old))
    administrator_url = postgres_server.administrator_url(database_name)

    with (
        ThreadPoolExecutor(1) as threads,
        psycopg.connect(administrator_url, autocommit=True) as watcher,
        psycopg.connect(administrator_url) as owners,
    ):
        owners.execute(
            "UPDATE webhook_endpoints SET secret = NULL, deleted_at = now(), disabled_at = now(),"
            " status = 'disabled' WHERE id = %s",
            (made.endpoint.id,),
        )
        rotated = threads.submit(rotate, "secrets rotate --json")
        while not watcher.execute(WAITING).fetchone() and not rotated.done():
            pass
        owners.commit()

    assert str(made.endpoint.id) not in rotated.result().document["unreadable"]


def test_a_value_from_before_there_were_envelopes_is_read_and_put_into_one() -> None:
    old, new = new_key(), new_key()
    plain = Fernet(old.encode()).encrypt(b"s3cret").decode()
    cipher = Cipher([new, old])

    assert cipher.decrypt(plain) == "s3cret"
    assert not cipher.is_current(plain)
    assert Cipher([new]).decrypt(cipher.rotate(plain)) == "s3cret"


def test_rotation_changes_the_small_key_and_not_the_secret() -> None:
    old, new = new_key(), new_key()
    before = Cipher([old]).encrypt("s3cret")
    after = Cipher([new, old]).rotate(before)

    assert before.split(".")[2] == after.split(".")[2]
    assert before.split(".")[1] != after.split(".")[1]
    assert Cipher([new, old]).rotate(after) == after


@pytest.mark.parametrize("broken", ["", "e1.", "e1.a.b", "e1.a", "nonsense", "e2.a.b"])
def test_what_is_no_ciphertext_is_unreadable(broken: str) -> None:
    cipher = Cipher([new_key()])
    with pytest.raises(SecretUnreadable):
        cipher.decrypt(broken)
    assert not cipher.is_current(broken)
