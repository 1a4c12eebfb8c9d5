"""Each kind of fault has the effect that its name says, and creates as many payments as it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.simulator.driving import (
    SUBSCRIPTION_KEY,
    Merchant,
    eventually,
    new_reference,
    on_the_wire,
)

CREATE = "/collection/v1_0/requesttopay"
KEY = {"Ocp-Apim-Subscription-Key": SUBSCRIPTION_KEY}


def check_traces(merchant: Merchant, reference: str, *, created: int, fault: str) -> None:
    """One request was recorded, with this fault, and created so many payments and movements."""
    (seen,) = merchant.submissions(reference)
    assert seen["fault"] == fault
    assert merchant.creations(reference) == created
    assert merchant.movements(reference) == created


@pytest.mark.parametrize(
    ("kind", "parameters", "status", "told"),
    [
        ("refuse_400", {}, 400, {}),
        ("refuse_500_code", {}, 500, {"code": "NOT_ALLOWED"}),
        ("refuse_500_code", {"code": "PAYER_NOT_FOUND"}, 500, {"code": "PAYER_NOT_FOUND"}),
        ("refuse_500_code", {"code": "RESOURCE_NOT_FOUND"}, 500, {"code": "RESOURCE_NOT_FOUND"}),
        ("refuse_500_code", {"code": "NEW_WORD"}, 500, {"code": "NEW_WORD"}),
        ("internal_error", {}, 500, {"code": "INTERNAL_PROCESSING_ERROR"}),
        ("unauthorized_401", {}, 401, {"statusCode": 401}),
        ("quota_403", {}, 403, {"statusCode": 403}),
        ("too_many_429", {}, 429, {"statusCode": 429}),
        ("unavailable_503", {}, 503, {"code": "SERVICE_UNAVAILABLE"}),
        ("no_route_404", {}, 404, {"statusCode": 404}),
        ("conflict_409", {}, 409, {"code": "RESOURCE_ALREADY_EXIST"}),
    ],
)
def test_refusals_create_nothing(
    merchant: Merchant, kind: str, parameters: dict[str, str], status: int, told: dict[str, Any]
) -> None:
    merchant.fault(kind, operation="create", parameters=parameters)
    reference = new_reference()
    answer = merchant.pay(reference)
    body = answer.json() if answer.content else {}
    assert answer.status_code == status
    assert {name: body[name] for name in told} == told
    check_traces(merchant, reference, created=0, fault=kind)
    assert merchant.pay(reference).status_code == 202, "once, and then it is over"


def test_an_answer_may_come_in_another_form_and_say_the_same(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    plain = merchant.ask(reference)
    # This HTTP client accepts no more than 100.
    parameters: dict[str, dict[str, object]] = {"many_headers": {"lines": 90}}
    for kind in ("gzip", "many_headers", "amount_number"):
        merchant.fault(kind, operation="status", parameters=parameters.get(kind, {}))
    forms = [merchant.ask(reference) for _ in range(3)]
    assert forms[0].headers["Content-Encoding"] == "gzip"
    assert forms[0].json() == plain.json()
    assert len(forms[1].headers) > 90
    assert forms[1].json() == plain.json()
    assert isinstance(forms[2].json()["amount"], float)
    assert forms[2].json()["amount"] == float(plain.json()["amount"])


@pytest.mark.parametrize(("kind", "status"), [("waf_html_200", 200), ("html_403", 403)])
def test_pages_in_place_of_answers_create_nothing(
    merchant: Merchant, kind: str, status: int
) -> None:
    merchant.fault(kind)
    reference = new_reference()
    answer = merchant.pay(reference)
    assert (answer.status_code, "<html>" in answer.text) == (status, True)
    assert answer.headers["Content-Type"].startswith("text/html")
    check_traces(merchant, reference, created=0, fault=kind)


@pytest.mark.parametrize("kind", ["too_many_429", "unavailable_503"])
def test_retry_after_is_sent_when_given(merchant: Merchant, kind: str) -> None:
    merchant.fault(kind, parameters={"retry_after": 7}, times=2)
    assert merchant.pay().headers["Retry-After"] == "7"
    merchant.admin("DELETE", "faults")
    merchant.fault(kind)
    assert "Retry-After" not in merchant.pay().headers


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("accept_then_500", 500, "INTERNAL_PROCESSING_ERROR"),
        ("accept_then_503", 503, "SERVICE_UNAVAILABLE"),
    ],
)
def test_errors_after_the_payment_was_accepted(
    merchant: Merchant, kind: str, status: int, code: str
) -> None:
    merchant.fault(kind)
    reference = new_reference()
    answer = merchant.pay(reference)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    check_traces(merchant, reference, created=1, fault=kind)
    assert merchant.pay(reference).status_code == 409


@pytest.mark.parametrize(
    ("kind", "parameters", "status", "body"),
    [
        ("accept_then_401", {}, 401, '"statusCode":401'),
        ("accept_then_404", {}, 404, '"statusCode":404'),
        ("accept_then_409", {}, 409, "RESOURCE_ALREADY_EXIST"),
        ("accept_then_429", {"retry_after": 2}, 429, '"statusCode":429'),
        ("accept_then_500", {"form": "bare"}, 500, ""),
        ("garbage", {"form": "body"}, 202, "not JSON"),
    ],
)
def test_other_answers_after_the_payment_was_accepted(
    merchant: Merchant, kind: str, parameters: dict[str, object], status: int, body: str
) -> None:
    merchant.fault(kind, parameters=parameters)
    reference = new_reference()
    answer = merchant.pay(reference)
    assert (answer.status_code, body in answer.text) == (status, True)
    assert answer.headers.get("Retry-After") == ("2" if parameters.get("retry_after") else None)
    check_traces(merchant, reference, created=1, fault=kind)


def test_a_duplicate_of_a_payment_that_is_there_can_be_answered_otherwise_too(
    merchant: Merchant,
) -> None:
    reference = new_reference()
    merchant.fault("accept_then_503", times=2, match={"reference": reference})
    assert [merchant.pay(reference).status_code for _ in range(3)] == [503, 503, 409]
    assert (merchant.creations(reference), merchant.movements(reference)) == (1, 1)


def test_a_script_of_faults_for_one_payment(merchant: Merchant) -> None:
    one, other = new_reference(), new_reference()
    for kind, nth, times in (
        ("refuse_400", 3, 1),
        ("accept_then_401", 1, 1),
        ("too_many_429", 2, 1),
        ("refuse_500_code", 4, None),
    ):
        merchant.fault(kind, nth=nth, times=times, match={"msisdn": "256770000001"})
    body = merchant.body("256770000001")
    assert merchant.pay(other).status_code == 202
    assert [merchant.pay(one, json=body).status_code for _ in range(5)] == [401, 429, 400, 500, 500]
    assert (merchant.creations(one), merchant.movements(one)) == (1, 1)


def test_requests_from_before_a_fault_was_set_count(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    assert merchant.ask(reference).status_code == 200
    merchant.fault("status_404", nth=2, match={"reference": reference})
    assert [merchant.ask(reference).status_code for _ in range(2)] == [404, 200]
    merchant.fault("invisible", nth=2)
    assert merchant.pay().status_code == 202, "the first request of another payment"
    assert merchant.admin("GET", "faults")["data"][-1]["applied"] == 0


def test_questions_about_a_submission_that_became_no_payment_are_the_payers_too(
    merchant: Merchant,
) -> None:
    reference = new_reference()
    merchant.fault("refuse_400", match={"msisdn": "256770000001"})
    merchant.fault("internal_error", operation="status", match={"msisdn": "256770000001"})
    assert merchant.pay(reference, json=merchant.body("256770000001")).status_code == 400
    assert [merchant.ask(reference).status_code for _ in range(2)] == [500, 404]


@pytest.mark.parametrize(("kind", "created"), [("accept_then_reset", 1), ("reset_before", 0)])
def test_a_reset_is_a_reset_on_the_wire(merchant: Merchant, kind: str, created: int) -> None:
    merchant.fault(kind, times=2)
    with pytest.raises(ConnectionResetError):
        on_the_wire(merchant, "POST", CREATE, body=merchant.body())
    reference = new_reference()
    with pytest.raises(requests.ConnectionError):
        merchant.pay(reference)
    check_traces(merchant, reference, created=created, fault=kind)
    assert merchant.submissions(reference)[0]["status"] is None


@pytest.mark.parametrize(("kind", "created"), [("accept_then_reset", 1), ("reset_before", 0)])
def test_a_connection_can_also_end_without_a_word(
    merchant: Merchant, kind: str, created: int
) -> None:
    merchant.fault(kind, parameters={"how": "close"})
    assert on_the_wire(merchant, "POST", CREATE, body=merchant.body()) == b""
    assert merchant.admin("GET", "summary")["accepted"] == created


def test_a_hanging_answer_is_of_an_accepted_payment(merchant: Merchant) -> None:
    merchant.fault("accept_then_hang", parameters={"delay_s": 2})
    reference = new_reference()
    with pytest.raises(requests.ReadTimeout):
        merchant.pay(reference, timeout=0.15)
    eventually(lambda: [row for row in merchant.submissions(reference) if row["fault"]])
    check_traces(merchant, reference, created=1, fault="accept_then_hang")
    assert merchant.pay(reference).status_code == 409


def test_a_hanging_call_may_create_after_the_client_has_left(merchant: Merchant) -> None:
    merchant.fault("hang", parameters={"delay_s": 2})
    reference = new_reference()
    with pytest.raises(requests.ReadTimeout):
        merchant.pay(reference, timeout=0.15)
    assert merchant.ask(reference).status_code == 404
    (seen,) = eventually(lambda: merchant.submissions(reference))
    assert (seen["status"], seen["answered_at"]) == (None, None)
    # The fault is noted after the creation.
    eventually(lambda: merchant.submissions(reference)[0]["fault"])
    check_traces(merchant, reference, created=1, fault="hang")


@pytest.mark.parametrize("operation", ["create", "status", "token"])
def test_slow_is_slow_and_otherwise_right(merchant: Merchant, operation: str) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.fault("slow", operation=operation, parameters={"delay_s": 0.2})
    calls: dict[str, Callable[[], bool]] = {
        "create": lambda: merchant.pay().status_code == 202,
        "status": lambda: merchant.status(reference) == "SUCCESSFUL",
        "token": lambda: merchant.request_token().status_code == 200,
    }
    start = time.monotonic()
    assert calls[operation]()
    assert time.monotonic() - start >= 0.2


def test_an_invisible_payment_is_a_404_for_a_while(merchant: Merchant) -> None:
    merchant.fault("invisible", parameters={"delay_s": 30})
    reference = new_reference()
    assert merchant.pay(reference).status_code == 202
    assert merchant.ask(reference).status_code == 404
    assert merchant.pay(reference).status_code == 409
    assert merchant.movements(reference) == 1
    merchant.admin("POST", "clock", {"advance_s": 31})
    assert merchant.status(reference) == "SUCCESSFUL"


def test_garbage_is_no_http_and_the_payment_stands(merchant: Merchant) -> None:
    merchant.fault("garbage", times=2)
    raw = on_the_wire(merchant, "POST", CREATE, body=merchant.body())
    assert raw
    assert not raw.startswith(b"HTTP/")
    reference = new_reference()
    with pytest.raises(requests.ConnectionError):
        merchant.pay(reference)
    check_traces(merchant, reference, created=1, fault="garbage")


def test_garbage_can_be_half_a_json_document(merchant: Merchant) -> None:
    merchant.fault("garbage", parameters={"form": "json"})
    reference = new_reference()
    answer = merchant.pay(reference)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    check_traces(merchant, reference, created=1, fault="garbage")


@pytest.mark.parametrize("operation", ["create", "status"])
def test_garbage_can_be_an_answer_that_is_cut(merchant: Merchant, operation: str) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.fault("garbage", operation=operation, parameters={"form": "cut"})
    calls: dict[str, Callable[[], object]] = {
        "create": merchant.pay,
        "status": lambda: merchant.ask(reference),
    }
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        calls[operation]()
    assert merchant.status(reference) == "SUCCESSFUL"


@pytest.mark.parametrize("operation", ["create", "status"])
def test_an_empty_200(merchant: Merchant, operation: str) -> None:
    reference = new_reference()
    merchant.fault("empty_200", operation=operation)
    created = merchant.pay(reference)
    asked = merchant.ask(reference)
    strange = created if operation == "create" else asked
    assert (strange.status_code, strange.content) == (200, b"")
    assert merchant.creations(reference) == 1


def test_a_status_that_says_404_of_a_payment_that_is_there(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.fault("status_404", times=2)
    assert [merchant.ask(reference).status_code for _ in range(3)] == [404, 404, 200]


def test_a_status_in_a_word_of_no_list(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.fault("unknown_status_word")
    merchant.fault("unknown_status_word", parameters={"word": "DELAYED"})
    words = [merchant.status(reference) for _ in range(3)]
    assert words == ["ONGOING", "DELAYED", "SUCCESSFUL"]


def test_a_status_with_another_amount(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.fault("status_wrong_amount", parameters={"amount": "4.99"})
    amounts = [merchant.ask(reference).json()["amount"] for _ in range(2)]
    assert amounts == ["4.99", "5.00"]


@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("token_500", 500, '{"error":"login_failed"}'),
        ("token_401", 401, '{"error":"invalid_client"}'),
        ("token_html_200", 200, "<html>"),
    ],
)
def test_tokens_that_do_not_come(merchant: Merchant, kind: str, status: int, body: str) -> None:
    merchant.fault(kind)
    answer = merchant.request_token()
    assert (answer.status_code, body in answer.text) == (status, True)
    assert merchant.request_token().status_code == 200


def test_a_token_that_comes_late(merchant: Merchant) -> None:
    merchant.fault("token_slow", parameters={"delay_s": 0.2})
    start = time.monotonic()
    assert merchant.request_token().status_code == 200
    assert time.monotonic() - start >= 0.2


def test_an_answer_that_drips(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.fault("connection_drip", operation="status", parameters={"interval_s": 0.002})
    start = time.monotonic()
    assert merchant.status(reference) == "SUCCESSFUL"
    assert time.monotonic() - start >= 0.4, "more than 200 bytes, one at a time"
    assert merchant.status(reference) == "SUCCESSFUL", "and the connection stays in use"


def test_a_fault_strikes_so_many_times(merchant: Merchant) -> None:
    merchant.fault("refuse_400", times=2)
    assert [merchant.pay().status_code for _ in range(3)] == [400, 400, 202]
    (shown,) = merchant.admin("GET", "faults")["data"]
    assert (shown["left"], shown["applied"]) == (0, 2)


def test_a_fault_without_an_end_strikes_until_it_is_taken_away(merchant: Merchant) -> None:
    fault = merchant.fault("refuse_400", times=None)
    assert [merchant.pay().status_code for _ in range(4)] == [400] * 4
    merchant.admin("DELETE", f"faults/{fault['id']}")
    assert merchant.pay().status_code == 202


def test_a_fault_can_be_for_one_payer_reference_or_order(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.fault("refuse_400", match={"msisdn": "256770000001"})
    merchant.fault("internal_error", match={"reference": reference.upper()})
    merchant.fault("accept_then_503", match={"external_id": "order-7"})
    assert merchant.pay().status_code == 202
    assert merchant.pay(msisdn="256770000001").status_code == 400
    assert merchant.pay(reference).status_code == 500
    assert merchant.pay(json=merchant.body(externalId="order-7")).status_code == 503


def test_a_status_fault_can_be_for_one_payer_or_order(merchant: Merchant) -> None:
    one, other = new_reference(), new_reference()
    merchant.pay(one, json=merchant.body("256770000001"))
    merchant.pay(other, json=merchant.body(externalId="order-8"))
    merchant.fault("status_404", match={"msisdn": "256770000001"})
    merchant.fault("status_404", match={"external_id": "order-8"})
    assert [merchant.ask(other).status_code for _ in range(2)] == [404, 200]
    assert [merchant.ask(one).status_code for _ in range(2)] == [404, 200]


def test_a_fault_can_be_for_one_product(merchant: Merchant, payer_out: Merchant) -> None:
    merchant.fault("refuse_400", match={"product": "disbursement"})
    assert merchant.pay().status_code == 202
    assert payer_out.pay().status_code == 400


def test_a_fault_can_be_for_one_account(merchant: Merchant) -> None:
    other = Merchant(merchant.url)
    other_user, reference = new_reference(), new_reference()
    # Creating a user gives the key access to every product, so not with the key that others share.
    headers = {"Ocp-Apim-Subscription-Key": "key-of-another", "X-Reference-Id": other_user}
    host = {"providerCallbackHost": "shop.example"}
    assert other.call("POST", "/v1_0/apiuser", headers=headers, json=host).status_code == 201
    made = other.call("POST", f"/v1_0/apiuser/{other_user}/apikey", headers=headers)
    credentials = (other_user, made.json()["apiKey"])
    merchant.fault("internal_error", operation="any", times=3, match={"api_user": other_user})
    merchant.pay(reference)
    merchant.ask(reference)
    assert other.request_token(auth=credentials).status_code == 500
    merchant.admin("DELETE", "faults")
    other._token = other.request_token(auth=credentials).json()["access_token"]
    merchant.fault("internal_error", operation="any", times=2, match={"api_user": other_user})
    assert [merchant.pay().status_code, merchant.ask(reference).status_code] == [202, 200]
    assert [other.pay().status_code, other.ask(reference).status_code] == [500, 500]


def test_a_fault_can_spare_payers(merchant: Merchant) -> None:
    merchant.fault("refuse_400", times=2, spares="25677000")
    assert merchant.pay(msisdn="256770000001").status_code == 202
    assert merchant.pay(msisdn="256770100001").status_code == 400
    assert merchant.pay(json={"amount": "no payer"}).status_code == 400
    (shown,) = merchant.admin("GET", "faults")["data"]
    assert (shown["spares"], shown["applied"]) == ("25677000", 2)


def test_a_fault_for_any_operation(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.fault("unavailable_503", operation="any", times=3)
    calls = [merchant.request_token(), merchant.ask(reference), merchant.pay()]
    assert [call.status_code for call in calls] == [503, 503, 503]


def test_a_fault_by_chance_strikes_alike_with_one_seed(merchant: Merchant) -> None:
    def run() -> list[int]:
        merchant.admin("DELETE", "faults")
        merchant.fault("refuse_400", times=None, probability=0.5, seed=11)
        return [merchant.pay().status_code for _ in range(12)]

    first = run()
    assert set(first) == {400, 202}
    assert run() == first


def test_an_accepted_fault_waits_for_an_accepted_payment(merchant: Merchant) -> None:
    merchant.fault("accept_then_500")
    assert merchant.pay(json={"amount": "no"}).status_code == 400
    assert merchant.pay(json=merchant.body(payeeNote="the firewall & co")).status_code == 200
    assert merchant.pay().status_code == 500


def test_two_faults_can_strike_one_call(merchant: Merchant) -> None:
    merchant.fault("hang", parameters={"delay_s": 0.05})
    merchant.fault("accept_then_500")
    reference = new_reference()
    assert merchant.pay(reference).status_code == 500
    assert merchant.submissions(reference)[0]["fault"] == "hang+accept_then_500"


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "kind"),
        ({"kind": "nonsense"}, "kind"),
        ({"kind": "hang", "operaton": "create"}, "operaton"),
        ({"kind": "hang", "operation": "nonsense"}, "operation"),
        ({"kind": "token_500", "operation": "create"}, "operation"),
        ({"kind": "hang", "times": 0}, "times"),
        ({"kind": "hang", "times": "2"}, "times"),
        ({"kind": "hang", "match": []}, "match"),
        ({"kind": "hang", "match": {"phone": "1"}}, "match.phone"),
        ({"kind": "hang", "match": {"msisdn": 1}}, "match.msisdn"),
        ({"kind": "hang", "probability": 2}, "probability"),
        ({"kind": "hang", "seed": "x"}, "seed"),
        ({"kind": "hang", "parameters": {"delay_s": -1}}, "parameters.delay_s"),
        ({"kind": "hang", "parameters": {"delay": 1}}, "parameters.delay"),
        ({"kind": "garbage", "parameters": {"form": "xml"}}, "parameters.form"),
        ({"kind": "status_wrong_amount", "parameters": {"amount": "x"}}, "parameters.amount"),
        ({"kind": "refuse_500_code", "parameters": {"code": ""}}, "parameters.code"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_by_field(
    merchant: Merchant, document: dict[str, object], field: str
) -> None:
    answer = merchant.call("POST", "/_admin/faults", json=document)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field
    assert answer.json()["error"]["message"]
    assert merchant.admin("GET", "faults") == {"data": []}
