"""A refusal ends a payment only if no other request of it can have reached the provider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from psycopg.errors import CheckViolation

from payments_app.kernel.errors import GatewayError
from payments_app.kernel.http.messages import HttpClient
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.payments.recovery import begin_recovery, finish_recovery
from payments_app.providers.contract import Observation, PaymentOrder, ProviderAccount, Verdict
from tests.builders import (
    ANSWERS,
    SUBMISSION,
    ScriptedProvider,
    a_claim,
    advance,
    advance_payment,
    an_accepted_payment,
    an_asker,
    exchanges_of,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)
from tests.storage.attacker import Attacker

VISIBLE_AFTER_S = 60.0


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(checks=[ANSWERS["unknown"]])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


def act(gateway: PaymentGateway, payment: Payment, *, after_s: float = 0.0) -> Payment:
    """Run the payment's next step now; returns the row after it."""
    let_time_pass(seconds=after_s)
    make_due(payment.id, forget_lease=True)
    advance(gateway)
    return payment_row(payment.id)


def accepted(gateway: PaymentGateway) -> Payment:
    return payment_row(an_accepted_payment(gateway).payment_id)


def submitted_once(gateway: PaymentGateway) -> Payment:
    """After its first submission, and nothing that is due a second later."""
    payment_id = an_accepted_payment(gateway).payment_id
    advance_payment(a_claim(), gateway)
    return payment_row(payment_id)


# --- the provider has shown the payment ---------------------------------------------------------


@pytest.mark.parametrize("shown_by", ["accepted", "pending", "duplicate"])
def test_what_the_provider_has_shown_is_not_ended_by_a_refusal_and_one_not_found(
    provider: ScriptedProvider, gateway: PaymentGateway, shown_by: str
) -> None:
    provider.submits = [
        ANSWERS["accepted" if shown_by == "accepted" else "unknown"],
        ANSWERS["refused"],
    ]
    provider.checks = [ANSWERS["not_found"]]
    row = act(gateway, accepted(gateway))
    row = act(gateway, row, after_s=5)
    assert len(provider.submissions) == 2
    provider.capabilities = replace(provider.capabilities, resend_after_s=10_000)
    if shown_by != "accepted":
        provider.checks = [ANSWERS[shown_by]]
        act(gateway, row)
    provider.checks = [ANSWERS["not_found"]]
    row = act(gateway, row, after_s=VISIBLE_AFTER_S + 1)
    assert (row.status, row.stage) == ("PENDING", "unknown")
    provider.checks = [ANSWERS["paid"]]
    assert act(gateway, row).status == "SUCCESSFUL"


@pytest.mark.parametrize(
    ("submits", "status"),
    [
        pytest.param(("unknown", "duplicate", "refused"), "PENDING", id="of what we had sent"),
        pytest.param(("duplicate", "refused"), "FAILED", id="of the first one: not ours"),
    ],
)
def test_a_duplicate_shows_the_payment_only_if_we_had_sent_it(
    provider: ScriptedProvider, gateway: PaymentGateway, submits: tuple[str, ...], status: str
) -> None:
    provider.submits = [ANSWERS[one] for one in submits]
    provider.checks = [ANSWERS["not_found"]]
    row = act(gateway, accepted(gateway))
    while len(provider.submissions) < len(submits):
        row = act(gateway, row, after_s=4)
    provider.capabilities = replace(provider.capabilities, resend_after_s=10_000)
    assert act(gateway, row, after_s=VISIBLE_AFTER_S + 1).status == status


# --- a request that was counted -----------------------------------------------------------------


