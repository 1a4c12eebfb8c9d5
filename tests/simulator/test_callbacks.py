"""Callbacks in each mode, against a small receiver."""

from __future__ import annotations

import time

import pytest

from tests.simulator.conftest import Receiver
from tests.simulator.driving import Merchant, eventually, new_reference

STUCK = "46733123453"
REJECTED = "46733123451"


def pay(merchant: Merchant, receiver: Receiver, **options: str) -> str:
    reference = new_reference()
    headers = {"X-Callback-Url": receiver.url}
    assert merchant.pay(reference, headers=headers, **options).status_code == 202
    return reference


def statuses(receiver: Receiver, count: int) -> list[str]:
    return [callback.body["status"] for callback in receiver.expect(count)]


@pytest.mark.parametrize("verb", ["PUT", "POST"])
def test_one_callback_with_the_status_and_without_the_reference(
    merchant: Merchant, receiver: Receiver, verb: str
) -> None:
    merchant.set(callback_verb=verb)
    reference = pay(merchant, receiver)
    (callback,) = receiver.expect(1)
    assert (callback.verb, callback.path) == (verb, "/callbacks/some-token")
    assert callback.body == merchant.ask(reference).json()
    assert reference not in str(callback.body)
    # The simulator notes it once it has read the receiver's answer.
    (noted,) = eventually(lambda: merchant.seen("callbacks", reference=reference))
    assert (noted["mode"], noted["verb"], noted["answer"]) == ("normal", verb, "200")


def test_no_callback_without_a_url(merchant: Merchant, receiver: Receiver) -> None:
    merchant.pay()
    pay(merchant, receiver)
    receiver.expect(1)


def test_a_failure_is_told_too(merchant: Merchant, receiver: Receiver) -> None:
    pay(merchant, receiver, msisdn=REJECTED)
    (callback,) = receiver.expect(1)
    assert (callback.body["status"], callback.body["reason"]) == ("FAILED", "APPROVAL_REJECTED")


def test_a_pending_payment_is_told_when_it_ends(merchant: Merchant, receiver: Receiver) -> None:
    reference = pay(merchant, receiver, msisdn=STUCK)
    time.sleep(0.1)
    assert receiver.callbacks == []
    merchant.admin("POST", f"approve/{reference}")
    assert statuses(receiver, 1) == ["SUCCESSFUL"]


def test_a_due_payment_is_told_without_anyone_asking(
    merchant: Merchant, receiver: Receiver
) -> None:
    merchant.set(approval_delay_s=0.1)
    pay(merchant, receiver)
    assert statuses(receiver, 1) == ["SUCCESSFUL"]


def test_none(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="none")
    reference = pay(merchant, receiver)
    receiver.expect(0)
    assert merchant.status(reference) == "SUCCESSFUL"


def test_twice(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="twice")
    pay(merchant, receiver)
    first, second = receiver.expect(2)
    assert first.body == second.body


def test_many_times(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="times", callback_times=5)
    pay(merchant, receiver)
    assert statuses(receiver, 5) == ["SUCCESSFUL"] * 5


def test_late(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="late", callback_delay_s=60)
    reference = pay(merchant, receiver)
    assert merchant.status(reference) == "SUCCESSFUL"
    receiver.expect(0)
    merchant.admin("POST", "clock", {"advance_s": 61})
    receiver.expect(1)


def test_early_comes_before_the_answer(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="early")
    receiver.pause_s = 0.2
    start = time.monotonic()
    pay(merchant, receiver)
    assert len(receiver.callbacks) == 1, "kept before the 202 was read"
    assert time.monotonic() - start >= 0.2
    receiver.expect(1)


def test_out_of_order_ends_with_a_pending(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="out_of_order")
    pay(merchant, receiver)
    assert statuses(receiver, 2) == ["SUCCESSFUL", "PENDING"]


def test_wrong_amount(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="wrong_amount")
    reference = pay(merchant, receiver)
    (callback,) = receiver.expect(1)
    truth = merchant.ask(reference).json()
    assert callback.body.pop("amount") != truth.pop("amount")
    assert callback.body == truth


@pytest.mark.parametrize(("msisdn", "truth"), [(STUCK, "PENDING"), (REJECTED, "FAILED")])
def test_forged_tells_of_a_success_that_is_none(
    merchant: Merchant, receiver: Receiver, msisdn: str, truth: str
) -> None:
    merchant.set(callback_mode="forged")
    reference = pay(merchant, receiver, msisdn=msisdn)
    (callback,) = receiver.expect(1)
    assert callback.body["status"] == "SUCCESSFUL"
    assert callback.body["financialTransactionId"]
    assert "reason" not in callback.body
    assert merchant.status(reference) == truth
    assert merchant.movements(reference) == 0


def test_forged_is_all_that_is_told(merchant: Merchant, receiver: Receiver) -> None:
    merchant.set(callback_mode="forged")
    reference = pay(merchant, receiver, msisdn=STUCK)
    merchant.admin("POST", f"reject/{reference}")
    assert statuses(receiver, 1) == ["SUCCESSFUL"]
    assert merchant.status(reference) == "FAILED"


@pytest.mark.parametrize(
    ("msisdn", "told"),
    [(REJECTED, ["FAILED", "SUCCESSFUL"]), ("256772123456", ["SUCCESSFUL", "FAILED"])],
)
def test_contradictory(
    merchant: Merchant, receiver: Receiver, msisdn: str, told: list[str]
) -> None:
    merchant.set(callback_mode="contradictory")
    reference = pay(merchant, receiver, msisdn=msisdn)
    assert statuses(receiver, 2) == told
    assert merchant.status(reference) == told[0]


def test_one_payment_can_have_a_mode_of_its_own(merchant: Merchant, receiver: Receiver) -> None:
    merchant.fault("callback", match={"msisdn": STUCK}, parameters={"mode": "times", "times": 4})
    pay(merchant, receiver)
    receiver.expect(1)
    reference = pay(merchant, receiver, msisdn=STUCK)
    merchant.admin("POST", f"approve/{reference}")
    receiver.expect(5)


def test_a_gateway_that_is_away_is_noted(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference, headers={"X-Callback-Url": "http://127.0.0.1:1/gone"})
    (noted,) = eventually(lambda: merchant.seen("callbacks", reference=reference))
    assert noted["answer"] == "error: ConnectionRefusedError"
    assert merchant.status(reference) == "SUCCESSFUL"
