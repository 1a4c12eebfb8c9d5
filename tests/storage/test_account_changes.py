"""A tenant's account is changed while processes remember it as it was: no payment is stranded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from flask import Flask, current_app

from payments_app.payments.rails import Rails
from payments_app.providers.contract import Mode
from payments_app.tenants.accounts import NewAccount, set_account
from payments_app.tenants.model import Tenant
from tests.builders import (
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    a_tenant,
    advance,
    an_accepted_payment,
    an_asker,
    payment_row,
    rails_of,
)


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider()


@pytest.fixture
def rails(app: Flask, provider: ScriptedProvider) -> Rails:
    return rails_of(app, provider)


@pytest.fixture
def tenant(app: Flask) -> Iterator[Tenant]:
    with app.app_context():
        yield a_tenant()


def give(tenant: Tenant, merchant: str) -> UUID:
    """As another process does it: what this one remembers stays."""
    account = NewAccount(
        provider=SCRIPTED,
        mode=Mode.LIVE,
        base_url="http://127.0.0.1:1",
        target_environment="sandbox",
        credentials={"merchant": merchant},
    )
    cipher = current_app.extensions["maramoja"].cipher
    return set_account(tenant, account, cipher=cipher, actor="cli:test").id


@pytest.mark.parametrize("key", [None, uuid4()])
@pytest.mark.parametrize("before", [None, "first shop"])
def test_a_changed_account_takes_the_very_next_payment(
    rails: Rails,
    provider: ScriptedProvider,
    tenant: Tenant,
    before: str | None,
    key: UUID | None,
) -> None:
    if before is not None:
        give(tenant, before)
    caller = a_caller(tenant=tenant)
    earlier = an_accepted_payment(rails, asker=an_asker(caller=caller))
    assert payment_row(earlier.payment_id).merchant == (before or "shop")
    assert advance(rails) == 1

    account_id = give(tenant, "second shop")
    row = payment_row(an_accepted_payment(rails, asker=an_asker(caller=caller, key=key)).payment_id)
    assert (row.account_id, row.merchant) == (account_id, "second shop")
    assert advance(rails) == 1
    assert provider.submissions[-1] == row.reference


def test_a_key_from_before_the_change_keeps_its_payment(rails: Rails, tenant: Tenant) -> None:
    give(tenant, "first shop")
    asker = an_asker(caller=a_caller(tenant=tenant), key=uuid4())
    first = an_accepted_payment(rails, asker=asker)
    give(tenant, "second shop")
    again = an_accepted_payment(rails, asker=asker)
    assert replace(again, status_now=None) == first
    assert payment_row(first.payment_id).merchant == "first shop"


def test_one_tenants_change_is_nobody_elses(rails: Rails, tenant: Tenant) -> None:
    give(tenant, "first shop")
    other = an_asker(caller=a_caller())
    assert payment_row(an_accepted_payment(rails, asker=other).payment_id).merchant == "shop"