def test_a_request_that_was_counted_has_left_whatever_the_adapter_says_of_its_answer(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    def throttled(_order: PaymentOrder, http_client: HttpClient) -> Observation:
        http_client.send(SUBMISSION)
        return Observation(Verdict.NOT_SENT, "throttled")

    provider.submits = [throttled, ANSWERS["refused"]]
    row = act(gateway, accepted(gateway))
    row = act(gateway, row)
    assert len(provider.submissions) == 2
    assert (row.status, row.stage) == ("PENDING", "unknown")


def test_a_token_that_was_refused_is_no_request_for_money(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    provider.submits = [ANSWERS["refused"]]
    provider.not_ready = Observation(Verdict.NOT_SENT, "token_unavailable", http_status=503)
    row = submitted_once(gateway)
    provider.not_ready = None
    assert act(gateway, row).status == "FAILED"
    assert [one.requests_left for one in exchanges_of(row.id)] == [0, 1]


def test_a_throttled_request_is_not_repeated_where_that_may_charge_twice(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    provider.capabilities = replace(provider.capabilities, idempotent_submit=False)
    provider.submits = [ANSWERS["throttled"], ANSWERS["accepted"]]
    row = accepted(gateway)
    for _ in range(3):
        row = act(gateway, row, after_s=VISIBLE_AFTER_S)
    assert provider.submissions == [row.reference]
    assert (row.stage, row.next_step) == ("unknown", "check")


# --- what an adapter does in prepare, and after ---------------------------------------------------


class Preparing(ScriptedProvider):
    """Calls `act` in `prepare`."""

    act: Callable[[HttpClient], Observation | None] = staticmethod(lambda _wire: None)

    def prepare(self, _account: ProviderAccount, http_client: HttpClient) -> Observation | None:
        return self.act(http_client)


def prepared(app: Flask, does: Callable[[HttpClient], Observation | None], *submits: str) -> Any:
    provider = Preparing(submits=[ANSWERS[one] for one in submits], checks=[ANSWERS["unknown"]])
    provider.act = does
    return provider, rails_of(app, provider)


def test_a_request_that_leaves_while_an_adapter_prepares_counts(app: Flask) -> None:
    def sends(http_client: HttpClient) -> None:
        http_client.send(SUBMISSION)

    _, gateway = prepared(app, sends, "refused")
    row = submitted_once(gateway)
    assert (row.status, row.stage) == ("PENDING", "unknown")
    assert [one.requests_left for one in exchanges_of(row.id)] == [2]


def test_an_error_after_a_request_that_left_in_prepare_is_unknown(app: Flask) -> None:
    def fails(http_client: HttpClient) -> None:
        http_client.send(SUBMISSION)
        raise GatewayError("no account")

    _, gateway = prepared(app, fails, "refused")
    assert act(gateway, accepted(gateway)).stage == "unknown"


@pytest.mark.parametrize("says", ["refused", "declined", "not_found", "paid", "accepted"])
def test_an_adapter_that_prepares_says_nothing_of_a_payment(app: Flask, says: str) -> None:
    provider, gateway = prepared(app, lambda _wire: ANSWERS[says], "accepted")
    row = act(gateway, accepted(gateway))
    assert (row.status, row.stage) == ("PENDING", "accepted")
    provider.act = lambda _wire: None
    row = act(gateway, row)
    assert row.stage == "awaiting_payer"
    provider.act = lambda _wire: ANSWERS[says]
    assert act(gateway, row).stage == "awaiting_payer"


def test_a_wire_that_is_kept_sends_nothing_once_the_submission_was_judged(
    provider: ScriptedProvider, gateway: PaymentGateway
) -> None:
    kept: list[HttpClient] = []

    def keeps(_order: PaymentOrder, http_client: HttpClient) -> Observation:
        kept.append(http_client)
        http_client.send(SUBMISSION)
        return ANSWERS["refused"]

    provider.submits = [keeps]
    assert act(gateway, accepted(gateway)).status == "FAILED"
    with pytest.raises(RuntimeError):
        kept[0].send(SUBMISSION)


@pytest.mark.parametrize("status", [0, 99_999_999_999])
def test_a_status_that_is_none_of_https_does_not_keep_an_answer_from_being_stored(
    provider: ScriptedProvider, gateway: PaymentGateway, status: int
) -> None:
    provider.checks = [replace(ANSWERS["paid"], http_status=status, requests_left=2)]
    row = act(gateway, accepted(gateway))
    assert act(gateway, row).status == "SUCCESSFUL"


# --- after a restore --------------------------------------------------------------------------------


def test_a_refusal_soon_after_a_restore_may_not_be_of_the_only_request(
    provider: ScriptedProvider, gateway: PaymentGateway, past_rules: psycopg.Connection
) -> None:
    """The provider took the first; it is not in the backup, and the client repeats its request."""
    provider.submits = [ANSWERS["accepted"], ANSWERS["refused"]]
    context = an_asker(key=uuid4())
    first = payment_row(an_accepted_payment(gateway, context=context).payment_id)
    act(gateway, first)
    tables = (
        "provider_exchanges",
        "events",
        "idempotency_keys",
        "payments",
    )
    for table in tables:
        past_rules.execute(f"DELETE FROM {table}")  # noqa: S608  names of ours
    begin_recovery(actor="cli:test")
    finish_recovery(actor="cli:test")
    again = payment_row(an_accepted_payment(gateway, context=context).payment_id)
    assert again.reference == first.reference
    row = act(gateway, again)
    assert (row.status, row.stage) == ("PENDING", "unknown")
    provider.checks = [ANSWERS["paid"]]
    assert act(gateway, row).status == "SUCCESSFUL"


# --- the database enforces it too -----------------------------------------------------------------


def stored(
    attacker: Attacker,
    payment: Payment,
    generation: int,
    verdict: str,
    *,
    kind: str = "submit",
    left: int | None = 1,
) -> int:
    """Insert an exchange by plain SQL; returns its id."""
    found = attacker.run(
        "INSERT INTO provider_exchanges (tenant_id, payment_id, generation, kind, reference, verdict,"
        " requests_left, finished_at)"
        " SELECT tenant_id, id, %(generation)s, %(kind)s, reference, %(verdict)s, %(left)s, now()"
        " FROM payments WHERE id = %(id)s RETURNING id",
        generation=generation,
        kind=kind,
        verdict=verdict,
        left=left,
        id=payment.id,
    )
    row = found.fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    ("earlier", "ending"),
    [
        pytest.param([("NOT_SENT", "submit", 1)], "REFUSED", id="counted, no status"),
        pytest.param([("UNKNOWN", "submit", 1)], "FAILED", id="failed is the answer to a second"),
        pytest.param([("PENDING", "submit", 1)], "REFUSED", id="it was accepted"),
    ],
)
@pytest.mark.parametrize("then_not_found", [False, True])
def test_the_database_refuses_an_end_by_an_answer_that_proves_nothing(
    attacker: Attacker,
    gateway: PaymentGateway,
    earlier: list[tuple[str, str, int]],
    ending: str,
    *,
    then_not_found: bool,
) -> None:
    payment = accepted(gateway)
    for generation, (verdict, kind, left) in enumerate(earlier, start=1):
        stored(attacker, payment, generation, verdict, kind=kind, left=left)
    evidence = stored(attacker, payment, 8, ending)
    if then_not_found:
        stored(attacker, payment, 9, "NOT_FOUND", kind="check", left=None)
    attacker.tell(payment, "FAILED")
    if then_not_found and earlier[0][0] == "NOT_SENT":
        # The provider has no such payment: then a refusal is final.
        attacker.end(payment, "FAILED", evidence)
        return
    with pytest.raises(CheckViolation):
        attacker.end(payment, "FAILED", evidence)


def test_the_database_counts_no_less_than_nothing(
    attacker: Attacker, gateway: PaymentGateway
) -> None:
    with pytest.raises(CheckViolation):
        stored(attacker, accepted(gateway), 1, "REFUSED", left=-1)
