"""Which account a payment uses, on real PostgreSQL; a test key never moves real money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from payments_app.audit.model import AuditEntry
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import Mode, ProviderAccount
from payments_app.tenants.accounts import (
    STALE_MAX_S,
    NewAccount,
    ProviderAccounts,
    list_accounts,
    set_account,
)
from payments_app.tenants.errors import (
    ProviderAccountInvalid,
    ProviderAccountMoved,
    ProviderAccountUnreadable,
    ProviderNotEnabled,
)
from payments_app.tenants.model import ProviderCredentials, Tenant
from payments_app.tenants.registry import create_tenant

SECRET = "5ec2e7-of-the-tenant-0123456789"
CIPHER = Cipher([Fernet.generate_key().decode()])
SANDBOX = NewAccount(
    provider="mtn_momo",
    mode=Mode.TEST,
    base_url="https://sandbox.example",
    target_environment="sandbox",
    credentials={"collection_api_key": SECRET},
)
UGANDA = replace(
    SANDBOX, mode=Mode.LIVE, base_url="https://live.example", target_environment="mtnuganda"
)
PLATFORM_LIVE = ProviderAccount(
    id=None,
    provider="mtn_momo",
    mode=Mode.LIVE,
    base_url="https://live.example",
    target_environment="mtnuganda",
    credentials={"collection_api_key": "platform"},
    version="platform",
)
PLATFORM_SANDBOX = replace(PLATFORM_LIVE, mode=Mode.TEST, target_environment="sandbox")


@pytest.fixture(autouse=True)
def _context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


@pytest.fixture
def tenant(_context: None) -> Tenant:
    return create_tenant(slug=f"t-{uuid4().hex[:12]}", actor="cli:ada")


class Hand:
    """A clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def accounts(*platform: ProviderAccount, clock: Hand | None = None) -> ProviderAccounts:
    return ProviderAccounts(platform, CIPHER, seconds=clock or Hand())


def store(tenant: Tenant, new: NewAccount, *, may_move: bool = False) -> UUID:
    return set_account(tenant, new, cipher=CIPHER, actor="cli:ada", may_move=may_move).id


def found(book: ProviderAccounts, tenant: Tenant, mode: Mode = Mode.LIVE) -> ProviderAccount:
    return book.find(tenant_id=tenant.id, provider="mtn_momo", mode=mode)


def opened(
    book: ProviderAccounts, tenant: Tenant, account_id: UUID | None, mode: Mode = Mode.LIVE
) -> ProviderAccount:
    return book.open(tenant_id=tenant.id, provider="mtn_momo", mode=mode, account_id=account_id)


def test_the_tenants_own_account_comes_before_the_platforms(tenant: Tenant) -> None:
    own_id = store(tenant, UGANDA)
    account = found(accounts(PLATFORM_LIVE), tenant)
    assert (account.id, account.credentials) == (own_id, {"collection_api_key": SECRET})
    assert account.version == f"{own_id}:1"


def test_without_an_own_account_the_platforms_serves(tenant: Tenant) -> None:
    assert found(accounts(PLATFORM_LIVE), tenant) is PLATFORM_LIVE


def test_another_tenants_account_is_never_found_or_opened(tenant: Tenant) -> None:
    other_id = store(create_tenant(slug=f"o-{uuid4().hex[:12]}", actor="cli:ada"), UGANDA)
    book = accounts()
    with pytest.raises(ProviderNotEnabled):
        found(book, tenant)
    with pytest.raises(ProviderNotEnabled):
        opened(book, tenant, other_id)


def test_each_mode_has_its_own_account(tenant: Tenant) -> None:
    live_id, test_id = store(tenant, UGANDA), store(tenant, SANDBOX)
    book = accounts()
    assert found(book, tenant, Mode.LIVE).id == live_id
    assert found(book, tenant, Mode.TEST).id == test_id
    with pytest.raises(ProviderNotEnabled):
        opened(book, tenant, live_id, Mode.TEST)


