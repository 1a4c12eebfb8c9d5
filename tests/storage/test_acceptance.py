"""One payment per key, however often the request is repeated; a refused order uses up no key."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import func, select

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.idempotency import (
    IdempotencyKey,
    KeyExpired,
    KeyReused,
)
from payments_app.payments.accept import AcceptContext, Accepted, attempt_of
from payments_app.payments.errors import ExternalIdTaken
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.payments.payers import payer_of
from payments_app.payments.retention import purge_responses
from payments_app.payments.routing import NewPayment
from payments_app.providers.contract import Mode
from payments_app.providers.registry import Registry
from payments_app.tenants.accounts import ProviderAccounts
from tests.builders import (
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_order,
    events_of,
    keyring,
    make_due,
    payment_row,
    rails_of,
)

PAST: Final = timedelta(seconds=-1)
# How long a client may wait for another request's transaction, plus a margin for a slow machine.
WAIT_MAX_S: Final = 5.0


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider()


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


@pytest.fixture
def context() -> AcceptContext:
    return an_asker(key=uuid4())


def count(model: type) -> int:
    with transaction(EVERY_TENANT) as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def payments_and_keys() -> tuple[int, int]:
    return count(Payment), count(IdempotencyKey)


def end(payment_id: UUID, gateway: PaymentGateway) -> None:
    advance(gateway)
    make_due(payment_id)
    advance(gateway)


def orders_that_differ() -> Iterator[NewPayment]:
    return (an_order(amount=str(amount)) for amount in itertools.count(1000))


# --- one request after the other ----------------------------------------------------------------


def test_a_first_request_makes_key_payment_and_story_at_once(
    gateway: PaymentGateway, context: AcceptContext
) -> None:
    accepted = an_accepted_payment(gateway, context=context)
    row = payment_row(accepted.payment_id)
    assert accepted.status_now is None
    assert (row.status, row.stage, row.next_step, row.generation) == (
        *("PENDING", "accepted", "submit"),
        0,
    )
    assert [(e.type, e.sequence, e.actor) for e in events_of(row.id)] == [
        ("payment.accepted", 1, f"key:{context.caller.key_id}")
    ]
    with transaction(EVERY_TENANT) as session:
        key = session.scalars(select(IdempotencyKey)).one()
    assert (key.key, key.resource_id) == (context.idempotency_key, row.id)
    payer = payer_of(keyring(), row)
    assert payer is not None
    assert key.body is not None
    assert payer.data_key.decrypt(key.body, about=f"answer {key.key}") == accepted.answer.body


def test_the_same_request_again_is_given_the_same_bytes_and_how_the_payment_stands_now(
    gateway: PaymentGateway, context: AcceptContext
) -> None:
    first = an_accepted_payment(gateway, context=context)
    for status in ("PENDING", "SUCCESSFUL"):
        again = an_accepted_payment(gateway, context=replace(context, request_id="another"))
        assert again == Accepted(first.answer, first.payment_id, status_now=status)
        end(first.payment_id, gateway)
    assert payments_and_keys() == (1, 1)


def test_another_order_under_the_key_is_refused_with_the_names_of_what_differs(
    gateway: PaymentGateway, context: AcceptContext
) -> None:
    an_accepted_payment(gateway, order=an_order(external_id="order-1"), context=context)
    other = an_order(amount="4711", payer="256772999888", external_id="order-2")
    with pytest.raises(KeyReused) as refused:
        an_accepted_payment(gateway, order=other, context=context)
    assert refused.value.extra == {"fields": ["amount", "external_id", "payer"]}
    assert payments_and_keys() == (1, 1)


def test_one_amount_in_two_spellings_is_one_request(
    gateway: PaymentGateway, context: AcceptContext
) -> None:
    first = an_accepted_payment(gateway, order=an_order(amount="10"), context=context)
    again = an_accepted_payment(gateway, order=an_order(amount="10.00"), context=context)
    assert again.answer == first.answer


def test_the_request_is_reduced_to_these_fields_since_version_1(context: AcceptContext) -> None:
    whole = replace(
        an_order(amount="12.50", external_id="order-1"),
        provider=SCRIPTED,
        payer_message="thanks",
        payee_note="fee",
        description="fee of May",
        metadata={"b": [1, {"d": None}], "a": "ä"},
    )
    attempt = attempt_of(whole, context, keyring())
    assert attempt is not None
    assert attempt.fields == {
        "method": "POST",
        "route": "/api/v1/payments",
        "amount": "1250",
        "currency": "EUR",
        "payer": "256772123456",
        "provider": SCRIPTED,
        "external_id": "order-1",
        "payer_message": "thanks",
        "payee_note": "fee",
        "description": "fee of May",
        "metadata": '{"a":"\\u00e4","b":[1,{"d":null}]}',
    }
    bare = attempt_of(an_order(), context, keyring())
    assert bare is not None
    assert set(bare.fields) == {"method", "route", "amount", "currency", "payer"}


def test_another_tenants_or_modes_use_of_the_key_is_unrelated(gateway: PaymentGateway) -> None:
    key = uuid4()
    callers = [a_caller(), a_caller(), a_caller(mode=Mode.TEST)]
    callers.append(replace(callers[0], mode=Mode.TEST))
    orders = orders_that_differ()
    accepted = [
        an_accepted_payment(gateway, order=next(orders), context=an_asker(caller=caller, key=key))
        for caller in callers
    ]
    assert [one.status_now for one in accepted] == [None] * 4
    assert payments_and_keys() == (4, 4)


def test_without_a_key_each_request_is_a_new_payment(gateway: PaymentGateway) -> None:
    context = an_asker()
    ids = {an_accepted_payment(gateway, context=context).payment_id for _ in range(3)}
    assert len(ids) == 3
    assert payments_and_keys() == (3, 0)


@pytest.mark.usefixtures("unhurried")
def test_an_answer_past_its_time_is_still_given_while_money_is_in_flight(
    gateway: PaymentGateway,
) -> None:
    context = an_asker(key=uuid4(), kept_for=PAST)
    first = an_accepted_payment(gateway, context=context)
    purge_responses()
    assert an_accepted_payment(gateway, context=context).answer == first.answer
    advance(gateway)
    purge_responses()
    assert an_accepted_payment(gateway, context=context).answer == first.answer


@pytest.mark.parametrize("swept", [0, 1])
def test_an_expired_key_points_to_its_payment_and_never_charges_again(
    gateway: PaymentGateway, provider: ScriptedProvider, swept: int
) -> None:
    context = an_asker(key=uuid4(), kept_for=PAST)
    first = an_accepted_payment(gateway, context=context)
    end(first.payment_id, gateway)
    assert swept == 0 or purge_responses() == swept
    for _ in range(2):
        with pytest.raises(KeyExpired) as refused:
            an_accepted_payment(gateway, context=context)
        assert refused.value.extra == {"payment_id": str(first.payment_id)}
    with pytest.raises(KeyReused):
        an_accepted_payment(gateway, order=an_order(amount="2000"), context=context)
    advance(gateway)
    assert payments_and_keys() == (1, 1)
    assert len(provider.submissions) == 1


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [
        an_order(currency="GHS"),
        replace(an_order(), payer_message="it's"),
        replace(an_order(), payee_note="x" * 161),
        replace(an_order(), provider="nobody"),
    ],
)
def test_a_refused_order_spends_no_key(
    gateway: PaymentGateway, context: AcceptContext, order: NewPayment
) -> None:
    with pytest.raises(GatewayError):
        an_accepted_payment(gateway, order=order, context=context)
    assert payments_and_keys() == (0, 0)
    assert an_accepted_payment(gateway, context=context).status_now is None


def without_account(gateway: PaymentGateway, app: Flask) -> PaymentGateway:
    return replace(gateway, accounts=ProviderAccounts((), app.extensions["maramoja"].cipher))


def without_adapter(gateway: PaymentGateway, _app: Flask) -> PaymentGateway:
    return replace(gateway, registry=Registry({}))


def with_other_terms(_rails: PaymentGateway, app: Flask) -> PaymentGateway:
    return rails_of(app, ScriptedProvider(currencies={"GHS": 2}))


@pytest.mark.parametrize("change", [without_account, without_adapter, with_other_terms])
def test_an_answer_outlives_the_rail_that_took_the_payment(
    gateway: PaymentGateway,
    app: Flask,
    context: AcceptContext,
    change: Callable[[PaymentGateway, Flask], PaymentGateway],
) -> None:
    first = an_accepted_payment(gateway, context=context)
    changed = change(gateway, app)
    assert an_accepted_payment(changed, context=context).answer == first.answer
    with pytest.raises(KeyReused):
        an_accepted_payment(changed, order=an_order(amount="2000"), context=context)
    with pytest.raises(GatewayError) as refused:
        an_accepted_payment(changed, context=an_asker(caller=context.caller, key=uuid4()))
    assert not isinstance(refused.value, KeyReused)
    assert payments_and_keys() == (1, 1)


def test_a_key_that_has_expired_says_so_even_when_no_rail_is_left(
    gateway: PaymentGateway, app: Flask
) -> None:
    context = an_asker(key=uuid4(), kept_for=PAST)
    end(an_accepted_payment(gateway, context=context).payment_id, gateway)
    with pytest.raises(KeyExpired):
        an_accepted_payment(without_account(gateway, app), context=context)


def test_an_external_id_is_taken_once_for_each_tenant_and_mode(gateway: PaymentGateway) -> None:
    caller = a_caller()
    order = an_order(external_id="order-1")
    an_accepted_payment(gateway, order=order, context=an_asker(caller=caller))
    context = an_asker(caller=caller, key=uuid4())
    with pytest.raises(ExternalIdTaken):
        an_accepted_payment(gateway, order=order, context=context)
    assert payments_and_keys() == (1, 0)
    # The refusal did not use up the key.
    an_accepted_payment(gateway, order=an_order(external_id="order-2"), context=context)
    for other in (a_caller(), replace(caller, mode=Mode.TEST)):
        an_accepted_payment(gateway, order=order, context=an_asker(caller=other))
