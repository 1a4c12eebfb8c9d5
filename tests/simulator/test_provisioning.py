"""API users and keys, as MTN's sandbox makes them."""

from __future__ import annotations

import re

import pytest
import requests

from tests.simulator.driving import Merchant, new_reference

KEY = {"Ocp-Apim-Subscription-Key": "a-key-of-my-own"}


def create(merchant: Merchant, reference: str, host: object = "example.test") -> requests.Response:
    return merchant.call(
        "POST",
        "/v1_0/apiuser",
        headers=KEY | {"X-Reference-Id": reference},
        json={"providerCallbackHost": host},
    )


def issue_key(merchant: Merchant, api_user: str) -> requests.Response:
    return merchant.call("POST", f"/v1_0/apiuser/{api_user}/apikey", headers=KEY)


def test_a_user_is_made_once_with_an_empty_201(merchant: Merchant) -> None:
    reference = new_reference()
    made = create(merchant, reference)
    again = create(merchant, reference)
    assert (made.status_code, made.content) == (201, b"")
    assert again.status_code == 409
    assert again.json()["code"] == "RESOURCE_ALREADY_EXIST"


@pytest.mark.parametrize(
    "host", ["", "https://example.test", "example.test/path", "example.test:8080", None, 7]
)
def test_the_callback_host_is_a_bare_host_name(merchant: Merchant, host: object) -> None:
    refused = create(merchant, new_reference(), host)
    assert (refused.status_code, refused.content) == (400, b"")


def test_the_user_id_is_a_version_4_uuid(merchant: Merchant) -> None:
    assert create(merchant, "c9bf9e57-1685-11ee-be56-0242ac120002").status_code == 400
    assert create(merchant, "no-uuid").status_code == 400


def test_a_user_can_be_read_but_never_its_key(merchant: Merchant) -> None:
    reference = new_reference()
    create(merchant, reference)
    issue_key(merchant, reference)
    shown = merchant.call("GET", f"/v1_0/apiuser/{reference}", headers=KEY)
    assert shown.json() == {
        "providerCallbackHost": "example.test",
        "targetEnvironment": "sandbox",
    }


@pytest.mark.parametrize("suffix", ["", "/apikey"])
def test_unknown_and_malformed_users_are_told_apart(merchant: Merchant, suffix: str) -> None:
    method = "POST" if suffix else "GET"
    unknown = merchant.call(method, f"/v1_0/apiuser/{new_reference()}{suffix}", headers=KEY)
    malformed = merchant.call(method, f"/v1_0/apiuser/nobody{suffix}", headers=KEY)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "RESOURCE_NOT_FOUND")
    assert (malformed.status_code, malformed.content) == (400, b"")


def test_a_new_key_voids_the_one_before(merchant: Merchant) -> None:
    api_user = new_reference()
    create(merchant, api_user)
    first = issue_key(merchant, api_user)
    second = issue_key(merchant, api_user).json()["apiKey"]
    assert first.status_code == 201
    assert re.fullmatch(r"[0-9a-f]{32}", first.json()["apiKey"])
    old = merchant.request_token(auth=(api_user, first.json()["apiKey"]), headers=KEY)
    new = merchant.request_token(auth=(api_user, second), headers=KEY)
    assert (old.status_code, old.json()) == (500, {"error": "login_failed"})
    assert new.status_code == 200


def test_without_a_subscription_key_azure_answers(merchant: Merchant) -> None:
    refused = merchant.call("POST", "/v1_0/apiuser", json={"providerCallbackHost": "h"})
    assert refused.status_code == 401
    assert refused.json()["statusCode"] == 401
    assert "missing subscription key" in refused.json()["message"]
