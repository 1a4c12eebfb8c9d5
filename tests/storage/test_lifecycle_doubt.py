"""In doubt the status is checked: after a crash, a lost answer, or a "not found"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
from flask import Flask

from payments_app.kernel.http.messages import HttpClient, HttpRequest, HttpResponse, NoResponse
from payments_app.kernel.http.transport import Transport
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.payments.processor import LEASE
from payments_app.providers.contract import (
    Capabilities,
    Mode,
    Observation,
    PaymentOrder,
    ProviderAccount,
)
from payments_app.providers.registry import Registry
from payments_app.tenants.accounts import NewAccount, ProviderAccounts, set_account
from payments_app.tenants.errors import ProviderNotEnabled
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    a_claim,
    a_tenant,
    advance,
    advance_payment,
    an_accepted_payment,
    an_asker,
    an_order,
    due_in_s,
    events_of,
    exchanges_of,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)

VISIBLE_AFTER_S: Final = 240.0


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(checks=[ANSWERS["not_found"]])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


def capable(**changed: Any) -> Capabilities:
    usual = Capabilities(
        idempotent_submit=True,
        visible_after_s=VISIBLE_AFTER_S,
        resend_after_s=3,
        payer_window_s=300,
    )
    return replace(usual, **changed)


def submitted(provider: ScriptedProvider, gateway: PaymentGateway, answer: str) -> Payment:
    provider.submits = [ANSWERS[answer]]
    payment_id = an_accepted_payment(gateway).payment_id
    step(gateway)
    return payment_row(payment_id)


def step(gateway: PaymentGateway) -> None:
    """The one due payment takes one step. The next one, a second later, is never part of it."""
    advance_payment(a_claim(), gateway)


# --- a worker that died -------------------------------------------------------------------------


def test_after_a_crash_in_the_middle_of_a_submission_the_next_worker_asks_first(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    provider.checks = [ANSWERS["pending"]]
    row = payment_row(an_accepted_payment(gateway).payment_id)
    a_claim()
    assert advance(gateway) == 0, "the lease of the dead holds"
    let_time_pass(seconds=LEASE.total_seconds() - 5)
    assert advance(gateway) == 0
    let_time_pass(seconds=6)
    step(gateway)
    assert (provider.questions, provider.submissions) == ([row.reference], [])
    assert [(e.type, e.data.get("reason")) for e in events_of(row.id)] == [
        ("payment.accepted", None),
        ("payment.unknown", "worker_lost"),
        ("payment.pending", "pending"),
    ]
    left, asked = exchanges_of(row.id)
    assert (left.kind, left.finished_at, left.reference) == ("submit", None, row.reference)
    assert (asked.kind, asked.generation) == ("check", 2)


def test_after_a_crash_before_the_first_byte_the_same_reference_goes_out_later(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    a_claim()
    let_time_pass(seconds=LEASE.total_seconds() + 1)
    step(gateway)
    step(gateway)
    assert provider.submissions == [row.reference]
    assert payment_row(row.id).stage == "awaiting_payer"
    assert [e.kind for e in exchanges_of(row.id)] == ["submit", "check", "submit"]


def test_a_crash_in_the_middle_of_a_question_costs_one_lease_and_nothing_else(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = submitted(provider, gateway, "accepted")
    provider.checks = [ANSWERS["paid"]]
    make_due(row.id)
    a_claim()
    assert advance(gateway) == 0
    let_time_pass(seconds=LEASE.total_seconds() + 1)
    advance(gateway)
    assert payment_row(row.id).status == "SUCCESSFUL"
    assert [e.generation for e in exchanges_of(row.id)] == [1, 3]


# --- "not found" --------------------------------------------------------------------------------


def test_what_is_not_found_is_sent_again_under_the_same_reference_ever_later(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    # The steps take time too, on a slow machine seconds: so it is minutes that pass here.
    provider.capabilities = capable(resend_after_s=60)
    row = submitted(provider, gateway, "unknown")
    for sent, wait_s in enumerate([60, 120, 240, 480], start=1):
        let_time_pass(seconds=wait_s - 20)
        make_due(row.id)
        step(gateway)
        assert payment_row(row.id).next_step == "check", "too early"
        assert len(provider.submissions) == sent, "too early"
        let_time_pass(seconds=22)
        make_due(row.id)
        step(gateway)
        step(gateway)
        assert len(provider.submissions) == sent + 1
    assert set(provider.submissions) == {row.reference}
    assert payment_row(row.id).status == "PENDING"
    assert {e.reference for e in exchanges_of(row.id)} == {row.reference}


def test_submissions_that_never_left_do_not_put_off_the_resend_of_one_that_did(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = submitted(provider, gateway, "not_sent")
    for _ in range(5):
        make_due(row.id)
        step(gateway)
    provider.submits = [ANSWERS["unknown"]]
    make_due(row.id)
    step(gateway)
    sent = len(provider.submissions)
    let_time_pass(seconds=4)
    make_due(row.id)
    step(gateway)
    step(gateway)
    assert len(provider.submissions) == sent + 1


def test_what_a_rail_may_charge_twice_is_never_sent_again(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    provider.capabilities = capable(idempotent_submit=False)
    row = submitted(provider, gateway, "unknown")
    for _ in range(5):
        let_time_pass(seconds=86_400)
        advance(gateway)
    assert provider.submissions == [row.reference]
    after = payment_row(row.id)
    assert (after.status, after.stage, after.next_step) == ("PENDING", "unknown", "check")
    provider.checks = [ANSWERS["paid"]]
    make_due(row.id)
    advance(gateway)
    assert payment_row(row.id).status == "SUCCESSFUL"


def test_after_a_crash_too_it_is_not_sent_again_where_that_may_charge_twice(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    provider.capabilities = capable(idempotent_submit=False)
    payment_id = an_accepted_payment(gateway).payment_id
    a_claim()
    for _ in range(3):
        let_time_pass(seconds=86_400)
        advance(gateway)
    assert provider.submissions == []
    assert payment_row(payment_id).stage == "unknown"


def test_a_payment_that_was_seen_and_is_not_found_any_more_has_not_failed(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    provider.capabilities = capable(idempotent_submit=False)
    row = submitted(provider, gateway, "accepted")
    for _ in range(3):
        let_time_pass(seconds=10 * VISIBLE_AFTER_S)
        advance(gateway)
    assert (payment_row(row.id).status, payment_row(row.id).stage) == ("PENDING", "unknown")


# --- a refusal after a submission in doubt ------------------------------------------------------


@pytest.fixture
def refused_after_doubt(provider: ScriptedProvider, gateway: PaymentGateway) -> Payment:
    """A payment whose first submission got no answer, and whose second was refused."""
    provider.capabilities = capable(resend_after_s=10)
    row = submitted(provider, gateway, "unknown")
    provider.submits = [ANSWERS["refused"]]
    let_time_pass(seconds=11)
    step(gateway)
    step(gateway)
    # No third submission: its delay is longer than this test.
    provider.capabilities = capable(resend_after_s=1_000)
    return payment_row(row.id)


def test_a_refusal_after_a_submission_in_doubt_fails_nothing_yet(
    refused_after_doubt: Payment,
) -> None:
    assert (refused_after_doubt.status, refused_after_doubt.stage) == ("PENDING", "unknown")
    assert refused_after_doubt.next_step == "check"
    refused_at = exchanges_of(refused_after_doubt.id)[-1].finished_at
    assert refused_at is not None
    assert refused_after_doubt.next_action_at is not None
    assert 0 < (refused_after_doubt.next_action_at - refused_at).total_seconds() < 30


def test_the_refusal_ends_it_once_the_provider_has_long_had_nothing_else(
    gateway: PaymentGateway, refused_after_doubt: Payment
) -> None:
    row = refused_after_doubt
    let_time_pass(seconds=VISIBLE_AFTER_S - 20)
    make_due(row.id)
    advance(gateway)
    assert payment_row(row.id).status == "PENDING"
    let_time_pass(seconds=24)
    make_due(row.id)
    advance(gateway)
    after = payment_row(row.id)
    assert (after.status, after.failure_code) == ("FAILED", "request_refused")
    evidence = next(e for e in exchanges_of(row.id) if e.id == after.evidence_id)
    assert (evidence.kind, evidence.verdict, evidence.generation) == ("submit", "REFUSED", 3)
    assert events_of(row.id)[-1].data == {"reason": "refused_and_not_found"}


@pytest.mark.parametrize("answer", ["pending", "unknown", "not_sent", "duplicate", "refused"])
def test_without_a_not_found_the_refusal_ends_nothing(
    provider: ScriptedProvider, gateway: PaymentGateway, refused_after_doubt: Payment, answer: str
) -> None:
    provider.checks = [ANSWERS[answer]]
    let_time_pass(seconds=30 * 86_400)
    advance(gateway)
    assert payment_row(refused_after_doubt.id).status == "PENDING"


def test_the_first_submission_may_turn_out_paid_after_the_refusal(
    provider: ScriptedProvider, gateway: PaymentGateway, refused_after_doubt: Payment
) -> None:
    provider.checks = [ANSWERS["paid"]]
    let_time_pass(seconds=30 * 86_400)
    advance(gateway)
    assert payment_row(refused_after_doubt.id).status == "SUCCESSFUL"


@pytest.mark.parametrize("third", ["unknown", "accepted", "not_sent"])
def test_a_refusal_that_is_not_the_last_word_ends_nothing(
    provider: ScriptedProvider, gateway: PaymentGateway, refused_after_doubt: Payment, third: str
) -> None:
    row = refused_after_doubt
    provider.submits = [ANSWERS[third]]
    provider.capabilities = capable(resend_after_s=10)
    let_time_pass(seconds=41)
    advance(gateway)
    assert len(provider.submissions) == 3
    provider.capabilities = capable(resend_after_s=1_000)
    let_time_pass(seconds=2 * VISIBLE_AFTER_S)
    advance(gateway)
    assert payment_row(row.id).status == "PENDING"


# --- a refusal of another request than the only one ---------------------------------------------


def sent_twice(_order: PaymentOrder, http_client: HttpClient) -> Observation:
    """Sends twice, as MTN's adapter does after a 401: the first is taken, the second refused."""
    for _ in range(2):
        http_client.send(HttpRequest("POST", "http://rail.test/", {}, b"{}"))
    return ANSWERS["refused"]