def test_a_test_key_never_reaches_a_platform_account_that_moves_money(tenant: Tenant) -> None:
    with pytest.raises(ProviderNotEnabled):
        found(accounts(PLATFORM_LIVE), tenant, Mode.TEST)
    with pytest.raises(ProviderNotEnabled):
        opened(accounts(PLATFORM_LIVE), tenant, None, Mode.TEST)


def test_a_test_key_uses_the_platforms_sandbox_and_a_live_key_its_live_account(
    tenant: Tenant,
) -> None:
    book = accounts(PLATFORM_SANDBOX, PLATFORM_LIVE)
    assert found(book, tenant, Mode.TEST) is PLATFORM_SANDBOX
    assert found(book, tenant, Mode.LIVE) is PLATFORM_LIVE


def test_a_live_key_finds_no_sandbox_and_what_it_has_taken_there_goes_on(tenant: Tenant) -> None:
    with pytest.raises(ProviderNotEnabled) as refused:
        found(accounts(PLATFORM_SANDBOX), tenant)
    assert "sandbox" in refused.value.detail
    # A payment that an earlier release accepted, which did not refuse this.
    assert opened(accounts(PLATFORM_SANDBOX), tenant, None) is PLATFORM_SANDBOX


def test_a_live_account_that_is_a_sandbox_is_refused_when_stored(tenant: Tenant) -> None:
    with pytest.raises(ProviderAccountInvalid):
        store(tenant, replace(SANDBOX, mode=Mode.LIVE))


def test_a_test_account_that_moves_money_is_refused_when_stored(tenant: Tenant) -> None:
    with pytest.raises(ProviderAccountInvalid):
        store(tenant, replace(UGANDA, mode=Mode.TEST))


def test_a_test_account_that_was_bent_in_the_database_is_refused_when_used(tenant: Tenant) -> None:
    account_id = store(tenant, SANDBOX)
    bent = update(ProviderCredentials).where(ProviderCredentials.id == account_id)
    try:
        with transaction(EVERY_TENANT) as session:
            session.execute(bent.values(target_environment="mtnuganda"))
    except DBAPIError:  # the database may refuse it, which is as good
        return
    with pytest.raises(ProviderNotEnabled):
        found(accounts(PLATFORM_SANDBOX), tenant, Mode.TEST)


def test_a_payment_in_flight_keeps_the_account_it_was_accepted_for(tenant: Tenant) -> None:
    book = accounts(PLATFORM_LIVE)
    own_id = store(tenant, UGANDA)
    assert opened(book, tenant, None) is PLATFORM_LIVE
    assert opened(book, tenant, own_id).id == own_id
    with pytest.raises(ProviderNotEnabled):
        opened(book, tenant, uuid4())


def test_nothing_set_up_is_not_enabled(tenant: Tenant) -> None:
    book = accounts(PLATFORM_LIVE)
    with pytest.raises(ProviderNotEnabled):
        book.find(tenant_id=tenant.id, provider="airtel_money", mode=Mode.LIVE)
    with pytest.raises(ProviderNotEnabled):
        opened(accounts(), tenant, None)


def test_new_credentials_are_a_new_version_in_force_within_the_stated_time(tenant: Tenant) -> None:
    clock = Hand()
    book = accounts(clock=clock)
    own_id = store(tenant, UGANDA)
    assert found(book, tenant).version == f"{own_id}:1"
    store(tenant, replace(UGANDA, credentials={"collection_api_key": "renewed"}))
    clock.now += STALE_MAX_S
    assert found(book, tenant).version == f"{own_id}:2"
    assert found(book, tenant).credentials == {"collection_api_key": "renewed"}


