"""A callback is a hint: stored once, it triggers a status check, and is never evidence."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import select

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.payments import callbacks
from payments_app.payments.callbacks import (
    CALLBACKS_MAX,
    ReceivedCallback,
    opened_callback,
    record_callback,
)
from payments_app.payments.evidence import opened_body
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Callback, Payment
from payments_app.payments.payers import payer_of
from payments_app.providers.contract import HttpClient, Observation, PaymentOrder
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    due_in_s,
    events_of,
    exchanges_of,
    in_threads,
    keyring,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)

SAYS_PAID: Final = b'{"status": "SUCCESSFUL", "amount": "1000"}'
SAYS_FAILED: Final = b'{"status": "FAILED", "reason": "PAYER_NOT_FOUND"}'
# In these tests the gap between two checks that callbacks cause is longer than a slow machine
# needs for a test.
HINT_GAP_S: Final = 20.0

pytestmark = pytest.mark.usefixtures("unhurried", "_long_gap")


@pytest.fixture
def _long_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "HINT_GAP_S", HINT_GAP_S)


@pytest.fixture
def provider() -> ScriptedProvider:
    patient = replace(ANSWERS["unknown"], retry_after_s=300)
    return ScriptedProvider(submits=[patient], checks=[ANSWERS["pending"]])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


@pytest.fixture
def waiting(gateway: PaymentGateway) -> Payment:
    """A submitted payment whose next status check is minutes away."""
    payment_id = an_accepted_payment(gateway).payment_id
    advance(gateway)
    assert due_in_s(payment_id) > 200
    return payment_row(payment_id)


def callback(row: Payment, body: bytes = SAYS_PAID) -> ReceivedCallback:
    return ReceivedCallback(SCRIPTED, row.reference, "PUT", body, "203.0.113.7")


def kept() -> list[Callback]:
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(select(Callback).order_by(Callback.id)))


def test_a_callback_is_kept_as_it_came_and_the_provider_is_asked_now(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment
) -> None:
    assert record_callback(callback(waiting), keyring())
    (row,) = kept()
    assert (row.tenant_id, row.payment_id) == (waiting.tenant_id, waiting.id)
    assert (row.method, row.source) == ("PUT", "203.0.113.7")
    assert opened_callback(payer_of(keyring(), waiting), row.body) == SAYS_PAID
    # The row has neither the plain bytes nor a digest that would reveal them.
    assert b"SUCCESSFUL" not in row.body
    assert row.digest != hashlib.sha256(SAYS_PAID).digest()
    assert due_in_s(waiting.id) <= 0
    provider.checks = [ANSWERS["paid"]]
    assert advance(gateway) == 1
    assert provider.questions == [waiting.reference]
    assert payment_row(waiting.id).status == "SUCCESSFUL"


@pytest.mark.parametrize("body", [SAYS_PAID, SAYS_FAILED, b"", b"\x00\xff", b"{" * 1000])
@pytest.mark.parametrize("truth", ["pending", "unknown", "not_sent"])
def test_whatever_a_callback_says_only_the_providers_own_answer_counts(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment, body: bytes, truth: str
) -> None:
    provider.checks = [ANSWERS[truth]]
    record_callback(callback(waiting, body), keyring())
    assert payment_row(waiting.id).status == "PENDING"
    advance(gateway)
    after = payment_row(waiting.id)
    assert (after.status, after.evidence_id) == ("PENDING", None)
    assert len(provider.questions) == 1
    assert len(provider.submissions) == 1


@pytest.mark.parametrize(("says", "truth"), [(SAYS_PAID, "declined"), (SAYS_FAILED, "paid")])
def test_a_lying_callback_ends_the_payment_as_the_provider_says(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment, says: bytes, truth: str
) -> None:
    provider.checks = [ANSWERS[truth]]
    record_callback(callback(waiting, says), keyring())
    advance(gateway)
    assert payment_row(waiting.id).status == ANSWERS[truth].verdict
    evidence = exchanges_of(waiting.id)[-1]
    said = opened_body(
        payer_of(keyring(), waiting), generation=evidence.generation, body=evidence.body
    )
    assert said == ANSWERS[truth].body


def test_the_same_bytes_again_are_no_news(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment
) -> None:
    assert record_callback(callback(waiting), keyring())
    advance(gateway)
    assert not record_callback(callback(waiting), keyring())
    assert not record_callback(
        replace(callback(waiting), method="POST", source="198.51.100.1"), keyring()
    )
    assert len(kept()) == 1
    assert due_in_s(waiting.id) > 0
    assert len(provider.questions) == 1


def test_one_callback_delivered_by_many_at_once_counts_once(app: Flask, waiting: Payment) -> None:
    noted = in_threads(app, lambda: record_callback(callback(waiting), keyring()), times=8)
    assert sorted(map(str, noted)) == [*["False"] * 7, "True"]
    assert len(kept()) == 1


@pytest.mark.parametrize("end", ["paid", "declined"])
def test_a_callback_after_the_end_is_kept_and_changes_nothing(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment, end: str
) -> None:
    provider.checks = [ANSWERS[end]]
    record_callback(callback(waiting), keyring())
    advance(gateway)
    before = payment_row(waiting.id)
    for body in (SAYS_PAID + b" ", SAYS_FAILED):
        assert record_callback(callback(waiting, body), keyring())
    assert advance(gateway) == 0
    after = payment_row(waiting.id)
    assert (after.status, after.generation, after.sequence, after.updated_at) == (
        *(before.status, before.generation, before.sequence),
        before.updated_at,
    )
    assert len(kept()) == 3
    assert len(provider.questions) == 1


def test_a_callback_before_anything_was_sent_does_not_make_us_ask(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    assert record_callback(callback(row), keyring())
    assert advance(gateway) == 1
    assert (provider.submissions, provider.questions) == ([row.reference], [])
    assert payment_row(row.id).status == "PENDING"


def test_a_callback_never_puts_a_question_off(gateway: PaymentGateway, waiting: Payment) -> None:
    assert record_callback(callback(waiting), keyring())
    due_s = due_in_s(waiting.id)
    assert record_callback(callback(waiting, SAYS_FAILED), keyring())
    assert due_in_s(waiting.id) <= due_s
    assert advance(gateway) == 1


def test_a_callback_for_nobody_or_under_another_rails_name_leaves_no_trace(
    waiting: Payment,
) -> None:
    strange = [
        replace(callback(waiting), reference=uuid4()),
        replace(callback(waiting), reference=waiting.id),
        replace(callback(waiting), provider="mtn_momo"),
        replace(callback(waiting), provider="SCRIPTED"),
        replace(callback(waiting), provider=""),
    ]
    assert [record_callback(each, keyring()) for each in strange] == [False] * 5
    assert kept() == []
    assert due_in_s(waiting.id) > 200


def test_a_flood_of_different_callbacks_is_bounded(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment
) -> None:
    noted = [
        record_callback(callback(waiting, str(n).encode()), keyring())
        for n in range(CALLBACKS_MAX + 5)
    ]
    assert noted == [*[True] * CALLBACKS_MAX, *[False] * 5]
    assert len(kept()) == CALLBACKS_MAX
    # The payment still ends as the provider says.
    provider.checks = [ANSWERS["paid"]]
    advance(gateway)
    assert payment_row(waiting.id).status == "SUCCESSFUL"


def test_the_next_callback_is_asked_about_only_after_a_gap(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment
) -> None:
    """Otherwise each callback by anyone who knows the reference would cause a status check."""
    assert record_callback(callback(waiting), keyring())
    assert advance(gateway) == 1
    assert record_callback(callback(waiting, SAYS_FAILED), keyring())
    assert 0 < due_in_s(waiting.id) <= HINT_GAP_S
    assert advance(gateway) == 0
    # A third callback delays nothing.
    due_s = due_in_s(waiting.id)
    assert record_callback(callback(waiting, b"3"), keyring())
    assert due_in_s(waiting.id) <= due_s
    let_time_pass(seconds=HINT_GAP_S)
    assert advance(gateway) == 1
    assert len(provider.questions) == 2


@pytest.mark.parametrize("earlier", [True, False])
def test_so_is_one_that_comes_while_the_provider_is_asked(
    gateway: PaymentGateway, provider: ScriptedProvider, waiting: Payment, *, earlier: bool
) -> None:
    def answer_late(_order: PaymentOrder, _wire: HttpClient) -> Observation:
        assert record_callback(callback(waiting, SAYS_FAILED), keyring())
        return ANSWERS["pending"]

    if earlier:
        assert record_callback(callback(waiting), keyring())
    else:
        make_due(waiting.id)
    provider.checks = [answer_late, ANSWERS["pending"]]
    # The first callback triggers the next status check at once, within the same pass.
    assert advance(gateway) == (1 if earlier else 2)
    if earlier:
        assert 0 < due_in_s(waiting.id) <= HINT_GAP_S


def test_a_callback_is_no_line_of_the_story(waiting: Payment) -> None:
    before = [event.type for event in events_of(waiting.id)]
    record_callback(callback(waiting), keyring())
    assert [event.type for event in events_of(waiting.id)] == before


def test_a_callback_does_not_show_its_body(waiting: Payment) -> None:
    assert "SUCCESSFUL" not in repr(callback(waiting))