class AnsweringTransport(Transport):
    """Every request is answered by a 401, without a network."""

    def exchange(
        self, _call: HttpRequest, *, leave_before: float | None
    ) -> HttpResponse | NoResponse:
        assert leave_before is not None, "a submission has a lease"
        return HttpResponse(401, {}, b"")


def test_a_refusal_of_the_second_request_of_a_submission_ends_nothing(
    app: Flask, provider: ScriptedProvider
) -> None:
    gateway = replace(rails_of(app, provider), transport=AnsweringTransport(user_agent="test"))
    provider.submits = [sent_twice]
    provider.checks = [ANSWERS["paid"]]
    payment_id = an_accepted_payment(gateway).payment_id
    step(gateway)
    row = payment_row(payment_id)
    assert (row.status, row.stage, row.next_step) == ("PENDING", "unknown", "check")
    (sent,) = exchanges_of(payment_id)
    assert (sent.verdict, sent.reason, sent.requests_left) == ("UNKNOWN", "sent_more_than_once", 2)
    make_due(payment_id)
    advance(gateway)
    assert payment_row(payment_id).status == "SUCCESSFUL"


@pytest.mark.parametrize("answer", ["refused", "declined"])
def test_a_refusal_after_a_submission_that_was_answered_ends_nothing_yet(
    provider: ScriptedProvider, gateway: PaymentGateway, answer: str
) -> None:
    provider.submits = [ANSWERS["throttled"], ANSWERS[answer]]
    payment_id = an_accepted_payment(gateway).payment_id
    for _ in range(2):
        make_due(payment_id)
        step(gateway)
    row = payment_row(payment_id)
    assert (row.status, row.stage, row.next_step) == ("PENDING", "unknown", "check")
    assert events_of(payment_id)[-1].data == {"reason": "sent_before"}
    let_time_pass(seconds=VISIBLE_AFTER_S + 1)
    make_due(payment_id)
    advance(gateway)
    # A refusal and a late "not found" end it. A failure that answers a request needs a check.
    assert payment_row(payment_id).status == ("FAILED" if answer == "refused" else "PENDING")


