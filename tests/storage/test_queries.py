"""Reads: only the tenant's own rows, filters, and pages without a gap or a repeat."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from payments_app.kernel.cursors import CursorInvalid
from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments.errors import PaymentNotFound
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.queries import (
    PaymentFilter,
    find_events,
    find_payment,
    list_payments,
)
from payments_app.providers.contract import Mode
from payments_app.tenants.caller import Caller
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_order,
    keyring,
    make_due,
    payment_row,
    rails_of,
)

ALL: Final = PaymentFilter()


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider()


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


@pytest.fixture
def caller() -> Caller:
    return a_caller()


def paid_into(gateway: PaymentGateway, caller: Caller, **order: str) -> UUID:
    accepted = an_accepted_payment(
        gateway, order=an_order(**order), context=an_asker(caller=caller)
    )
    return accepted.payment_id


def listed(caller: Caller, wanted: PaymentFilter = ALL, *, limit: int = 100) -> list[UUID]:
    return [
        p.id
        for p in list_payments(caller, wanted, limit=limit, cursor=None, keyring=keyring()).payments
    ]


def walked(caller: Caller, wanted: PaymentFilter = ALL, *, limit: int) -> list[list[UUID]]:
    """All pages, from the first to the one without a cursor."""
    pages: list[list[UUID]] = []
    cursor: str | None = None
    while not pages or cursor is not None:
        page = list_payments(caller, wanted, limit=limit, cursor=cursor, keyring=keyring())
        pages.append([payment.id for payment in page.payments])
        cursor = page.next_cursor
    return pages


# --- tenant and mode ----------------------------------------------------------------------------


def test_another_tenants_and_another_modes_payments_look_like_none(
    gateway: PaymentGateway, caller: Caller
) -> None:
    own = paid_into(gateway, caller)
    assert find_payment(caller, own).id == own
    for stranger in (a_caller(), replace(caller, mode=Mode.TEST)):
        said = []
        for wanted in (own, uuid4()):
            for read in (find_payment, lambda c, p: find_events(c, p, after=0, limit=10)):
                with pytest.raises(PaymentNotFound) as refused:
                    read(stranger, wanted)
                said.append((refused.value.detail, refused.value.extra))
        assert said == [said[0]] * 4
        assert listed(stranger) == []
        assert listed(stranger, PaymentFilter(payer=Msisdn("256772123456"))) == []


# --- filters ------------------------------------------------------------------------------------


def test_each_filter_keeps_what_it_names_and_together_they_keep_what_all_name(
    gateway: PaymentGateway, provider: ScriptedProvider, caller: Caller
) -> None:
    provider.submits = [ANSWERS["paid"], ANSWERS["declined"], ANSWERS["accepted"]]
    provider.checks = [ANSWERS["pending"]]
    paid = paid_into(gateway, caller, amount="10", external_id="a")
    declined = paid_into(gateway, caller, amount="10", currency="KES", external_id="b")
    waiting = paid_into(gateway, caller, amount="20", payer="256772000000")
    advance(gateway)
    created = payment_row(declined).created_at
    kept: dict[str, tuple[dict[str, Any], list[UUID]]] = {
        "status": ({"status": "PENDING"}, [waiting]),
        "ended": ({"status": "FAILED"}, [declined]),
        "payer": ({"payer": Msisdn("256772000000")}, [waiting]),
        "external_id": ({"external_id": "a"}, [paid]),
        "currency": ({"currency": "KES"}, [declined]),
        "money": ({"money": Money(1000, "EUR"), "currency": "EUR"}, [paid]),
        "from": ({"created_from": created}, [waiting, declined]),
        "to": ({"created_to": created}, [paid]),
        "both": ({"payer": Msisdn("256772123456"), "status": "SUCCESSFUL"}, [paid]),
        "nothing": ({"payer": Msisdn("256772000000"), "status": "FAILED"}, []),
        "a part is not the whole": ({"external_id": "%"}, []),
        "all": ({}, [waiting, declined, paid]),
    }
    found = {name: listed(caller, PaymentFilter(**wanted)) for name, (wanted, _) in kept.items()}
    assert found == {name: ids for name, (_, ids) in kept.items()}


# --- pages --------------------------------------------------------------------------------------


def created_at_once(url: str, caller: Caller) -> None:
    """Give all of the tenant's payments one time of creation, with the triggers off."""
    with psycopg.connect(url, options="-c session_replication_role=replica") as connection:
        connection.execute(
            "UPDATE payments SET created_at = '2026-11-20T10:00:00.123456Z' WHERE tenant_id = %s",
            [caller.tenant_id],
        )


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("at_once", [0, 1])
def test_pages_hold_everything_once_newest_first(
    gateway: PaymentGateway, caller: Caller, administrator_url: str, limit: int, at_once: int
) -> None:
    ids = [paid_into(gateway, caller) for _ in range(7)]
    paid_into(gateway, a_caller())
    if at_once:
        created_at_once(administrator_url, caller)
    pages = walked(caller, limit=limit)
    assert [each for page in pages for each in page] == sorted(ids, reverse=True)
    assert {len(page) for page in pages[:-1]} <= {limit}
    assert 1 <= len(pages[-1]) <= limit


