"""Requests to pay and transfers: creation, status, refusal, and when money moves."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.simulator.driving import PAYER, Merchant, new_reference

LONG = "x" * 161
PARTY = {"partyIdType": "MSISDN", "partyId": PAYER}


def test_an_accepted_payment_is_an_empty_202_without_a_type(merchant: Merchant) -> None:
    answer = merchant.pay()
    assert (answer.status_code, answer.content) == (202, b"")
    assert "Content-Type" not in answer.headers


def test_the_status_tells_all_but_the_reference(merchant: Merchant) -> None:
    reference = new_reference()
    body = merchant.body()
    merchant.pay(reference, json=body)
    answer = merchant.ask(reference)
    told = answer.json()
    assert answer.headers["Content-Type"] == "application/json"
    assert told.pop("financialTransactionId").isdecimal()
    assert told == body | {"status": "SUCCESSFUL"}
    assert reference not in answer.text


def test_one_movement_for_a_success_with_every_column(merchant: Merchant) -> None:
    reference = new_reference()
    body = merchant.body()
    merchant.pay(reference, json=body)
    (row,) = merchant.seen("ledger", reference=reference)
    told = merchant.ask(reference).json()
    assert row["at"].endswith("+00:00")
    assert {name: row[name] for name in row if name not in {"id", "at", "api_user"}} == {
        "reference_id": reference,
        "product": "collection",
        "operation": "requesttopay",
        "amount": "5.00",
        "currency": "EUR",
        "party": PAYER,
        "external_id": body["externalId"],
        "financial_transaction_id": told["financialTransactionId"],
    }


def test_a_used_reference_is_refused_and_the_first_payment_stays(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    again = merchant.pay(reference.upper(), json=merchant.body(amount="999.00"))
    assert again.status_code == 409
    assert again.json() == {
        "code": "RESOURCE_ALREADY_EXIST",
        "message": "Duplicated reference id. Creation of resource failed.",
    }
    assert merchant.ask(reference).json()["amount"] == "5.00"
    assert merchant.movements(reference) == 1
    assert [row["status"] for row in merchant.submissions(reference)] == [202, 409]


def test_the_reference_of_a_failed_payment_is_burnt(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123451")
    assert merchant.pay(reference).status_code == 409
    assert merchant.status(reference) == "FAILED"


def test_a_reference_is_used_up_for_all_products(merchant: Merchant, payer_out: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    assert payer_out.pay(reference).status_code == 409
    assert payer_out.ask(reference).status_code == 404


def test_of_many_at_once_with_one_reference_one_is_accepted(url: str) -> None:
    reference = new_reference()
    token = Merchant(url).token

    def pay(_: int) -> int:
        with requests.Session() as session:
            return Merchant(url, session=session, _token=token).pay(reference).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(pay, range(16)))
    with requests.Session() as session:
        merchant = Merchant(url, session=session)
        assert statuses == [202] + [409] * 15
        assert (merchant.creations(reference), merchant.movements(reference)) == (1, 1)
        assert len(merchant.submissions(reference)) == 16


def test_checks_come_in_the_order_of_the_checklist(merchant: Merchant) -> None:
    """Key, token, environment, UUID, duplicate, body, callback host, currency (1.17 item 3)."""
    api_user = new_reference()
    key = {"Ocp-Apim-Subscription-Key": "strict"}
    merchant.call(
        "POST",
        "/v1_0/apiuser",
        headers=key | {"X-Reference-Id": api_user},
        json={"providerCallbackHost": "good.test"},
    )
    api_key = merchant.call("POST", f"/v1_0/apiuser/{api_user}/apikey", headers=key).json()
    token = merchant.request_token(auth=(api_user, api_key["apiKey"]), headers=key).json()
    used = new_reference()
    merchant.pay(used)
    headers = {"X-Callback-Url": "http://bad.test/"}
    body: dict[str, Any] = {}
    mends: list[tuple[dict[str, str], dict[str, Any]]] = [
        (key, {}),
        ({"Authorization": f"Bearer {token['access_token']}"}, {}),
        ({"X-Target-Environment": "sandbox"}, {}),
        ({"X-Reference-Id": used}, {}),
        ({"X-Reference-Id": new_reference()}, {}),
        ({}, merchant.body(currency="UGX", amount="5")),
        ({"X-Callback-Url": "http://good.test/"}, {}),
        ({}, {"currency": "EUR"}),
    ]
    seen = []
    for header, field in [({}, {}), *mends]:
        headers |= header
        body |= field
        answer = merchant.call("POST", "/collection/v1_0/requesttopay", headers=headers, json=body)
        told = answer.json() if answer.content else {}
        seen.append((answer.status_code, told.get("code", told.get("statusCode"))))
    assert seen == [
        (401, 401),
        (401, 401),
        (500, "NOT_ALLOWED_TARGET_ENVIRONMENT"),
        (400, None),
        (409, "RESOURCE_ALREADY_EXIST"),
        (400, None),
        (500, "INVALID_CALLBACK_URL_HOST"),
        (500, "INVALID_CURRENCY"),
        (202, None),
    ]
    assert merchant.admin("GET", "summary")["accepted"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": None},
        {"amount": "0"},
        {"amount": "-5"},
        {"amount": "5,00"},
        {"amount": "1e3"},
        {"amount": "5.001"},
        {"amount": True},
        {"currency": None},
        {"payer": None},
        {"payer": "256772123456"},
        {"payer": {"partyIdType": "MSISDN"}},
        {"payer": {"partyIdType": "IBAN", "partyId": "1"}},
        {"payer": {"partyIdType": "MSISDN", "partyId": "+256772123456"}},
        {"payerMessage": LONG},
        {"payeeNote": LONG},
        {"payeeNote": "it's refused"},
        {"externalId": ["a"]},
    ],
)
def test_a_body_that_will_not_do_is_an_empty_400(
    merchant: Merchant, changes: dict[str, Any]
) -> None:
    reference = new_reference()
    answer = merchant.pay(reference, json=merchant.body(**changes))
    assert (answer.status_code, answer.content) == (400, b"")
    assert merchant.creations(reference) == 0
    assert merchant.pay(reference).status_code == 202, "a refused reference is not burnt"


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 5},
        {"amount": 5.25},
        {"externalId": None},
        {"externalId": 17},
        {"payerMessage": None, "payeeNote": None},
        {"payer": {"partyIdType": "EMAIL", "partyId": "a@example.test"}},
        {"payer": {"partyIdType": "MSISDN", "partyId": "0248888736"}},
        {"payerMessage": "x" * 160},
    ],
)
def test_the_sandbox_is_generous_in_these(merchant: Merchant, changes: dict[str, Any]) -> None:
    assert merchant.pay(json=merchant.body(**changes)).status_code == 202


def test_an_ampersand_meets_the_firewall_and_creates_nothing(merchant: Merchant) -> None:
    reference = new_reference()
    answer = merchant.pay(reference, json=merchant.body(payeeNote="bread & butter"))
    assert (answer.status_code, "Request Rejected" in answer.text) == (200, True)
    assert merchant.ask(reference).status_code == 404


def test_an_empty_party_is_a_500_that_created_nothing(merchant: Merchant) -> None:
    reference = new_reference()
    answer = merchant.pay(reference, json=merchant.body(payer={}))
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_PROCESSING_ERROR")
    assert merchant.creations(reference) == 0


@pytest.mark.parametrize(
    "callback_url", ["", "null", "ftp://host/", "http://", "http://host:99999/"]
)
def test_an_empty_or_malformed_callback_url_is_a_400(merchant: Merchant, callback_url: str) -> None:
    assert merchant.pay(headers={"X-Callback-Url": callback_url}).status_code == 400


@pytest.mark.parametrize(
    ("environment", "currency", "status"),
    [
        ("sandbox", "EUR", 202),
        ("sandbox", "UGX", 500),
        ("mtnuganda", "UGX", 202),
        ("mtnuganda", "EUR", 500),
        ("mtnliberia", "USD", 202),
        ("mtnliberia", "LRD", 202),
        ("mtnrwanda", "RWF", 202),
        ("mtnatlantis", "EUR", 500),
    ],
)
def test_an_environment_has_its_own_currencies(
    merchant: Merchant, environment: str, currency: str, status: int
) -> None:
    merchant.environment, merchant.currency = environment, currency
    assert merchant.pay().status_code == status


def test_a_currency_without_decimals_takes_whole_amounts(merchant: Merchant) -> None:
    merchant.environment, merchant.currency = "mtnuganda", "UGX"
    assert merchant.pay(json=merchant.body(amount="5.50")).status_code == 400
    assert merchant.pay(json=merchant.body(amount="5.0")).status_code == 202


def test_asking_for_what_is_not_there(merchant: Merchant) -> None:
    unknown = merchant.ask(new_reference())
    malformed = merchant.ask("no-uuid")
    assert unknown.status_code == 404
    assert unknown.json() == {
        "code": "RESOURCE_NOT_FOUND",
        "message": "Requested resource was not found.",
    }
    assert (malformed.status_code, malformed.content) == (400, b"")


def test_odd_clients_are_served(merchant: Merchant) -> None:
    reference = new_reference()
    headers = {name.upper(): value for name, value in merchant.headers.items()}
    merchant.pay(reference)
    path = f"/collection/v1_0/requesttopay/{reference}/"
    answer = merchant.call("GET", path, headers=headers | {"Accept": ""}, data="null")
    assert answer.json()["status"] == "SUCCESSFUL"


def test_a_body_may_come_in_chunks(merchant: Merchant) -> None:
    payload = json.dumps(merchant.body()).encode()
    answer = merchant.call(
        "POST",
        "/collection/v1_0/requesttopay",
        headers=merchant.headers | {"X-Reference-Id": new_reference()},
        data=iter([payload[:20], payload[20:]]),
    )
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/collection/v1_0/requesttopay"),
        ("DELETE", "/collection/v1_0/requesttopay"),
        ("POST", "/disbursement/v1_0/requesttopay"),
        ("POST", "/collection/v1_0/transfer"),
    ],
)
def test_an_unknown_route_is_a_404_of_azure(merchant: Merchant, method: str, path: str) -> None:
    answer = merchant.call(method, path)
    assert answer.status_code == 404
    assert answer.json() == {"statusCode": 404, "message": "Resource not found"}


def test_a_malformed_path_is_a_400(merchant: Merchant) -> None:
    assert merchant.call("POST", "/collection//v1_0/requesttopay").status_code == 400


def test_money_moves_when_the_payer_approves_not_before(merchant: Merchant) -> None:
    merchant.set(approval_delay_s=60)
    reference = new_reference()
    merchant.pay(reference)
    pending = merchant.ask(reference).json()
    assert pending["status"] == "PENDING"
    assert not {"financialTransactionId", "reason"} & set(pending)
    assert merchant.movements(reference) == 0
    merchant.admin("POST", "clock", {"advance_s": 61})
    assert merchant.status(reference) == "SUCCESSFUL"
    assert merchant.movements(reference) == 1


def test_a_payer_may_answer_when_the_test_says_so(merchant: Merchant) -> None:
    merchant.set(approval_delay_s=None)
    yes, no, why = new_reference(), new_reference(), new_reference()
    for reference in (yes, no, why):
        merchant.pay(reference)
    merchant.admin("POST", f"approve/{yes}")
    merchant.admin("POST", f"reject/{no}")
    merchant.admin("POST", f"reject/{why}", {"reason": "EXPIRED"})
    assert merchant.status(yes) == "SUCCESSFUL"
    assert merchant.ask(no).json()["reason"] == "APPROVAL_REJECTED"
    assert merchant.ask(why).json()["reason"] == "EXPIRED"
    assert [merchant.movements(one) for one in (yes, no, why)] == [1, 0, 0]


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_what_is_final_is_not_decided_again(merchant: Merchant, verdict: str) -> None:
    reference = new_reference()
    merchant.pay(reference)
    late = merchant.call("POST", f"/_admin/{verdict}/{reference}")
    unknown = merchant.call("POST", f"/_admin/{verdict}/{new_reference()}")
    assert (late.status_code, unknown.status_code) == (409, 404)
    assert merchant.status(reference) == "SUCCESSFUL"
    assert merchant.movements(reference) == 1


def test_a_delivery_notification_is_taken_once(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    path = f"/collection/v1_0/requesttopay/{reference}/deliverynotification"

    def notify(message: str) -> int:
        return merchant.call(
            "POST", path, headers=merchant.headers, json={"notificationMessage": message}
        ).status_code

    assert [notify(""), notify(LONG), notify("thanks"), notify("thanks")] == [400, 400, 200, 429]


def test_a_delivery_notification_needs_a_finished_payment(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123453")
    for one, status in ((reference, 409), (new_reference(), 404)):
        path = f"/collection/v1_0/requesttopay/{one}/deliverynotification"
        headers = merchant.headers | {"notificationMessage": "in a header"}
        assert merchant.call("POST", path, headers=headers).status_code == status


def test_a_transfer_names_a_payee_and_lowers_the_balance(payer_out: Merchant) -> None:
    payer_out.set(opening_balance="100")
    reference = new_reference()
    assert payer_out.pay(reference).status_code == 202
    told = payer_out.ask(reference).json()
    balance = payer_out.call("GET", "/disbursement/v1_0/account/balance", headers=payer_out.headers)
    assert told["payee"] == PARTY
    assert "payer" not in told
    assert balance.json() == {"availableBalance": "95.00", "currency": "EUR"}


def test_a_collection_raises_the_balance(merchant: Merchant) -> None:
    merchant.set(opening_balance="100")
    merchant.pay()
    path = "/collection/v1_0/account/balance"
    plain = merchant.call("GET", path, headers=merchant.headers)
    named = merchant.call("GET", f"{path}/EUR", headers=merchant.headers)
    other = merchant.call("GET", f"{path}/UGX", headers=merchant.headers)
    assert plain.json() == named.json() == {"availableBalance": "105.00", "currency": "EUR"}
    assert (other.status_code, other.json()["code"]) == (500, "INVALID_CURRENCY")