def test_a_failure_told_of_a_resend_is_asked_for_before_it_is_believed(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = submitted(provider, gateway, "unknown")
    provider.submits = [ANSWERS["declined"]]
    let_time_pass(seconds=5)
    make_due(row.id)
    advance(gateway)
    assert len(provider.submissions) == 2
    assert payment_row(row.id).status == "PENDING"
    provider.checks = [ANSWERS["declined"]]
    make_due(row.id)
    advance(gateway)
    assert payment_row(row.id).status == "FAILED"


def test_a_refusal_after_submissions_that_never_left_ends_the_payment(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    provider.submits = [ANSWERS["not_sent"], ANSWERS["not_sent"], ANSWERS["refused"]]
    payment_id = an_accepted_payment(gateway).payment_id
    for _ in range(3):
        make_due(payment_id)
        step(gateway)
    assert payment_row(payment_id).status == "FAILED"


# --- adapters that are missing or faulty --------------------------------------------------------


class Faulty(ScriptedProvider):
    """Raises in the method that `fault` names, as an adapter with a bug does."""

    fault = ""

    def prepare(self, *arguments: Any) -> Observation | None:
        return self._or_fault("prepare") or super().prepare(*arguments)

    def submit(self, *arguments: Any) -> Observation:
        return self._or_fault("submit") or super().submit(*arguments)

    def check(self, *arguments: Any) -> Observation:
        return self._or_fault("check") or super().check(*arguments)

    def _or_fault(self, where: str) -> None:
        if self.fault == where:
            raise ZeroDivisionError(where)


@pytest.fixture
def neighbour() -> ScriptedProvider:
    return ScriptedProvider(code="neighbour", checks=[ANSWERS["pending"]])


def with_other_merchant(gateway: PaymentGateway, app: Flask) -> PaymentGateway:
    accounts = tuple(
        ProviderAccount(
            *(None, code, Mode.TEST, "http://127.0.0.1:1", "sandbox"),
            {"merchant": "another"} if code == SCRIPTED else {},
        )
        for code in gateway.registry.codes()
    )
    cipher = app.extensions["maramoja"].cipher
    return replace(gateway, accounts=ProviderAccounts(accounts, cipher))


def without_account(gateway: PaymentGateway, app: Flask) -> PaymentGateway:
    accounts = tuple(a for a in gateway.accounts.platform() if a.provider != SCRIPTED)
    cipher = app.extensions["maramoja"].cipher
    return replace(gateway, accounts=ProviderAccounts(accounts, cipher))


def without_adapter(gateway: PaymentGateway, _app: Flask) -> PaymentGateway:
    codes = [code for code in gateway.registry.codes() if code != SCRIPTED]
    return replace(gateway, registry=Registry({code: gateway.registry.get(code) for code in codes}))


GONE: Final = [with_other_merchant, without_account, without_adapter]


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("seen", [0, 1])
def test_a_payment_whose_rail_is_gone_is_kept_and_the_others_go_on(
    app: Flask, neighbour: ScriptedProvider, gone: Any, seen: int
) -> None:
    provider = ScriptedProvider(checks=[ANSWERS["not_found"]])
    whole = rails_of(app, provider, neighbour)
    row = payment_row(an_accepted_payment(whole, order=an_order(provider=SCRIPTED)).payment_id)
    for _ in range(seen):
        advance(whole)
    broken = gone(whole, app)
    for _ in range(3):
        other = an_accepted_payment(whole, order=an_order(provider="neighbour")).payment_id
        let_time_pass(seconds=400)
        advance(broken)
        assert payment_row(other).stage == "awaiting_payer"
    after = payment_row(row.id)
    assert (after.status, len(provider.submissions)) == ("PENDING", seen)
    assert 40 < due_in_s(row.id) <= 300
    provider.checks = [ANSWERS["paid"]]
    for _ in range(2):
        make_due(row.id)
        advance(whole)
    assert payment_row(row.id).status == "SUCCESSFUL"
    assert provider.submissions == [row.reference]


def test_another_merchants_word_that_a_payment_is_there_counts(
    app: Flask, provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    row = submitted(provider, gateway, "accepted")
    provider.checks = [ANSWERS["paid"]]
    make_due(row.id)
    advance(with_other_merchant(gateway, app))
    assert payment_row(row.id).status == "SUCCESSFUL"


def test_a_worker_that_remembers_an_older_account_reads_it_anew_before_it_waits(
    app: Flask, provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    """Otherwise the first payments after a change would wait a minute for an operator to act."""
    tenant, cipher = a_tenant(), app.extensions["maramoja"].cipher
    worker = replace(gateway, accounts=ProviderAccounts((), cipher))
    own = NewAccount(SCRIPTED, Mode.LIVE, "http://127.0.0.1:1", "real", {"merchant": "first"})
    with pytest.raises(ProviderNotEnabled):
        worker.accounts.find(tenant_id=tenant.id, provider=SCRIPTED, mode=Mode.LIVE)
    # Each ends with its submission: no check of the first is due beside the second.
    provider.submits = [ANSWERS["paid"]]
    for merchant in ("first", "second"):
        set_account(
            tenant,
            replace(own, credentials={"merchant": merchant}),
            cipher=cipher,
            actor="cli:test",
        )
        acceptor = replace(gateway, accounts=ProviderAccounts((), cipher))
        an_accepted_payment(acceptor, context=an_asker(caller=a_caller(tenant=tenant)))
        provider.submissions.clear()
        assert advance(worker) == 1
        assert len(provider.submissions) == 1, merchant


@pytest.mark.parametrize("fault", ["prepare", "submit", "check"])
def test_a_faulty_adapter_ends_no_payment_and_stops_no_other(
    app: Flask, neighbour: ScriptedProvider, fault: str
) -> None:
    provider = Faulty(checks=[ANSWERS["unknown"]])
    gateway = rails_of(app, provider, neighbour)
    row = payment_row(an_accepted_payment(gateway, order=an_order(provider=SCRIPTED)).payment_id)
    if fault == "check":
        advance(gateway)
    provider.fault = fault
    for _ in range(3):
        other = an_accepted_payment(gateway, order=an_order(provider="neighbour")).payment_id
        let_time_pass(seconds=400)
        advance(gateway)
        assert payment_row(other).stage == "awaiting_payer"
    after = payment_row(row.id)
    # A fault before `submit`: nothing was sent.
    stage, step = {"prepare": ("accepted", "submit"), "submit": ("unknown", "check")}.get(
        fault, ("awaiting_payer", "check")
    )
    assert (after.status, after.stage, after.next_step) == ("PENDING", stage, step)
    provider.fault, provider.checks = "", [ANSWERS["paid"]]
    for _ in range(2):
        make_due(row.id)
        advance(gateway)
    assert payment_row(row.id).status == "SUCCESSFUL"
    assert len(provider.submissions) <= 1
