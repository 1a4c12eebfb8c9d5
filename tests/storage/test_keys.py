"""API keys on real PostgreSQL: stored nowhere, revoked at once; malformed keys cause no query."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import event, select, text

from payments_app.audit.model import AuditEntry
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.providers.contract import Mode
from payments_app.tenants.caller import Caller, hash_of, verify_key
from payments_app.tenants.errors import KeyNameInvalid, KeyNotFound, TenantSuspended
from payments_app.tenants.key_format import CHECKSUM_LENGTH, checksum, new_key
from payments_app.tenants.keys import (
    IssuedKey,
    NewKey,
    fingerprint,
    issue_key,
    list_keys,
    revoke_key,
)
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import (
    configure_tenant,
    create_tenant,
    resume_tenant,
    suspend_tenant,
)
from payments_app.tenants.scopes import DEFAULT_SCOPES

# A well-formed id of no row. Fixed: all test processes must collect the same names.
AN_ID = "01a209ad-4164-7047-9850-453984927403"


@pytest.fixture(autouse=True)
def _context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


@pytest.fixture
def tenant(_context: None) -> Tenant:
    return create_tenant(slug=f"t-{uuid4().hex[:12]}", actor="cli:ada")


def a_key(tenant: Tenant, mode: Mode = Mode.LIVE) -> IssuedKey:
    return issue_key(tenant, NewKey(mode=mode, name="till 1"), actor="cli:ada")


def with_another_secret(key: str) -> str:
    """The same prefix, a right checksum, a wrong secret."""
    unsigned = key[:-CHECKSUM_LENGTH]
    unsigned = unsigned[:-1] + ("A" if unsigned[-1] != "A" else "B")
    return unsigned + checksum(unsigned)


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that go to the database meanwhile."""
    seen: list[str] = []

    def note(*arguments: object) -> None:
        seen.append(str(arguments[2]))

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_key_proves_whose_it_is_with_all_that_a_request_needs(tenant: Tenant, mode: Mode) -> None:
    configure_tenant(
        tenant,
        actor="cli:ada",
        rate_limit="7 per minute",
        require_idempotency_key=True,
        default_provider="mtn_momo",
    )
    key = a_key(tenant, mode)
    assert verify_key(key.key) == Caller(
        tenant_id=tenant.id,
        tenant_slug=tenant.slug,
        key_id=key.id,
        mode=mode,
        require_idempotency_key=True,
        rate_limit="7 per minute",
        default_provider="mtn_momo",
        scopes=DEFAULT_SCOPES,
    )


def test_verifying_is_one_statement(tenant: Tenant) -> None:
    key = a_key(tenant)
    with statements() as seen:
        verify_key(key.key)
    assert len(seen) == 1


def test_a_key_is_stored_nowhere(tenant: Tenant) -> None:
    key = a_key(tenant)
    revoke_key(str(key.id), actor="cli:ada")
    secret = key.key.removeprefix(f"{key.prefix}_")
    everything = _whole_database()
    assert key.prefix in everything
    assert secret not in everything
    assert secret[:-CHECKSUM_LENGTH] not in everything
    assert key.key.encode().hex() not in everything


def _whole_database() -> str:
    """Every row of every table of ours, as text."""
    with transaction(EVERY_TENANT) as connection:
        tables = (
            connection.execute(
                text(
                    "SELECT quote_ident(table_name) FROM information_schema.tables"
                    " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
                )
            )
            .scalars()
            .all()
        )
        rows = [
            str(row)
            for table in tables
            for row in connection.execute(
                text(f"SELECT t::text FROM {table} t")  # noqa: S608  our own tables' names
            ).scalars()
        ]
    assert "api_keys" in tables
    return "\n".join(rows)


def test_a_revoked_key_opens_nothing_from_that_moment(tenant: Tenant) -> None:
    key, other = a_key(tenant), a_key(tenant)
    assert verify_key(key.key) is not None
    revoke_key(str(key.id), actor="cli:ada")
    assert verify_key(key.key) is None
    assert verify_key(other.key) is not None


@pytest.mark.parametrize("handle", ["id", "prefix", "key"])
def test_a_key_can_be_revoked_by_id_by_prefix_or_as_it_was_found(
    tenant: Tenant, handle: str
) -> None:
    key = a_key(tenant)
    revoke_key(str(getattr(key, handle)), actor="cli:ada")
    assert verify_key(key.key) is None


