"""The token endpoint, and the checks of a token."""

from __future__ import annotations

import pytest

from tests.simulator.driving import (
    API_KEY,
    API_USER,
    SUBSCRIPTION_KEY,
    Merchant,
    new_reference,
    on_the_wire,
)

KEY = {"Ocp-Apim-Subscription-Key": SUBSCRIPTION_KEY}


@pytest.mark.parametrize("path", ["/collection/token/", "/collection/token"])
@pytest.mark.parametrize("body", [{}, {"json": {}}, {"json": {"grant_type": "x"}}])
def test_a_token_comes_with_or_without_a_slash_or_a_json_body(
    merchant: Merchant, path: str, body: dict[str, object]
) -> None:
    answer = merchant.call("POST", path, auth=(API_USER, API_KEY), headers=KEY, **body)
    token = answer.json()
    assert answer.status_code == 200
    assert set(token) == {"access_token", "token_type", "expires_in"}
    assert (token["token_type"], token["expires_in"]) == ("access_token", 3600)
    assert token["access_token"].count(".") == 2


def test_a_post_without_a_length_is_a_411(merchant: Merchant) -> None:
    assert on_the_wire(merchant, "POST", "/collection/token/").startswith(b"HTTP/1.1 411 ")


def test_a_form_is_stopped_by_the_firewall_with_a_200(merchant: Merchant) -> None:
    answer = merchant.request_token(data={"grant_type": "client_credentials"})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "Request Rejected" in answer.text


@pytest.mark.parametrize(
    "auth", [(API_USER, "wrong"), ("nobody", API_KEY), (new_reference(), API_KEY), None]
)
def test_wrong_credentials_are_a_500_login_failed(
    merchant: Merchant, auth: tuple[str, str] | None
) -> None:
    answer = merchant.request_token(auth=auth)
    assert (answer.status_code, answer.json()) == (500, {"error": "login_failed"})


def test_a_wrong_subscription_key_is_a_401_of_azure(merchant: Merchant) -> None:
    answer = merchant.request_token(headers={"Ocp-Apim-Subscription-Key": "wrong"})
    assert answer.status_code == 401
    assert "invalid subscription key" in answer.json()["message"]


def test_the_key_may_be_a_query_parameter(merchant: Merchant) -> None:
    answer = merchant.request_token(headers={}, params={"subscription-key": SUBSCRIPTION_KEY})
    assert answer.status_code == 200


def test_a_key_opens_its_own_products_only(url: str) -> None:
    remitter = Merchant(url, "remittance", "transfer")
    with remitter.session:
        assert remitter.request_token().status_code == 401


def test_a_token_is_for_one_product(merchant: Merchant, payer_out: Merchant) -> None:
    payer_out._token = merchant.token
    refused = payer_out.pay()
    assert (refused.status_code, refused.json()["statusCode"]) == (401, 401)


def test_a_token_expires_by_the_clock(merchant: Merchant) -> None:
    merchant.set(token_ttl_s=600)
    reference = new_reference()
    assert merchant.pay(reference).status_code == 202
    # Real time passes too, until the request has arrived.
    merchant.admin("POST", "clock", {"advance_s": 590})
    assert merchant.ask(reference).status_code == 200
    merchant.admin("POST", "clock", {"advance_s": 10})
    assert merchant.ask(reference).status_code == 401


def test_tokens_can_be_made_void_in_mid_flight(merchant: Merchant) -> None:
    assert merchant.pay().status_code == 202
    assert merchant.admin("POST", "tokens/expire")["expired"] >= 1
    assert merchant.pay().status_code == 401
    merchant._token = None
    assert merchant.pay().status_code == 202


def test_the_new_platform_has_its_own_ways(merchant: Merchant) -> None:
    merchant.set(platform="new")
    python = merchant.request_token(headers=KEY)
    named = KEY | {"User-Agent": "gateway/1.0"}
    nowhere = merchant.request_token(headers=named)
    somewhere = named | {"X-Target-Environment": "mtnuganda"}
    wrong = merchant.request_token(headers=somewhere, auth=(API_USER, "wrong"))
    assert (python.status_code, "<html>" in python.text) == (403, True)
    assert nowhere.status_code == 400
    assert nowhere.json() == {"error": "Invalid or missing X-Target-Environment header"}
    assert (wrong.status_code, wrong.json()) == (401, {"error": "invalid_client"})
    assert merchant.request_token(headers=somewhere).status_code == 200
