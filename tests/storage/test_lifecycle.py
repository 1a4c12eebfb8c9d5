"""What each verdict of a provider does to a payment: its stage, next step and stored rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Final

import pytest
from flask import Flask, current_app

from payments_app.kernel.database import transaction_is_open
from payments_app.kernel.money import Money
from payments_app.payments import backoff
from payments_app.payments.evidence import EVIDENCE_BYTES_MAX, opened_body
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.payments.payers import payer_of
from payments_app.payments.rate_limit import AccountPace
from payments_app.providers.contract import (
    AccountKey,
    Failure,
    FailureCode,
    Observation,
    PaymentOrder,
    Verdict,
)
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    a_claim,
    advance,
    advance_payment,
    an_accepted_payment,
    an_order,
    due_in_s,
    events_of,
    exchanges_of,
    keyring,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)

OPEN: Final = "PENDING"
# answer to a submission → (status, stage), next step, due after so many seconds, the event.
TO_SUBMISSION: Final = {
    "accepted": ((OPEN, "awaiting_payer"), "check", 1.0, "payment.pending"),
    "duplicate": ((OPEN, "awaiting_payer"), "check", 0.0, "payment.pending"),
    "unknown": ((OPEN, "unknown"), "check", 1.0, "payment.unknown"),
    "not_found": ((OPEN, "unknown"), "check", 1.0, "payment.unknown"),
    "not_sent": ((OPEN, "accepted"), "submit", 1.0, None),
    "paid": (("SUCCESSFUL", "final"), None, None, "payment.successful"),
    "declined": (("FAILED", "final"), None, None, "payment.failed"),
    "refused": (("FAILED", "final"), None, None, "payment.failed"),
}
# answer to a status check → (status, stage) after AWAITING_PAYER, the same after UNKNOWN.
TO_QUESTION: Final = {
    "pending": ((OPEN, "awaiting_payer"), (OPEN, "awaiting_payer")),
    "not_found": ((OPEN, "unknown"), (OPEN, "unknown")),
    "paid": (("SUCCESSFUL", "final"), ("SUCCESSFUL", "final")),
    "declined": (("FAILED", "final"), ("FAILED", "final")),
    # An answer without information changes nothing.
    "unknown": ((OPEN, "awaiting_payer"), (OPEN, "unknown")),
    "not_sent": ((OPEN, "awaiting_payer"), (OPEN, "unknown")),
    "duplicate": ((OPEN, "awaiting_payer"), (OPEN, "unknown")),
    "refused": ((OPEN, "awaiting_payer"), (OPEN, "unknown")),
}
FAILURES: Final = {
    "declined": ("payer_rejected", "APPROVAL_REJECTED"),
    "refused": ("request_refused", ""),
}


def said(exchange: ProviderExchange) -> bytes | None:
    """The provider's response, decrypted."""
    payer = payer_of(keyring(), payment_row(exchange.payment_id))
    return opened_body(payer, generation=exchange.generation, body=exchange.body)


@pytest.fixture
def provider() -> ScriptedProvider:
    made = ScriptedProvider(checks=[ANSWERS["pending"]])
    # However slow this machine is, a payment that is not found is not sent again within a test.
    made.capabilities = replace(made.capabilities, resend_after_s=300)
    return made


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


def submitted(provider: ScriptedProvider, gateway: PaymentGateway, answer: Observation) -> Payment:
    """A payment after one submission with this answer."""
    provider.submits = [answer]
    payment_id = an_accepted_payment(gateway).payment_id
    step(gateway)
    return payment_row(payment_id)


def step(gateway: PaymentGateway) -> None:
    """The one due payment takes one step. The next one, a second later, is never part of it."""
    advance_payment(a_claim(), gateway)


def asked(
    provider: ScriptedProvider, gateway: PaymentGateway, payment: Payment, answer: Observation
) -> None:
    """One status check with this answer, at once."""
    provider.checks = [answer]
    make_due(payment.id)
    step(gateway)


def delay_s(row: Payment) -> float:
    """Seconds from the last stored answer to the next action."""
    answered_at = exchanges_of(row.id)[-1].finished_at
    assert answered_at is not None
    assert row.next_action_at is not None
    return (row.next_action_at - answered_at).total_seconds()