def test_a_remembered_account_costs_no_read_and_forgetting_brings_the_news(tenant: Tenant) -> None:
    book = accounts(PLATFORM_LIVE)
    assert found(book, tenant) is PLATFORM_LIVE
    own_id = store(tenant, UGANDA)
    assert found(book, tenant) is PLATFORM_LIVE
    book.forget()
    assert found(book, tenant).id == own_id


def test_what_is_read_while_the_rest_is_forgotten_is_not_kept(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Hand()
    book = accounts(PLATFORM_LIVE, clock=clock)
    read = book._read_own

    def slowly(*place: Any) -> ProviderAccount | None:
        account = read(*place)
        clock.now += 1
        book.forget()
        return account

    monkeypatch.setattr(book, "_read_own", slowly)
    assert found(book, tenant) is PLATFORM_LIVE
    own_id = store(tenant, UGANDA)
    assert found(book, tenant).id == own_id


def test_an_account_is_found_within_a_transaction_too(tenant: Tenant) -> None:
    own_id = store(tenant, UGANDA)
    with transaction(EVERY_TENANT) as session:
        session.execute(text("SELECT 1"))
        assert found(accounts(), tenant).id == own_id


def test_an_account_does_not_move_while_payments_may_be_in_flight(tenant: Tenant) -> None:
    store(tenant, UGANDA)
    elsewhere = replace(UGANDA, target_environment="mtnghana")
    with pytest.raises(ProviderAccountMoved):
        store(tenant, elsewhere)
    with pytest.raises(ProviderAccountMoved):
        store(tenant, replace(UGANDA, base_url="https://elsewhere.example"))
    assert found(accounts(), tenant).target_environment == "mtnuganda"
    store(tenant, elsewhere, may_move=True)
    assert found(accounts(), tenant).target_environment == "mtnghana"


def test_credentials_rest_encrypted_are_listed_masked_and_audited_by_name(tenant: Tenant) -> None:
    short = replace(UGANDA, credentials={"collection_api_key": SECRET, "collection_pin": "1234"})
    store(tenant, short)
    with transaction(EVERY_TENANT) as connection:
        rows = connection.execute(
            text(
                "SELECT t::text FROM provider_accounts t UNION ALL"
                " SELECT t::text FROM audit_entries t"
            )
        ).scalars()
        assert SECRET not in "\n".join(rows)
    (view,) = list_accounts(tenant, CIPHER)
    assert view.credentials == {
        "collection_api_key": f"********{SECRET[-4:]}",
        "collection_pin": "********",
    }
    wanted = select(AuditEntry.detail).where(AuditEntry.subject_id == str(view.id))
    with transaction(EVERY_TENANT) as session:
        (detail,) = session.scalars(wanted)
    assert detail["credentials"] == ["collection_api_key", "collection_pin"]


def test_a_missing_key_says_so_without_the_ciphertext(tenant: Tenant) -> None:
    store(tenant, UGANDA)
    stranger = Cipher([Fernet.generate_key().decode()])
    with pytest.raises(ProviderAccountUnreadable) as raised:
        found(ProviderAccounts((), stranger), tenant)
    assert "gAAAA" not in str(raised.value)
    (view,) = list_accounts(tenant, stranger)
    assert view.credentials == {"unreadable": "*"}


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "ftp://x"},
        {"base_url": "https://"},
        {"base_url": "sandbox.example"},
        {"base_url": "https://user:pass@x"},
        {"base_url": "https://x/?key=1"},
        {"base_url": "https://x\n"},
        {"target_environment": ""},
        {"target_environment": "two words"},
        {"credentials": {"collection_api_key": ""}},
        {"credentials": {"collection_api_key": "with\r\nnewline"}},
        {"credentials": {"collection_api_key": " padded "}},
    ],
)
def test_a_malformed_account_is_refused(tenant: Tenant, change: dict[str, object]) -> None:
    with pytest.raises(ProviderAccountInvalid):
        store(tenant, replace(UGANDA, **change))  # type: ignore[arg-type]
    assert list_accounts(tenant, CIPHER) == []
