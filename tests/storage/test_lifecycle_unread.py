"""Repeated unreadable answers make one event; an answer that changes nothing makes none."""

from __future__ import annotations

from uuid import uuid4

import pytest
from flask import Flask

from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.providers.contract import Observation, Verdict
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    a_claim,
    advance,
    advance_payment,
    an_accepted_payment,
    events_of,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)
from tests.metrics.figures import figures_here

UNREAD = {
    reason: Observation(Verdict.UNKNOWN, reason, http_status=status)
    for reason, status in {
        "unreadable": 200,
        "amount_unreadable": 200,
        "unexpected_answer": 404,
        "broken_answer": None,
    }.items()
}
NO_NEWS = {
    "timeout": Observation(Verdict.UNKNOWN, "timeout"),
    "a 500": Observation(Verdict.UNKNOWN, "provider_error", http_status=500),
    "throttled": Observation(Verdict.UNKNOWN, "throttled", http_status=429),
}


@pytest.fixture
def provider() -> ScriptedProvider:
    """With a new code: a "throttled" lowers the rate of an account that no other test uses."""
    return ScriptedProvider(checks=[ANSWERS["not_sent"]], code=f"unread-{uuid4().hex[:8]}")


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


@pytest.fixture
def row(gateway: PaymentGateway) -> Payment:
    """A payment that the provider has accepted."""
    payment_id = an_accepted_payment(gateway).payment_id
    advance(gateway)
    return payment_row(payment_id)


def asked(
    provider: ScriptedProvider, gateway: PaymentGateway, row: Payment, *answers: Observation
) -> None:
    for answer in answers:
        provider.checks = [answer]
        make_due(row.id)
        # One check, not a second one that is due a second later.
        advance_payment(a_claim(), gateway)


def story(row: Payment) -> list[tuple[str, str]]:
    return [(event.type, event.data["reason"]) for event in events_of(row.id)[1:]]


ACCEPTED = ("payment.pending", "accepted")


@pytest.mark.parametrize("reason", UNREAD)
def test_answers_that_stay_unreadable_make_a_payment_unknown_once(
    provider: ScriptedProvider, gateway: PaymentGateway, row: Payment, reason: str
) -> None:
    asked(provider, gateway, row, UNREAD[reason])
    assert payment_row(row.id).stage == "awaiting_payer", "one may be garbled on its way"
    asked(provider, gateway, row, UNREAD[reason], UNREAD[reason])
    assert payment_row(row.id).stage == "unknown"
    assert story(row) == [ACCEPTED, ("payment.unknown", reason)]
    asked(provider, gateway, row, ANSWERS["pending"])
    assert payment_row(row.id).stage == "awaiting_payer"


@pytest.mark.parametrize("silence", NO_NEWS)
def test_silence_between_unreadable_answers_hides_them_not(
    provider: ScriptedProvider, gateway: PaymentGateway, row: Payment, silence: str
) -> None:
    asked(provider, gateway, row, UNREAD["unreadable"], NO_NEWS[silence], UNREAD["unreadable"])
    assert story(row) == [ACCEPTED, ("payment.unknown", "unreadable")]


@pytest.mark.parametrize("silence", NO_NEWS)
def test_no_news_changes_nothing(
    provider: ScriptedProvider, gateway: PaymentGateway, row: Payment, silence: str
) -> None:
    asked(provider, gateway, row, *[NO_NEWS[silence]] * 3)
    assert (payment_row(row.id).stage, story(row)) == ("awaiting_payer", [ACCEPTED])


def test_every_second_answer_unreadable_is_no_news(
    provider: ScriptedProvider, gateway: PaymentGateway, row: Payment
) -> None:
    asked(provider, gateway, row, *[UNREAD["unreadable"], ANSWERS["pending"]] * 3)
    assert story(row) == [ACCEPTED]


def test_an_unreadable_answer_is_logged_and_counted(
    provider: ScriptedProvider,
    gateway: PaymentGateway,
    row: Payment,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = figures_here()
    asked(provider, gateway, row, UNREAD["amount_unreadable"], NO_NEWS["timeout"])
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    (line,) = [one for one in said if one["event"] == "provider.answer_unread"]
    assert line["level"] == "warning"
    assert (line["reason"], line["http_status"]) == ("amount_unreadable", 200)
    assert (line["provider"], line["operation"]) == (row.provider, "check")
    assert line["payment_id"] == str(row.id)
    counted = {"operation": "check", "verdict": "UNKNOWN"}
    name = "provider_answers_total"
    assert figures_here().total(name, **counted) == before.total(name, **counted) + 2


def test_a_duplicate_that_is_not_found_makes_one_event(
    provider: ScriptedProvider, gateway: PaymentGateway, row: Payment
) -> None:
    provider.submits, provider.checks = [ANSWERS["duplicate"]], [ANSWERS["not_found"]]
    for _ in range(4):
        let_time_pass(seconds=700)
        advance(gateway)
    assert len(provider.submissions) >= 4
    assert payment_row(row.id).stage == "unknown"
    assert story(row) == [ACCEPTED, ("payment.unknown", "not_found")]
    provider.checks = [ANSWERS["pending"]]
    let_time_pass(seconds=700)
    advance(gateway)
    assert payment_row(row.id).stage == "awaiting_payer"
    assert story(row)[2:] == [("payment.pending", "pending")]
