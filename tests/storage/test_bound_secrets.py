"""A secret can be decrypted only in its own row, with the address that it was stored for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest
from cryptography.fernet import Fernet
from flask import Flask

from payments_app.kernel.secrets import Cipher, SecretUnreadable, about, is_bound
from payments_app.providers.contract import Mode
from payments_app.tenants.accounts import NewAccount, ProviderAccounts, list_accounts, set_account
from payments_app.tenants.errors import ProviderAccountUnreadable
from payments_app.tenants.model import Tenant
from payments_app.tenants.rotation import ENCRYPTED_COLUMNS, look_at_secrets, rotate_secrets
from payments_app.webhooks.encrypted_columns import WEBHOOK_ENCRYPTED_COLUMNS
from payments_app.webhooks.endpoints import Owner
from tests.builders import a_tenant, an_endpoint
from tests.storage.attacker import EVERY_ROW
from tests.storage.bending import LAWLESS

ADDRESS = "https://momo.example"
THEIRS = {"collection_api_key": "theirs"}


@pytest.fixture
def us(database_url: str) -> Iterator[psycopg.Connection]:
    """SQL with the rights of the application's role."""
    with psycopg.connect(database_url, options=EVERY_ROW, autocommit=True) as connection:
        yield connection


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(administrator_url, options=LAWLESS, autocommit=True) as connection:
        yield connection


@pytest.fixture
def cipher(app: Flask) -> Cipher:
    found: Cipher = app.extensions["maramoja"].cipher
    return found


def an_account(cipher: Cipher, key: str, address: str = ADDRESS) -> Tenant:
    tenant = a_tenant()
    new = NewAccount("mtn_momo", Mode.LIVE, address, "mtnzambia", {"collection_api_key": key})
    set_account(tenant, new, cipher=cipher, actor="cli:test")
    return tenant


def opened(cipher: Cipher, tenant: Tenant, mode: Mode = Mode.LIVE) -> str:
    accounts = ProviderAccounts((), cipher)
    found = accounts.find(tenant_id=tenant.id, provider="mtn_momo", mode=mode)
    return str(found.credentials["collection_api_key"])


def unbind(us: psycopg.Connection, cipher: Cipher, tenant: Tenant, key: str) -> None:
    """Store the key unbound, as earlier releases did."""
    us.execute(
        "UPDATE provider_accounts SET credentials = %s WHERE tenant_id = %s",
        [cipher.encrypt(json.dumps({"collection_api_key": key})), tenant.id],
    )


COPY = (
    "UPDATE provider_accounts SET credentials ="
    " (SELECT credentials FROM provider_accounts WHERE tenant_id = %s) WHERE tenant_id = %s"
)


def test_another_tenants_credentials_open_nothing(us: psycopg.Connection, cipher: Cipher) -> None:
    mine, theirs = an_account(cipher, "mine"), an_account(cipher, "theirs")
    us.execute(COPY, [theirs.id, mine.id])
    with pytest.raises(ProviderAccountUnreadable):
        opened(cipher, mine)
    assert list_accounts(mine, cipher)[0].credentials == {"unreadable": "*"}
    assert opened(cipher, theirs) == "theirs"


@pytest.mark.parametrize(
    "change",
    [
        "base_url = 'https://elsewhere.example'",
        "base_url = base_url || '/'",
        "target_environment = 'mtnuganda'",
        "mode = 'test', target_environment = 'sandbox'",
        "tenant_id = (SELECT id FROM tenants WHERE id <> tenant_id LIMIT 1)",
    ],
)
def test_with_anything_changed_that_decides_where_they_go_they_open_nothing(
    superuser: psycopg.Connection, cipher: Cipher, change: str
) -> None:
    """A superuser changes it: the application's role lacks the right, and a trigger refuses it."""
    mine = an_account(cipher, "mine")
    other = a_tenant()
    superuser.execute(f"UPDATE provider_accounts SET {change}".encode())  # noqa: S608  the test's own
    for tenant in (mine, other):
        for account in list_accounts(tenant, cipher):
            assert account.credentials == {"unreadable": "*"}
    stored = look_at_secrets(cipher, ENCRYPTED_COLUMNS)
    assert [kind for kind, _ in stored.unreadable] == ["provider_account"]


def test_what_was_stored_unbound_is_read_and_bound_by_a_rotation(
    us: psycopg.Connection, cipher: Cipher
) -> None:
    mine, theirs = an_account(cipher, "mine"), an_account(cipher, "theirs")
    for tenant, key in ((mine, "mine"), (theirs, "theirs")):
        unbind(us, cipher, tenant, key)
    assert opened(cipher, theirs) == "theirs"
    assert len(look_at_secrets(cipher, ENCRYPTED_COLUMNS).unbound) == 2

    done = rotate_secrets(cipher, ENCRYPTED_COLUMNS, actor="cli:test")

    assert done.unreadable == ()
    assert look_at_secrets(cipher, ENCRYPTED_COLUMNS).unbound == []
    assert (opened(cipher, mine), opened(cipher, theirs)) == ("mine", "theirs")
    us.execute(COPY, [theirs.id, mine.id])
    with pytest.raises(ProviderAccountUnreadable):
        opened(cipher, mine)
    again = rotate_secrets(cipher, ENCRYPTED_COLUMNS, actor="cli:test")
    assert len(again.unreadable) == 1


def test_an_endpoint_signs_with_no_other_endpoints_secret(
    us: psycopg.Connection, cipher: Cipher
) -> None:
    mine, theirs = (an_endpoint(Owner(a_tenant().id, "live")).endpoint for _ in range(2))
    assert look_at_secrets(cipher, WEBHOOK_ENCRYPTED_COLUMNS).unreadable == []
    us.execute(
        "UPDATE webhook_endpoints SET previous_secret ="
        " (SELECT secret FROM webhook_endpoints WHERE id = %s) WHERE id = %s",
        [theirs.id, mine.id],
    )
    stored = look_at_secrets(cipher, WEBHOOK_ENCRYPTED_COLUMNS)
    assert stored.unreadable == [("webhook_endpoint", mine.id)]
    assert stored.unbound == []


# --- the cipher ---------------------------------------------------------------------------------


def test_it_opens_for_what_it_is_about_and_for_nothing_else() -> None:
    cipher = Cipher([Fernet.generate_key().decode()])
    sealed = cipher.encrypt("s3cret", about=about("place", 1, "a"))
    assert is_bound(sealed)
    assert cipher.decrypt(sealed, about=about("place", 1, "a")) == "s3cret"
    for other in (None, "", about("place", 1, "b"), about("place", "1a"), about("place", 1)):
        with pytest.raises(SecretUnreadable):
            cipher.decrypt(sealed, about=other)
    with pytest.raises(SecretUnreadable):
        cipher.decrypt(f"e1{sealed[2:]}", about=about("place", 1, "a"))
    assert about("a", "b c") != about("a b", "c") != about("a", "b", "c")


def test_a_bound_secret_stays_as_it_is_under_a_newer_key() -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    before = Cipher([old]).encrypt("s3cret", about="here")
    cipher = Cipher([new, old])
    after = cipher.rotate(before, about="here")
    assert not cipher.is_current(before, about="here")
    assert cipher.is_current(after, about="here")
    assert before.split(".")[2] == after.split(".")[2]
    assert Cipher([new]).decrypt(after, about="here") == "s3cret"
    with pytest.raises(SecretUnreadable):
        cipher.rotate(before, about="there")
