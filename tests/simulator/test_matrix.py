"""Every row of the sandbox's scenario matrix (provider facts 1.14), written out again here."""

from __future__ import annotations

import pytest

from tests.simulator.driving import Merchant, new_reference

REQUEST_TO_PAY = {
    "46733123450": "INTERNAL_PROCESSING_ERROR",
    "46733123451": "APPROVAL_REJECTED",
    "46733123452": "EXPIRED",
    "46733123455": "PAYER_NOT_FOUND",
    "46733123456": "PAYEE_NOT_ALLOWED_TO_RECEIVE",
    "46733123457": "NOT_ALLOWED",
    "46733123458": "NOT_ALLOWED_TARGET_ENVIRONMENT",
    "46733123459": "INVALID_CALLBACK_URL_HOST",
    "46733123460": "INVALID_CURRENCY",
    "46733123461": "INTERNAL_PROCESSING_ERROR",
    "46733123462": "SERVICE_UNAVAILABLE",
    "46733123463": "COULD_NOT_PERFORM_TRANSACTION",
    "46733123464": "TRANSFER_TYPE_UNKNOWN",
}
TRANSFER = {
    "46733123450": "INTERNAL_PROCESSING_ERROR",
    "46733123451": "APPROVAL_REJECTED",
    "46733123452": "EXPIRED",
    "46733123455": "NOT_ENOUGH_FUNDS",
    "46733123456": "PAYER_LIMIT_REACHED",
    "46733123457": "PAYEE_NOT_FOUND",
    "46733123458": "NOT_ALLOWED",
    "46733123459": "NOT_ALLOWED_TARGET_ENVIRONMENT",
    "46733123460": "INVALID_CALLBACK_URL_HOST",
    "46733123461": "INVALID_CURRENCY",
    "46733123462": "INTERNAL_PROCESSING_ERROR",
    "46733123463": "SERVICE_UNAVAILABLE",
    "46733123464": "TRANSFER_TYPE_UNKNOWN",
}
HOLDERS = [
    ("46733123450", 404, "RESOURCE_NOT_FOUND"),
    ("46733123451", 200, False),
    ("46733123452", 500, "NOT_ALLOWED"),
    ("46733123453", 500, "NOT_ALLOWED_TARGET_ENVIRONMENT"),
    ("46733123454", 500, "INTERNAL_PROCESSING_ERROR"),
    ("46733123455", 503, "SERVICE_UNAVAILABLE"),
    ("46733123456", 200, True),
    ("256772123456", 200, True),
    ("notfound@email.com", 404, "RESOURCE_NOT_FOUND"),
    ("notactive@email.com", 200, False),
    ("notallowed@email.com", 500, "NOT_ALLOWED"),
    ("notallowedtargetenvironment@email.com", 500, "NOT_ALLOWED_TARGET_ENVIRONMENT"),
    ("internalprocessingerror@email.com", 500, "INTERNAL_PROCESSING_ERROR"),
    ("serviceunavailable@email.com", 503, "SERVICE_UNAVAILABLE"),
    ("5cecb5a7-8bd0-4f49-87b1-8eb9ecc7b7bc", 404, "RESOURCE_NOT_FOUND"),
    ("5585c07a4-2c80-42f7-9e73-e586b36dee68", 503, "SERVICE_UNAVAILABLE"),
]


def check_failure(merchant: Merchant, msisdn: str, reason: str) -> None:
    reference = new_reference()
    assert merchant.pay(reference, msisdn=msisdn).status_code == 202
    answer = merchant.ask(reference)
    told = answer.json()
    assert (answer.status_code, told["status"], told["reason"]) == (200, "FAILED", reason)
    assert "financialTransactionId" not in told
    assert merchant.movements(reference) == 0


@pytest.mark.parametrize(("msisdn", "reason"), REQUEST_TO_PAY.items())
def test_a_request_to_pay_that_fails(merchant: Merchant, msisdn: str, reason: str) -> None:
    check_failure(merchant, msisdn, reason)


@pytest.mark.parametrize(("msisdn", "reason"), TRANSFER.items())
def test_a_transfer_that_fails(payer_out: Merchant, msisdn: str, reason: str) -> None:
    check_failure(payer_out, msisdn, reason)


def test_the_numbers_work_in_every_environment(merchant: Merchant) -> None:
    merchant.environment, merchant.currency = "mtnuganda", "UGX"
    check_failure(merchant, "46733123452", "EXPIRED")


def test_453_stays_pending_until_someone_decides(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123453")
    merchant.admin("POST", "clock", {"advance_s": 86_400})
    merchant._token = None
    assert merchant.status(reference) == "PENDING"
    assert merchant.movements(reference) == 0


def test_453_can_be_given_an_end(merchant: Merchant) -> None:
    merchant.set(stuck_pending_s=100)
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123453")
    merchant.admin("POST", "clock", {"advance_s": 101})
    assert merchant.status(reference) == "SUCCESSFUL"


def test_454_succeeds_after_thirty_seconds(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123454")
    merchant.admin("POST", "clock", {"advance_s": 25})
    assert merchant.status(reference) == "PENDING"
    assert merchant.movements(reference) == 0
    merchant.admin("POST", "clock", {"advance_s": 6})
    assert merchant.status(reference) == "SUCCESSFUL"
    assert merchant.movements(reference) == 1


def test_the_length_of_454_is_a_setting(merchant: Merchant) -> None:
    merchant.set(delayed_success_s=0)
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123454")
    assert merchant.status(reference) == "SUCCESSFUL"


def test_the_reason_can_be_an_object(merchant: Merchant) -> None:
    merchant.set(reason_form="object")
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123451")
    reason = merchant.ask(reference).json()["reason"]
    assert reason == {
        "code": "APPROVAL_REJECTED",
        "message": "The payer rejected the request.",
    }


@pytest.mark.parametrize(("holder", "status", "told"), HOLDERS)
def test_account_holders(merchant: Merchant, holder: str, status: int, told: object) -> None:
    kind = "email" if "@" in holder else "msisdn" if holder.isdecimal() else "party_code"
    path = f"/collection/v1_0/accountholder/{kind}/{holder}"
    active = merchant.call("GET", f"{path}/active", headers=merchant.headers)
    person = merchant.call("GET", f"{path}/basicuserinfo", headers=merchant.headers)
    body = active.json()
    assert (active.status_code, body.get("code", body.get("result"))) == (status, told)
    assert person.json().get("given_name", person.json().get("code")) in {"Sand", told}


def test_an_account_holder_of_an_unknown_type_is_a_400(merchant: Merchant) -> None:
    path = "/collection/v1_0/accountholder/fax/123"
    assert merchant.call("GET", f"{path}/active", headers=merchant.headers).status_code == 400
    assert (
        merchant.call("GET", f"{path}/basicuserinfo", headers=merchant.headers).status_code == 400
    )