# --- submissions --------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", TO_SUBMISSION)
def test_the_answer_to_a_submission_sets_stage_step_and_story(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str
) -> None:
    after, next_step, next_s, line = TO_SUBMISSION[answer]
    row = submitted(provider, gateway, ANSWERS[answer])
    assert (row.status, row.stage) == after
    assert row.is_final == (next_step is None)
    if next_s is not None:
        assert row.next_step == next_step
        assert delay_s(row) == pytest.approx(next_s, abs=0.25)
    if next_s == 0.0:
        # It is due at once. An answer without information changes nothing.
        provider.checks = [ANSWERS["not_sent"]]
        step(gateway)
        assert len(provider.questions) == 1
    assert [e.type for e in events_of(row.id)] == ["payment.accepted", *([line] if line else [])]
    assert row.lease_until is None
    assert provider.submissions == [row.reference]


@pytest.mark.parametrize("answer", TO_SUBMISSION)
def test_the_answer_to_a_submission_is_kept_in_the_row_that_was_there_before_it(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str
) -> None:
    before: list[tuple[object, object]] = []

    def answered(order: PaymentOrder, _wire: object) -> Observation:
        before.extend((e.reference, e.finished_at) for e in exchanges_of(order.payment_id))
        return ANSWERS[answer]

    provider.submits = [answered]
    row = payment_row(an_accepted_payment(gateway).payment_id)
    step(gateway)
    assert before == [(row.reference, None)]
    (exchange,) = exchanges_of(row.id)
    seen = ANSWERS[answer]
    assert (exchange.kind, exchange.generation, exchange.reference) == ("submit", 1, row.reference)
    assert (exchange.verdict, exchange.reason, exchange.http_status) == (
        *(seen.verdict, seen.reason),
        seen.http_status,
    )
    assert said(exchange) == seen.body
    assert exchange.finished_at is not None


@pytest.mark.parametrize("answer", ["paid", "declined", "refused"])
def test_an_end_points_to_the_answer_that_said_so(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str
) -> None:
    row = submitted(provider, gateway, ANSWERS[answer])
    (exchange,) = exchanges_of(row.id)
    assert row.evidence_id == exchange.id
    assert (row.failure_code, row.failure_provider_code) == FAILURES.get(answer, (None, None))
    assert row.provider_transaction_id == ANSWERS[answer].provider_transaction_id
    assert row.final_at is not None
    assert row.next_action_at is None