def test_what_is_created_meanwhile_shifts_no_page(gateway: PaymentGateway, caller: Caller) -> None:
    first = [paid_into(gateway, caller) for _ in range(4)]
    page = list_payments(caller, ALL, limit=2, cursor=None, keyring=keyring())
    paid_into(gateway, caller)
    rest = list_payments(caller, ALL, limit=2, cursor=page.next_cursor, keyring=keyring())
    assert [p.id for p in [*page.payments, *rest.payments]] == first[::-1]
    assert rest.next_cursor is None


def test_a_cursor_of_another_tenant_opens_nothing(gateway: PaymentGateway, caller: Caller) -> None:
    stranger = a_caller()
    mine = paid_into(gateway, caller)
    for _ in range(3):
        paid_into(gateway, stranger)
    cursor = list_payments(stranger, ALL, limit=1, cursor=None, keyring=keyring()).next_cursor
    page = list_payments(caller, ALL, limit=10, cursor=cursor, keyring=keyring())
    assert [p.id for p in page.payments] == [mine]


def test_filters_hold_on_every_page(gateway: PaymentGateway, caller: Caller) -> None:
    wanted = [paid_into(gateway, caller, payer="256772000000") for _ in range(3)]
    for _ in range(3):
        paid_into(gateway, caller)
    pages = walked(caller, PaymentFilter(payer=Msisdn("256772000000")), limit=2)
    assert pages == [[wanted[2], wanted[1]], [wanted[0]]]


def test_an_empty_list_is_one_empty_page(caller: Caller) -> None:
    assert walked(caller, limit=5) == [[]]


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@given(st.text(max_size=60) | st.text(max_size=40).map(encoded))
@example(encoded(f"2026-11-20T10:00:00+00:00|{UUID(int=0)}\x00"))
@example(encoded(f"2026-11-20T10:00:00|{UUID(int=0)}"))
@example(encoded("2026-11-20T10:00:00+00:00|"))
@example(encoded(f"|{UUID(int=0)}"))
@example("ÿ=")
@example("=")
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_made_up_cursor_is_refused(caller: Caller, cursor: str) -> None:
    with pytest.raises(CursorInvalid):
        list_payments(caller, ALL, limit=1, cursor=cursor, keyring=keyring())


@pytest.mark.parametrize("when", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00"])
def test_a_cursor_at_the_edge_of_time_is_a_position_like_any_other(
    caller: Caller, when: str
) -> None:
    cursor = encoded(f"{when}|{UUID(int=0)}")
    assert list_payments(caller, ALL, limit=1, cursor=cursor, keyring=keyring()).payments == []


# --- the events ---------------------------------------------------------------------------------


def test_a_story_is_read_in_its_order_from_any_line_on(
    gateway: PaymentGateway, provider: ScriptedProvider, caller: Caller
) -> None:
    provider.submits = [ANSWERS["unknown"]]
    payment_id = paid_into(gateway, caller)
    paid_into(gateway, caller)
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    types = ["payment.accepted", "payment.unknown", "payment.successful"]
    story = find_events(caller, payment_id, after=0, limit=10)
    assert [(e.sequence, e.type) for e in story] == list(enumerate(types, start=1))
    assert {e.payment_id for e in story} == {payment_id}
    assert [e.sequence for e in find_events(caller, payment_id, after=1, limit=1)] == [2]
    assert find_events(caller, payment_id, after=3, limit=10) == []
