"""Payers: encrypted at rest, found by number, erased for good; the record still verifies."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import text

from payments_app.integrity.verification import verify_record
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.encryption import DataKeyUnreadable, TenantKeyring
from payments_app.kernel.idempotency import KeyExpired, KeyReused
from payments_app.kernel.msisdn import Msisdn
from payments_app.kernel.secrets import Cipher
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.evidence import opened_body
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.payers import erase_old_payers, erase_payer, payer_of, payments_of_payer
from payments_app.tenants.caller import Caller
from payments_app.tenants.data_keys import StoredDataKeys
from tests.builders import (
    ANSWERS,
    PAYER,
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_order,
    exchanges_of,
    keyring,
    make_due,
    payment_row,
    rails_of,
)

NUMBER = Msisdn(PAYER)


@pytest.fixture
def provider() -> ScriptedProvider:
    named = replace(ANSWERS["paid"], body=b'{"payer":{"partyId":"256772123456"}}')
    return ScriptedProvider(checks=[named])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


@pytest.fixture
def caller() -> Caller:
    return a_caller()


def everything_at_rest(table: str) -> str:
    """All rows as text, with bytes readable."""
    with transaction(EVERY_TENANT) as session:
        rows = session.execute(text(f"SELECT t.* FROM {table} t")).all()  # noqa: S608
    return repr([tuple(row) for row in rows])


def test_the_number_rests_nowhere_in_the_clear(gateway: PaymentGateway, caller: Caller) -> None:
    context = an_asker(caller=caller, key=uuid4())
    payment_id = an_accepted_payment(gateway, context=context).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    reference = payment_row(payment_id).reference
    body = b'{"payer":{"partyId":"256772123456"}}'
    record_callback(ReceivedCallback(SCRIPTED, reference, "PUT", body, None), keyring())
    for table in ("payments", "idempotency_keys", "provider_exchanges", "callbacks", "tenants"):
        assert PAYER not in everything_at_rest(table), table
    row = payment_row(payment_id)
    payer = payer_of(keyring(), row)
    assert payer is not None
    assert (payer.msisdn.digits, row.payer_masked) == (PAYER, "*********456")
    last = exchanges_of(payment_id)[-1]
    assert opened_body(payer, generation=last.generation, body=last.body) == body


def test_one_payments_seal_is_worth_nothing_on_another(
    gateway: PaymentGateway, caller: Caller
) -> None:
    one, two = (
        payment_row(an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id)
        for _ in range(2)
    )
    assert one.payer != two.payer
    assert one.payer_index == two.payer_index
    two.payer = one.payer
    with pytest.raises(DataKeyUnreadable):
        payer_of(keyring(), two)


def test_two_tenants_indexes_of_one_number_tell_nothing(gateway: PaymentGateway) -> None:
    rows = [payment_row(an_accepted_payment(gateway).payment_id) for _ in range(2)]
    assert rows[0].tenant_id != rows[1].tenant_id
    assert rows[0].payer_index != rows[1].payer_index


def test_erasing_forgets_who_paid_and_keeps_what_was_paid(
    gateway: PaymentGateway, provider: ScriptedProvider, caller: Caller
) -> None:
    context = an_asker(caller=caller, key=uuid4())
    payment_id = an_accepted_payment(gateway, context=context).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    before = payment_row(payment_id)
    assert [p.id for p in payments_of_payer(caller.tenant_id, NUMBER, keyring())] == [payment_id]
    done = erase_payer(caller.tenant_id, NUMBER, keyring(), actor="cli:test")
    assert (done.erased, done.open) == (1, 0)
    after = payment_row(payment_id)
    assert (after.payer, after.payer_index, after.payer_masked) == (None, None, None)
    assert (after.status, after.amount_minor, after.evidence_id, after.sequence) == (
        *(before.status, before.amount_minor, before.evidence_id, before.sequence),
    )
    assert payments_of_payer(caller.tenant_id, NUMBER, keyring()) == []
    assert payer_of(keyring(), after) is None
    last = exchanges_of(payment_id)[-1]
    assert opened_body(None, generation=last.generation, body=last.body) is None
    # The key still can't pay a second time: KeyExpired, and KeyReused for another request.
    with pytest.raises(KeyExpired):
        an_accepted_payment(gateway, context=context)
    with pytest.raises(KeyReused):
        an_accepted_payment(gateway, order=an_order(amount="1001"), context=context)
    assert len(provider.submissions) == 1
    # A second erasure changes nothing.
    again = erase_payer(caller.tenant_id, NUMBER, keyring(), actor="cli:test")
    assert (again.erased, again.open) == (0, 0)


def test_the_record_verifies_after_an_erasure(gateway: PaymentGateway, caller: Caller) -> None:
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    erase_payer(caller.tenant_id, NUMBER, keyring(), actor="cli:test")
    assert verify_record(caller.tenant_id, on_row=lambda: None).fault is None


def test_an_open_payment_keeps_its_payer_until_it_has_ended(
    gateway: PaymentGateway, caller: Caller
) -> None:
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    done = erase_payer(caller.tenant_id, NUMBER, keyring(), actor="cli:test")
    assert (done.erased, done.open) == (0, 1)
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    assert payment_row(payment_id).status == "SUCCESSFUL"
    assert erase_payer(caller.tenant_id, NUMBER, keyring(), actor="cli:test").erased == 1


def test_another_number_and_another_tenant_are_left_alone(
    gateway: PaymentGateway, caller: Caller
) -> None:
    other = an_order(payer="256772000001")
    mine = an_accepted_payment(gateway, order=other, context=an_asker(caller=caller)).payment_id
    theirs = an_accepted_payment(gateway).payment_id
    for _ in range(2):
        advance(gateway)
        make_due(mine)
        make_due(theirs)
    assert erase_payer(caller.tenant_id, NUMBER, keyring(), actor="cli:test").erased == 0
    assert payment_row(mine).payer is not None
    assert payment_row(theirs).payer is not None


def test_what_ended_long_ago_is_forgotten_and_what_is_young_or_open_is_not(
    gateway: PaymentGateway, caller: Caller
) -> None:
    ended = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    advance(gateway)
    make_due(ended)
    advance(gateway)
    waiting = an_accepted_payment(gateway).payment_id
    assert erase_old_payers(1) == erase_old_payers(None) == 0
    assert payment_row(ended).payer is not None
    assert erase_old_payers(0) == 1
    assert payment_row(ended).payer is None
    assert payment_row(waiting).payer is not None


def test_a_late_callback_for_a_forgotten_payer_leaves_nothing(
    gateway: PaymentGateway, caller: Caller
) -> None:
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    erase_payer(caller.tenant_id, NUMBER, keyring(), actor="cli:test")
    late = ReceivedCallback(SCRIPTED, payment_row(payment_id).reference, "PUT", b"{}", None)
    assert not record_callback(late, keyring())
    assert everything_at_rest("callbacks") == "[]"


@pytest.mark.parametrize(
    "change",
    [
        "payer = NULL, payer_index = NULL, payer_masked = NULL, amount_minor = 1",
        "payer = 'other'",
        "payer_index = NULL",
        "payer_masked = '*********457'",
    ],
)
def test_the_database_lets_a_payer_go_whole_and_nothing_else_with_it(
    gateway: PaymentGateway, caller: Caller, migration_database_url: str, change: str
) -> None:
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    url = migration_database_url.replace("+psycopg", "")
    with (
        psycopg.connect(url, options="-c maramoja.tenant=*") as connection,
        pytest.raises((psycopg.errors.RestrictViolation, psycopg.errors.CheckViolation)),
    ):
        connection.execute(f"UPDATE payments SET {change} WHERE id = %s", [payment_id])  # noqa: S608


def test_the_database_keeps_an_open_payments_payer(
    gateway: PaymentGateway, caller: Caller, database_url: str
) -> None:
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    url = database_url.replace("+psycopg", "")
    with (
        psycopg.connect(url, options="-c maramoja.tenant=*") as connection,
        pytest.raises(psycopg.errors.RestrictViolation),
    ):
        connection.execute(
            "UPDATE payments SET payer = NULL, payer_index = NULL, payer_masked = NULL"
            " WHERE id = %s",
            [payment_id],
        )


def test_without_the_key_nothing_is_sent_and_nothing_is_guessed(
    gateway: PaymentGateway, provider: ScriptedProvider, caller: Caller
) -> None:
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    lost = TenantKeyring(Cipher([Fernet.generate_key().decode()]), StoredDataKeys())
    advance(replace(gateway, keyring=lost))
    row = payment_row(payment_id)
    assert (row.status, row.stage) == ("PENDING", "accepted")
    assert provider.submissions == []
    with pytest.raises(DataKeyUnreadable):
        an_accepted_payment(replace(gateway, keyring=lost), context=an_asker(caller=caller))
    # With the right key again, the payment continues.
    make_due(payment_id)
    advance(gateway)
    assert len(provider.submissions) == 1
