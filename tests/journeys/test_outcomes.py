"""MTN's magic numbers through the REST API: each has its documented end, in our stable codes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.journeys.gateway import Gateway, Paid, new_payer
from tests.journeys.referee import assert_charged_once, assert_replayed, assert_told_the_truth

MAGIC = "467331234"
# Last digits of the number → MTN's reason (its sandbox matrix for requesttopay), our code.
FAILURES = {
    "50": ("INTERNAL_PROCESSING_ERROR", "provider_error"),
    "51": ("APPROVAL_REJECTED", "payer_rejected"),
    "52": ("EXPIRED", "payer_did_not_approve"),
    "55": ("PAYER_NOT_FOUND", "payer_not_found"),
    "56": ("PAYEE_NOT_ALLOWED_TO_RECEIVE", "payee_cannot_receive"),
    "57": ("NOT_ALLOWED", "provider_not_allowed"),
    "58": ("NOT_ALLOWED_TARGET_ENVIRONMENT", "provider_misconfigured"),
    "59": ("INVALID_CALLBACK_URL_HOST", "provider_misconfigured"),
    "60": ("INVALID_CURRENCY", "currency_refused"),
    "61": ("INTERNAL_PROCESSING_ERROR", "provider_error"),
    "62": ("SERVICE_UNAVAILABLE", "provider_unavailable"),
    "63": ("COULD_NOT_PERFORM_TRANSACTION", "payer_did_not_approve"),
    "64": ("TRANSFER_TYPE_UNKNOWN", "other"),
}


@dataclass(frozen=True)
class Sandbox:
    """One payment for each number, sent at once; all but `stuck` have ended."""

    failed: dict[str, Paid]
    stuck: Paid
    delayed: Paid
    normal: Paid


@pytest.fixture(scope="module")
def sandbox(running: Gateway) -> Sandbox:
    running.heal()
    running.provider.settings(delayed_success_s=8.0)
    amounts = {ending: f"{int(ending)}.{ending}" for ending in (*FAILURES, "53", "54")}
    paid = {e: running.pay(payer=MAGIC + e, amount=amount) for e, amount in amounts.items()}
    assert running.show(paid["54"])["status"] == "PENDING"
    normal = running.pay(payer=new_payer(), amount="0.01")
    running.await_end(normal, *(one for ending, one in paid.items() if ending != "53"))
    return Sandbox({e: paid[e] for e in FAILURES}, paid["53"], paid["54"], normal)


@pytest.mark.parametrize("ending", FAILURES)
def test_a_number_that_fails_gives_its_failure_code_moves_nothing_and_tells_why(
    gateway: Gateway, sandbox: Sandbox, ending: str
) -> None:
    paid, (reason, code) = sandbox.failed[ending], FAILURES[ending]
    shown = gateway.show(paid)
    assert (shown["status"], shown["stage"]) == ("FAILED", "final")
    assert (shown["failure"]["code"], shown["failure"]["provider_code"]) == (code, reason)
    truth = assert_told_the_truth(gateway, paid)
    assert (truth.status, truth.creations[0]["reason"]) == ("FAILED", reason)
    assert told(gateway, paid) == ["payment.accepted", "payment.pending", "payment.failed"]
    assert_replayed(gateway, paid, status="FAILED")


def test_a_number_that_stays_pending_is_asked_about_and_never_ended_by_us(
    gateway: Gateway, sandbox: Sandbox
) -> None:
    paid = sandbox.stuck
    asked = len(gateway.provider.truth(paid.reference).asked("status"))
    gateway.await_call(paid, "status", times=asked + 2)
    assert told(gateway, paid) == ["payment.accepted", "payment.pending"]
    assert_replayed(gateway, paid, status="PENDING")
    gateway.provider.approve(paid.reference)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)


@pytest.mark.parametrize("which", ["delayed", "normal"])
def test_a_number_that_pays_now_or_later_is_charged_its_amount_once(
    gateway: Gateway, sandbox: Sandbox, which: str
) -> None:
    paid: Paid = getattr(sandbox, which)
    assert told(gateway, paid) == ["payment.accepted", "payment.pending", "payment.successful"]
    assert_charged_once(gateway, paid)


def told(gateway: Gateway, paid: Paid) -> list[str]:
    """The types of the payment's events, in order."""
    return [event["type"] for event in gateway.story(paid)]