def test_a_word_that_names_the_payer_rests_sealed_and_is_told_to_nobody(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    word = "Payer 256772123456 has no wallet"
    failure = Failure(FailureCode.PAYER_NOT_FOUND, word)
    body = f'{{"status":"FAILED","reason":"{word}"}}'.encode()
    row = submitted(provider, gateway, replace(ANSWERS["declined"], failure=failure, body=body))
    (exchange,) = exchanges_of(row.id)
    assert (row.status, row.failure_code) == ("FAILED", "payer_not_found")
    assert (row.failure_provider_code, exchange.failure_provider_code) == ("unreadable",) * 2
    assert said(exchange) == body
    assert word not in str([event.data for event in events_of(row.id)])


def test_a_failure_that_the_provider_does_not_explain_is_other(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = submitted(provider, gateway, replace(ANSWERS["declined"], failure=None))
    assert (row.status, row.failure_code) == ("FAILED", "other")


def test_the_provider_is_told_what_was_accepted_and_no_transaction_waits_for_it(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    told: list[tuple[PaymentOrder, bool]] = []

    def answered(order: PaymentOrder, _wire: object) -> Observation:
        told.append((order, transaction_is_open()))
        return ANSWERS["pending"]

    provider.submits = provider.checks = [answered]
    order = replace(an_order(amount="12.50"), payer_message="hello", payee_note="fee")
    row = payment_row(an_accepted_payment(gateway, order=order).payment_id)
    step(gateway)
    make_due(row.id)
    step(gateway)
    expected = PaymentOrder(
        reference=row.reference,
        payment_id=row.id,
        money=Money(1250, "EUR"),
        payer=order.payer,
        payer_message="hello",
        payee_note="fee",
    )
    assert told == [(expected, False), (expected, False)]


# --- what was not sent --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["prepare", "submit"])
def test_what_was_not_sent_is_handed_back_and_tried_again_ever_later(
    provider: ScriptedProvider, gateway: PaymentGateway, where: str
) -> None:
    provider.submits = [ANSWERS["not_sent"]]
    provider.not_ready = ANSWERS["not_sent"] if where == "prepare" else None
    row = payment_row(an_accepted_payment(gateway).payment_id)
    for tries, next_s in enumerate([1, 2, 4, 8], start=1):
        step(gateway)
        now = payment_row(row.id)
        assert (now.stage, now.next_step, now.submissions) == ("accepted", "submit", tries)
        assert delay_s(now) == pytest.approx(next_s, rel=0.25)
        make_due(row.id)
    provider.not_ready, provider.submits = None, [ANSWERS["accepted"]]
    step(gateway)
    assert payment_row(row.id).stage == "awaiting_payer"
    assert set(provider.submissions) == {row.reference}
    assert provider.questions == []
    assert [e.verdict for e in exchanges_of(row.id)] == [*["NOT_SENT"] * 4, "PENDING"]


@pytest.mark.parametrize("verdict", [Verdict.NOT_SENT, Verdict.UNKNOWN, Verdict.NOT_FOUND])
@pytest.mark.parametrize("wanted_s", [120.0, 1e9, float("inf"), float("nan"), -60.0])
def test_a_provider_may_ask_for_patience_within_bounds(
    provider: ScriptedProvider, gateway: PaymentGateway, verdict: Verdict, wanted_s: float
) -> None:
    row = submitted(provider, gateway, Observation(verdict, "busy", retry_after_s=wanted_s))
    assert delay_s(row) <= backoff.RETRY_AFTER_MAX_S
    if wanted_s > 0:
        assert delay_s(row) > min(wanted_s, backoff.RETRY_AFTER_MAX_S) - 1
    else:
        assert delay_s(row) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("first", ["unknown", "not_sent"])
def test_a_provider_may_ask_for_patience_at_a_later_submission_too(
    provider: ScriptedProvider, gateway: PaymentGateway, first: str
) -> None:
    provider.capabilities = replace(provider.capabilities, resend_after_s=3)
    row = submitted(provider, gateway, ANSWERS[first])
    provider.checks = [ANSWERS["not_found"]]
    # Without an HTTP status it delays this payment only, and closes no account for other tests.
    provider.submits = [replace(ANSWERS["not_sent"], retry_after_s=120.0)]
    while len(provider.submissions) < 2:
        let_time_pass(seconds=4)
        make_due(row.id, forget_lease=True)
        advance(gateway)
    assert delay_s(payment_row(row.id)) > 115


# --- status checks ------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", TO_QUESTION)
@pytest.mark.parametrize(("before", "column"), [("accepted", 0), ("unknown", 1)])
def test_the_answer_to_a_question_sets_stage_and_next_question(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str, before: str, column: int
) -> None:
    row = submitted(provider, gateway, ANSWERS[before])
    asked(provider, gateway, row, ANSWERS[answer])
    after = payment_row(row.id)
    assert (after.status, after.stage) == TO_QUESTION[answer][column]
    assert after.lease_until is None
    assert provider.submissions == [row.reference]
    if not after.is_final:
        assert after.next_step == "check"
        assert due_in_s(row.id) < 2
    if not after.is_final and answer != "not_sent":
        assert delay_s(after) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("answer", TO_QUESTION)
def test_the_answer_to_a_question_is_kept_unless_nothing_was_asked(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str
) -> None:
    row = submitted(provider, gateway, ANSWERS["accepted"])
    asked(provider, gateway, row, ANSWERS[answer])
    kept = [(e.kind, e.verdict) for e in exchanges_of(row.id)][1:]
    assert kept == ([] if answer == "not_sent" else [("check", ANSWERS[answer].verdict)])


def test_evidence_is_kept_up_to_its_bound(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    long = replace(ANSWERS["paid"], body=b"x" * (EVIDENCE_BYTES_MAX + 1), elapsed_s=1.2345)
    row = submitted(provider, gateway, long)
    (exchange,) = exchanges_of(row.id)
    assert said(exchange) == b"x" * EVIDENCE_BYTES_MAX
    assert exchange.elapsed_ms in (1234, 1235)


def test_the_story_has_one_line_for_each_change_and_none_for_no_news(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = submitted(provider, gateway, ANSWERS["unknown"])
    for answer in ("unknown", "not_found", "pending", "pending", "unknown", "not_found", "paid"):
        asked(provider, gateway, row, ANSWERS[answer])
    events = events_of(row.id)
    assert [(e.sequence, e.type, e.data.get("reason")) for e in events] == [
        (1, "payment.accepted", None),
        (2, "payment.unknown", "timeout"),
        (3, "payment.pending", "pending"),
        (4, "payment.unknown", "not_found"),
        (5, "payment.successful", "successful"),
    ]
    assert {e.actor for e in events[1:]} == {"engine"}
    assert payment_row(row.id).sequence == 5


@pytest.mark.parametrize("answer", ["pending", "unknown", "not_sent"])
def test_no_age_ends_a_payment(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str
) -> None:
    row = submitted(provider, gateway, ANSWERS["accepted"])
    for _ in range(3):
        let_time_pass(seconds=timedelta(days=30).total_seconds())
        asked(provider, gateway, row, ANSWERS[answer])
        assert (payment_row(row.id).status, payment_row(row.id).next_step) == (OPEN, "check")
        assert 60 < due_in_s(row.id) < backoff.CHECK_MAX_S * 1.3
    asked(provider, gateway, row, ANSWERS["paid"])
    assert payment_row(row.id).status == "SUCCESSFUL"


@pytest.mark.parametrize("answer", ["paid", "declined"])
def test_a_final_payment_is_never_taken_up_again(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str
) -> None:
    row = submitted(provider, gateway, ANSWERS[answer])
    let_time_pass(seconds=1e6)
    make_due(row.id, forget_lease=True)
    assert advance(gateway) == 0
    assert provider.questions == []
    assert payment_row(row.id).generation == row.generation


def test_a_question_that_may_not_leave_yet_is_not_claimed(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    class Crowded(AccountPace):
        def grant(self, wanted: Mapping[AccountKey, int]) -> dict[AccountKey, int]:
            return dict.fromkeys(wanted, 0)

    redis = current_app.extensions["maramoja"].redis
    row = submitted(provider, gateway, ANSWERS["accepted"])
    make_due(row.id)
    assert advance(replace(gateway, pace=Crowded(redis, ceiling=100))) == 0
    assert provider.questions == []
    assert len(exchanges_of(row.id)) == 1
    assert payment_row(row.id).generation == row.generation
    asked(provider, gateway, row, ANSWERS["paid"])
    assert payment_row(row.id).status == "SUCCESSFUL"


# --- the amount ---------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [Money(99_999, "EUR"), Money(0, "EUR"), Money(100_000, "KES")])
def test_another_amount_than_was_asked_settles_nothing(
    provider: ScriptedProvider, gateway: PaymentGateway, amount: Money
) -> None:
    odd = replace(ANSWERS["paid"], amount=amount)
    row = submitted(provider, gateway, ANSWERS["accepted"])
    asked(provider, gateway, row, odd)
    after = payment_row(row.id)
    assert (after.status, after.stage, after.evidence_id) == (OPEN, "unknown", None)
    assert events_of(row.id)[-1].data == {"reason": "amount_contradicted"}
    assert exchanges_of(row.id)[-1].verdict == "SUCCESSFUL"
    asked(provider, gateway, row, replace(odd, amount=row.money))
    assert payment_row(row.id).status == "SUCCESSFUL"


def test_a_submission_answered_with_another_amount_settles_nothing_either(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = submitted(provider, gateway, replace(ANSWERS["paid"], amount=Money(1, "EUR")))
    assert (row.status, row.stage, row.next_step) == (OPEN, "unknown", "check")
