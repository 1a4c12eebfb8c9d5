"""Keys and accounts match the audit trail: our role can't widen them, and verify names changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask

from payments_app.audit.chain import Fault
from payments_app.audit.record import record
from payments_app.integrity.verification import verify_record
from payments_app.kernel.database import transaction
from payments_app.providers.contract import Mode
from payments_app.tenants.accounts import AccountView, NewAccount, set_account
from payments_app.tenants.keys import IssuedKey, NewKey, issue_key, revoke_key, rotate_key
from payments_app.tenants.model import Tenant
from payments_app.tenants.scopes import Scope
from tests.builders import a_tenant
from tests.storage.attacker import EVERY_ROW, Attacker
from tests.storage.bending import LAWLESS, Superuser, another

KEYS = "api_keys"
ACCOUNTS = "provider_accounts"
READER = NewKey(Mode.TEST, "reader", frozenset({Scope.PAYMENTS_READ}), lifetime=timedelta(days=9))


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


@pytest.fixture
def us(database_url: str) -> Iterator[Attacker]:
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        yield Attacker(connection, "application")
        connection.rollback()


@pytest.fixture
def owner(migration_database_url: str) -> Iterator[Attacker]:
    with psycopg.connect(migration_database_url, options=EVERY_ROW) as connection:
        yield Attacker(connection, "owner")
        connection.rollback()


@pytest.fixture
def tenant() -> Tenant:
    return a_tenant()


@pytest.fixture
def key(tenant: Tenant) -> IssuedKey:
    return issue_key(tenant, READER, actor="cli:ada")


@pytest.fixture
def account(app: Flask, tenant: Tenant) -> AccountView:
    address, cipher = "https://momo.example", app.extensions["maramoja"].cipher
    new = NewAccount("mtn_momo", Mode.LIVE, address, "mtnzambia", {"api_key": "secret"})
    return set_account(tenant, new, cipher=cipher, actor="cli:ada")


def fault() -> Fault | None:
    return verify_record(None, on_row=lambda: None).fault


def told() -> tuple[str, str] | None:
    found = fault()
    return found and (found.table, found.problem.value)


# --- what the database refuses -----------------------------------------------------------------

CHANGES = {
    "more scopes": "scopes = '{payments:read,payments:write}'",
    "another tenant": "tenant_id = (SELECT id FROM tenants WHERE id <> tenant_id LIMIT 1)",
    "another mode": "mode = 'live'",
    "from anywhere": "networks = '{0.0.0.0/0}'",
    "another secret": "key_hash = sha256('x')",
    "another prefix": "prefix = 'mara_test_xxxxxxxxxx'",
}
ENDS = {
    "no revocation": "revoked_at = NULL",
    "a later revocation": "revoked_at = revoked_at + interval '1 day'",
    "no end": "expires_at = NULL",
    "a later end": "expires_at = expires_at + interval '1 day'",
}


@pytest.mark.parametrize("change", CHANGES)
def test_our_role_has_no_right_to_make_a_key_another_one(
    us: Attacker, owner: Attacker, key: IssuedKey, change: str
) -> None:
    assert key
    a_tenant()
    update = f"UPDATE api_keys SET {CHANGES[change]}"  # noqa: S608  the test's own
    assert us.refusal_of(lambda: us.run(update)).startswith("InsufficientPrivilege")
    assert owner.refusal_of(lambda: owner.run(update)).startswith("RestrictViolation: what a row")


@pytest.mark.parametrize("change", ENDS)
def test_nobody_takes_back_a_keys_end(
    us: Attacker, owner: Attacker, key: IssuedKey, change: str
) -> None:
    revoke_key(str(key.id), actor="cli:ada")
    update = f"UPDATE api_keys SET {ENDS[change]}"  # noqa: S608  the test's own
    for one in (us, owner):
        refused = one.refusal_of(lambda one=one: one.run(update))  # type: ignore[misc]
        assert refused.startswith("RestrictViolation: what a row of api_keys is"), one.role


def test_an_end_may_come_earlier(us: Attacker, key: IssuedKey) -> None:
    assert key
    us.run("UPDATE api_keys SET expires_at = expires_at - interval '1 day', revoked_at = now()")


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("provider_accounts", "mode = 'test', target_environment = 'sandbox'"),
        ("provider_accounts", "provider = 'another'"),
        ("provider_accounts", "tenant_id = (SELECT id FROM tenants WHERE id <> tenant_id LIMIT 1)"),
        ("tenants", "slug = 'another'"),
        ("tenants", "id = gen_random_uuid()"),
    ],
)
def test_nor_does_anything_else_become_another_one(
    us: Attacker, owner: Attacker, account: AccountView, table: str, change: str
) -> None:
    assert account
    a_tenant()
    update = f"UPDATE {table} SET {change}"  # noqa: S608  the test's own
    assert us.refusal_of(lambda: us.run(update)).startswith("InsufficientPrivilege")
    assert owner.refusal_of(lambda: owner.run(update)).startswith("RestrictViolation: what a row")


# --- what verify finds -------------------------------------------------------------------------


def test_a_key_that_was_used_rotated_and_revoked_is_whole(
    tenant: Tenant, key: IssuedKey, superuser: Superuser, account: AccountView
) -> None:
    assert account
    other = issue_key(tenant, NewKey(Mode.LIVE), actor="cli:ada")
    rotate_key(str(other.id), overlap=timedelta(hours=1), actor="cli:ada")
    rotate_key(str(key.id), overlap=timedelta(days=99), actor="cli:ada")
    rotate_key(str(key.id), overlap=timedelta(hours=2), actor="cli:ada")
    revoke_key(str(key.id), actor="cli:ada")
    superuser.run("UPDATE api_keys SET last_used_at = now()")
    assert fault() is None


@pytest.mark.parametrize(
    ("table", "unwatched"),
    [
        (KEYS, {"created_at", "last_used_at"}),
        (ACCOUNTS, {"created_at", "updated_at"}),
    ],
)
def test_one_byte_in_any_column(
    superuser: Superuser, key: IssuedKey, account: AccountView, table: str, unwatched: set[str]
) -> None:
    row_id: Any = key.id if table == KEYS else account.id
    row = superuser.row(table, row_id)
    missed = set()
    for column, data_type in superuser.columns(table).items():
        bent = {
            "mode": "live" if table == KEYS else "test",
            "scopes": ["payments:read", "payments:write"],
            "networks": ["192.0.2.0/24"],
            "revoked_at": "2026-11-01T00:00:00+00:00",
            "last_used_at": "2026-11-01T00:00:00+00:00",
        }.get(column) or another(row[column], data_type)
        # The table's CHECK requires that a test account is a sandbox's.
        and_so = {"target_environment": "sandbox"} if (table, column) == (ACCOUNTS, "mode") else {}
        with superuser.bent(table, row_id, **{column: bent}, **and_so):
            if told() not in ((table, "altered"), (table, "missing"), (table, "inserted")):
                missed.add(column)
    assert missed == unwatched
    assert fault() is None


def test_a_key_that_is_no_more_revoked(superuser: Superuser, key: IssuedKey) -> None:
    revoke_key(str(key.id), actor="cli:ada")
    with superuser.bent(KEYS, key.id, revoked_at=None):
        found = fault()
    assert found is not None
    assert (found.table, found.row, found.problem.value) == (KEYS, f"id {key.id}", "altered")
    assert found.detail.endswith("revoked_at")


def test_a_key_that_nobody_issued_and_one_that_is_gone(
    us: Attacker, superuser: Superuser, key: IssuedKey
) -> None:
    assert key.mode == "test"
    us.run(
        "INSERT INTO api_keys (id, tenant_id, prefix, key_hash, mode)"
        " SELECT gen_random_uuid(), id, 'planted', sha256('x'), 'live' FROM tenants"
    )
    us.connection.commit()
    assert told() == (KEYS, "inserted")
    superuser.run("DELETE FROM api_keys")
    assert told() == (KEYS, "missing")


@pytest.mark.parametrize(
    "detail",
    [
        {"prefix": 1, "scopes": 7, "networks": {}},
        {"scopes": sorted(Scope)},
        {"expires_at": "soon", "networks": 3},
    ],
)
@pytest.mark.parametrize("action", ["key.issued", "key.rotated", "key.revoked"])
def test_an_entry_that_tells_of_more_makes_no_more_of_a_key(
    tenant: Tenant, key: IssuedKey, action: str, detail: dict[str, object]
) -> None:
    """An attacker with our role may add entries: `verify` names the key that they are about."""
    with transaction(tenant.id) as session:
        record(
            session,
            tenant_id=tenant.id,
            actor="cli:eve",
            action=action,
            subject_type="api_key",
            subject_id=key.id,
            detail=detail,
        )
    assert told() == (KEYS, "altered")