def test_revoking_twice_keeps_the_first_time_and_tells_it_once(tenant: Tenant) -> None:
    key = a_key(tenant)
    first = revoke_key(key.prefix, actor="cli:ada")
    again = revoke_key(key.prefix, actor="cli:bob")
    assert first.revoked_at == again.revoked_at is not None
    wanted = select(AuditEntry.action, AuditEntry.actor, AuditEntry.detail).where(
        AuditEntry.subject_id == str(key.id)
    )
    with transaction(EVERY_TENANT) as session:
        told = session.execute(wanted.order_by(AuditEntry.id)).all()
    detail = {
        "prefix": key.prefix,
        "mode": "live",
        "name": "till 1",
        "scopes": sorted(DEFAULT_SCOPES),
        "fingerprint": fingerprint(hash_of(key.key)),
    }
    assert [tuple(entry) for entry in told] == [
        ("key.issued", "cli:ada", detail),
        ("key.revoked", "cli:ada", detail),
    ]


@pytest.mark.parametrize("handle", [AN_ID, "", "nobody", "mara_live_short", "\0"])
def test_revoking_an_unknown_key_says_so(handle: str) -> None:
    with pytest.raises(KeyNotFound):
        revoke_key(handle, actor="cli:ada")


def test_an_error_about_a_key_does_not_repeat_it() -> None:
    _, unknown = new_key(Mode.LIVE)
    with pytest.raises(KeyNotFound) as raised:
        revoke_key(unknown, actor="cli:ada")
    assert unknown[-38:] not in str(raised.value)
    with pytest.raises(KeyNotFound) as raised:
        revoke_key(f"'{unknown}'", actor="cli:ada")
    assert unknown[-38:] not in str(raised.value)


def test_noise_and_typing_errors_ask_no_database(tenant: Tenant) -> None:
    key = a_key(tenant).key
    noise = ["", "x", "mara_live_", key[:-1], key + "0", key[:-1] + "!", key.upper(), "é" * 60]
    wrong_checksum = key[:-1] + ("0" if key[-1] != "0" else "1")
    with statements() as seen:
        assert [verify_key(text) for text in [*noise, wrong_checksum]] == [None] * 9
    assert seen == []


def test_an_unknown_prefix_and_a_wrong_secret_look_the_same(tenant: Tenant) -> None:
    key = a_key(tenant)
    _, unknown = new_key(Mode.LIVE)
    with statements() as for_unknown:
        assert verify_key(unknown) is None
    with statements() as for_wrong:
        assert verify_key(with_another_secret(key.key)) is None
    assert for_unknown == for_wrong
    assert len(for_wrong) == 1


def test_a_live_key_does_not_pass_as_a_test_key(tenant: Tenant) -> None:
    unsigned = a_key(tenant).key[:-CHECKSUM_LENGTH].replace("mara_live_", "mara_test_")
    assert verify_key(unsigned + checksum(unsigned)) is None


def test_a_suspended_tenant_is_told_so_but_only_to_its_own_keys(tenant: Tenant) -> None:
    key, revoked = a_key(tenant), a_key(tenant)
    revoke_key(str(revoked.id), actor="cli:ada")
    suspend_tenant(tenant, actor="cli:ada")
    with pytest.raises(TenantSuspended):
        verify_key(key.key)
    assert verify_key(with_another_secret(key.key)) is None
    assert verify_key(revoked.key) is None
    resume_tenant(tenant, actor="cli:ada")
    assert verify_key(key.key) is not None


def test_keys_are_listed_newest_first_and_only_the_tenants_own(tenant: Tenant) -> None:
    other = create_tenant(slug=f"o-{uuid4().hex[:12]}", actor="cli:ada")
    first, second, _ = a_key(tenant), a_key(tenant, Mode.TEST), a_key(other)
    assert [key.id for key in list_keys(tenant)] == [second.id, first.id]
    assert list_keys(create_tenant(slug=f"e-{uuid4().hex[:12]}", actor="cli:ada")) == []


@pytest.mark.parametrize("name", ["x" * 101, "two\nlines", "\x1b[31mred"])
def test_an_odd_name_is_refused_and_no_key_is_made(tenant: Tenant, name: str) -> None:
    with pytest.raises(KeyNameInvalid):
        issue_key(tenant, NewKey(mode=Mode.LIVE, name=name), actor="cli:ada")
    assert list_keys(tenant) == []
