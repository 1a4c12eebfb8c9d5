"""A callback is a hint (G6): whatever it says, our status is the provider's status."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import pytest
import requests

from devstack.supervisor import wait_until
from tests.journeys.gateway import ANSWER_MAX_S, PATIENCE_S, Gateway, Paid, Row, new_payer
from tests.journeys.referee import assert_charged_once, assert_replayed, assert_told_the_truth

# A callback that a busy gateway takes late is not sent again. Less than our calls wait.
TAKEN = {"callback_timeout_s": 10.0}
# How many callbacks each mode sends for one payment.
MODES = {
    "normal": 1,
    "none": 0,
    "twice": 2,
    "times": 3,
    "late": 1,
    "early": 1,
    "out_of_order": 2,
    "wrong_amount": 1,
    "forged": 1,
    "contradictory": 2,
}


@dataclass(frozen=True)
class Told:
    """Two payments with the same kind of callbacks: one payer approved, the other rejected."""

    approved: Paid
    rejected: Paid


@pytest.fixture(scope="module")
def told(running: Gateway) -> dict[str, Told]:
    """The pairs by mode; all payments have ended and all callbacks were received."""
    running.heal()
    running.provider.settings(approval_delay_s=None, **TAKEN)
    payers = {mode: (new_payer(), new_payer()) for mode in MODES}
    for mode, pair in payers.items():
        for payer in pair:
            parameters = {"mode": mode, "times": 3, "delay_s": 2.0}
            running.provider.fault("callback", match={"msisdn": payer}, parameters=parameters)
    paid = running.pay_all([payer for pair in payers.values() for payer in pair])
    found = {mode: Told(paid[yes], paid[no]) for mode, (yes, no) in payers.items()}
    for one in paid.values():
        running.await_state(one, stage="awaiting_payer")
    _await_asked_after_forged(running, found["forged"])
    for pair_told in found.values():
        running.provider.approve(pair_told.approved.reference)
        running.provider.reject(pair_told.rejected.reference)
    running.await_end(*paid.values())
    expected = {
        one.reference: MODES[m] for m, t in found.items() for one in (t.approved, t.rejected)
    }
    _await_callbacks(running, expected)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_callbacks_of_every_kind_leave_the_ledgers_truth(
    gateway: Gateway, told: dict[str, Told], mode: str
) -> None:
    pair = told[mode]
    assert_charged_once(gateway, pair.approved)
    truth = assert_told_the_truth(gateway, pair.rejected)
    assert (truth.status, truth.movements) == ("FAILED", [])
    assert gateway.show(pair.rejected)["failure"]["code"] == "payer_rejected"
    assert_replayed(gateway, pair.rejected, status="FAILED")


def test_a_callback_that_comes_before_the_answer_it_is_about_disturbs_nothing(
    gateway: Gateway,
) -> None:
    payer = new_payer()
    gateway.provider.settings(**TAKEN)
    # The payer approves, and the callback is sent before the 202.
    gateway.provider.fault("callback", match={"msisdn": payer}, parameters={"mode": "early"})
    gateway.provider.fault("slow", match={"msisdn": payer}, parameters={"delay_s": 0.5})
    paid = gateway.pay(payer=payer)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)
    (callback,) = gateway.provider.rows("callbacks", reference=paid.reference)
    ((received_first,),) = gateway.rows(
        "SELECT c.received_at < e.finished_at FROM callbacks c"
        " JOIN provider_exchanges e USING (payment_id) WHERE c.payment_id = %s AND e.kind = 'submit'",
        paid.id,
    )
    assert (callback["answer"], received_first) == ("200", True)


def test_a_callback_has_the_provider_asked_at_once(gateway: Gateway) -> None:
    gateway.provider.settings(approval_delay_s=None)
    paid = gateway.pay()
    gateway.await_state(paid, stage="awaiting_payer")
    wait_until(
        lambda: bool(
            gateway.rows(
                "UPDATE payments SET next_action_at = clock_timestamp() + interval '1 hour'"
                " WHERE id = %s AND lease_until IS NULL RETURNING id",
                paid.id,
            )
        ),
        what="the payment is never at rest",
        limit_s=PATIENCE_S,
    )
    gateway.provider.approve(paid.reference)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)


def test_forged_words_from_anyone_end_nothing_and_revive_nothing(gateway: Gateway) -> None:
    gateway.provider.settings(callback_mode="none", approval_delay_s=None)
    paid = gateway.pay()
    gateway.await_state(paid, stage="awaiting_payer")
    forge(gateway, paid.reference, {"status": "SUCCESSFUL", "financialTransactionId": "1"})
    forge(gateway, paid.reference, {"status": "FAILED", "reason": "APPROVAL_REJECTED"})
    forge(gateway, str(uuid4()), {"status": "SUCCESSFUL"})
    asked = len(gateway.provider.truth(paid.reference).asked("status"))
    gateway.await_call(paid, "status", times=asked + 1)
    assert gateway.show(paid)["status"] == "PENDING"
    gateway.provider.reject(paid.reference)
    gateway.await_end(paid)
    row = gateway.row(paid)
    forge(gateway, paid.reference, {"status": "SUCCESSFUL", "financialTransactionId": "2"})
    assert gateway.row(paid) == row
    truth = assert_told_the_truth(gateway, paid)
    assert (truth.status, truth.movements) == ("FAILED", [])


def forge(gateway: Gateway, reference: str, body: Row) -> None:
    """Send a callback as MTN would, for a reference that a stranger has learnt."""
    url = f"{gateway.stack.api_url}/callbacks/mtn_momo/{reference}"
    answer = requests.put(url, json=body, timeout=ANSWER_MAX_S)
    # Whatever it was, the response shows a stranger nothing.
    assert (answer.status_code, answer.content) == (200, b"")


def _await_asked_after_forged(gateway: Gateway, forged: Told) -> None:
    """Both callbacks said SUCCESSFUL at once; we check the status and trust only its answer."""
    for paid in (forged.approved, forged.rejected):
        _await_callbacks(gateway, {paid.reference: 1})
        asked = len(gateway.provider.truth(paid.reference).asked("status"))
        gateway.await_call(paid, "status", times=asked + 1)
        assert gateway.show(paid)["status"] == "PENDING"


def _await_callbacks(gateway: Gateway, expected: dict[str, int]) -> None:
    def all_taken() -> bool:
        taken = [
            row["reference_id"]
            for row in gateway.provider.rows("callbacks")
            if row["answer"] == "200"
        ]
        return all(taken.count(reference) == n for reference, n in expected.items())

    wait_until(all_taken, what="callbacks are missing", limit_s=PATIENCE_S)
