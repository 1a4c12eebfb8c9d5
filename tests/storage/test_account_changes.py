"""A tenant's account changes while processes have the old one cached: no payment gets stuck."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask, current_app

from payments_app.payments.accept import Accepted
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.operations import refuse_other_merchant
from payments_app.providers.contract import Mode, ProviderAccount
from payments_app.tenants.accounts import NewAccount, set_account
from payments_app.tenants.errors import ProviderAccountMoved
from payments_app.tenants.model import Tenant
from tests.builders import (
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    a_tenant,
    advance,
    an_accepted_payment,
    an_asker,
    await_lock_waits,
    make_due,
    payment_row,
    rails_of,
)
from tests.storage.attacker import EVERY_ROW


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider()


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


@pytest.fixture
def tenant(app: Flask) -> Iterator[Tenant]:
    with app.app_context():
        yield a_tenant()


def give(tenant: Tenant, merchant: str) -> UUID:
    """Set the account as `flask providers set` or another process does: caches here stay."""
    account = NewAccount(
        provider=SCRIPTED,
        mode=Mode.LIVE,
        base_url="http://127.0.0.1:1",
        target_environment="real",
        credentials={"merchant": merchant},
    )
    cipher = current_app.extensions["maramoja"].cipher
    same = partial(refuse_other_merchant, merchant=merchant)
    return set_account(tenant, account, cipher=cipher, actor="cli:test", before_change=same).id


def end(payment_id: UUID, gateway: PaymentGateway) -> None:
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    assert payment_row(payment_id).status == "SUCCESSFUL"


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("key", [None, uuid4()])
@pytest.mark.parametrize("before", [None, "first shop"])
def test_a_changed_account_takes_the_very_next_payment(
    gateway: PaymentGateway,
    provider: ScriptedProvider,
    tenant: Tenant,
    before: str | None,
    key: UUID | None,
) -> None:
    if before is not None:
        give(tenant, before)
    caller = a_caller(tenant=tenant)
    earlier = an_accepted_payment(gateway, context=an_asker(caller=caller))
    assert payment_row(earlier.payment_id).merchant == (before or "shop")
    end(earlier.payment_id, gateway)

    account_id = give(tenant, "second shop")
    row = payment_row(
        an_accepted_payment(gateway, context=an_asker(caller=caller, key=key)).payment_id
    )
    assert (row.account_id, row.merchant) == (account_id, "second shop")
    assert advance(gateway) == 1
    assert provider.submissions[-1] == row.reference


def test_a_key_from_before_the_change_keeps_its_payment(
    gateway: PaymentGateway, tenant: Tenant
) -> None:
    give(tenant, "first shop")
    context = an_asker(caller=a_caller(tenant=tenant), key=uuid4())
    first = an_accepted_payment(gateway, context=context)
    end(first.payment_id, gateway)
    give(tenant, "second shop")
    again = an_accepted_payment(gateway, context=context)
    assert replace(again, status_now=None) == first
    assert payment_row(first.payment_id).merchant == "first shop"


def test_one_tenants_change_is_nobody_elses(gateway: PaymentGateway, tenant: Tenant) -> None:
    give(tenant, "first shop")
    other = an_asker(caller=a_caller())
    assert payment_row(an_accepted_payment(gateway, context=other).payment_id).merchant == "shop"


@pytest.mark.usefixtures("long_lock_waits")
def test_a_change_waits_for_a_payment_that_is_being_accepted(
    app: Flask, gateway: PaymentGateway, tenant: Tenant, database_url: str
) -> None:
    give(tenant, "first shop")
    context = an_asker(caller=a_caller(tenant=tenant), key=uuid4())
    accepted: list[Accepted] = []
    refused: list[ProviderAccountMoved] = []

    def accept() -> None:
        with app.app_context():
            accepted.append(an_accepted_payment(gateway, context=context))

    def change() -> None:
        with app.app_context(), pytest.raises(ProviderAccountMoved) as moved:
            give(tenant, "second shop")
        refused.append(moved.value)

    accepting, changing = threading.Thread(target=accept), threading.Thread(target=change)
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        # The open INSERT of the key blocks the acceptance once it has read the account.
        connection.execute(
            "INSERT INTO idempotency_keys (tenant_id, mode, key, fingerprint, fingerprint_version,"
            " resource_id, status, body, expires_at) VALUES (%s, 'live', %s, %s, 1, %s, 201, '',"
            " now())",
            [tenant.id, context.idempotency_key, b"f" * 32, uuid4()],
        )
        accepting.start()
        await_lock_waits(database_url, 1)
        changing.start()
        await_lock_waits(database_url, 2)
        connection.rollback()
    accepting.join()
    changing.join()
    assert payment_row(accepted[0].payment_id).merchant == "first shop"
    assert "for 1 open payments" in str(refused[0])


def test_an_account_that_changes_while_it_is_read_is_read_again(
    gateway: PaymentGateway, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(tenant, "shop 0")
    read, changes = gateway.accounts._read_own, itertools.count(1)

    def reading(*where: Any) -> ProviderAccount | None:
        account = read(*where)
        if (number := next(changes)) <= 3:
            give(tenant, f"shop {number}")
        return account

    monkeypatch.setattr(gateway.accounts, "_read_own", reading)
    caller = a_caller(tenant=tenant)
    row = payment_row(an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id)
    assert row.merchant == "shop 3"
