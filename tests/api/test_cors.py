"""CORS: no headers by default; for the configured origins, the headers that a caller needs."""

from __future__ import annotations

import pytest
from werkzeug.test import TestResponse

from payments_app.api.browsers import CORS_READ, CORS_SENT
from tests.api.http_caller import PAYMENTS, HttpCaller, MakeApp, an_order

TILL = "https://till.example.com"
EVIL = "https://evil.example"


@pytest.fixture
def caller(make_app: MakeApp, caller: HttpCaller) -> HttpCaller:
    """A tenant of an app that two origins may call."""
    app = make_app(cors_allowed_origins=(TILL, "http://localhost:3000"))
    return HttpCaller(app, caller.tenant, caller.key)


def preflight(caller: HttpCaller, origin: str, path: str = PAYMENTS) -> TestResponse:
    """A preflight request as browsers send it: without a key."""
    headers = {
        "X-API-Key": None,
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,idempotency-key,x-api-key",
    }
    return caller.send("OPTIONS", path, headers=headers)


def cors_headers(answer: TestResponse) -> dict[str, str]:
    return {k: v for k, v in answer.headers if k.lower().startswith("access-control-")}


def test_a_preflight_of_a_named_origin_is_answered_without_a_key(caller: HttpCaller) -> None:
    answer = preflight(caller, TILL)

    assert answer.status_code == 204
    allowed = cors_headers(answer)
    assert allowed["Access-Control-Allow-Origin"] == TILL
    assert allowed["Access-Control-Allow-Methods"] == "GET, POST"
    sent = allowed["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"content-type", "idempotency-key", "x-api-key"} <= set(sent)
    assert int(allowed["Access-Control-Max-Age"]) <= 600
    assert "Access-Control-Allow-Credentials" not in allowed
    assert "Origin" in answer.headers["Vary"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "origin",
    [EVIL, "null", "*", "", TILL + ".evil.example", TILL + ":444", TILL.replace("s:", ":"), "x"],
)
def test_any_other_origin_is_told_nothing(caller: HttpCaller, origin: str) -> None:
    refused = preflight(caller, origin)

    assert refused.status_code == 401
    assert cors_headers(refused) == {}
    assert cors_headers(caller.get(headers={"Origin": origin})) == {}


def test_a_named_origin_may_read_answers_and_refusals(caller: HttpCaller) -> None:
    paid = caller.post(an_order(), headers={"Origin": TILL})
    refused = caller.get(headers={"Origin": TILL, "X-API-Key": None})

    assert (paid.status_code, refused.status_code) == (201, 401)
    for answer in (paid, refused):
        assert answer.headers["Access-Control-Allow-Origin"] == TILL
        assert answer.headers["Access-Control-Expose-Headers"] == CORS_READ
        assert "Origin" in answer.headers["Vary"]


def test_an_answer_to_nobodys_origin_is_not_cached_for_one(caller: HttpCaller) -> None:
    assert "Origin" in caller.get().headers["Vary"]


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/callbacks/mtn_momo/x", "/nothing"])
def test_outside_the_api_no_origin_may_read_anything(caller: HttpCaller, path: str) -> None:
    assert cors_headers(preflight(caller, TILL, path)) == {}
    assert cors_headers(caller.get(path, headers={"Origin": TILL})) == {}


def test_options_without_a_preflights_question_needs_a_key(caller: HttpCaller) -> None:
    headers = {"Origin": TILL, "X-API-Key": None}

    assert caller.send("OPTIONS", PAYMENTS, headers=headers).status_code == 401


def test_all_that_the_api_reads_may_be_sent(caller: HttpCaller) -> None:
    document = caller.get("/openapi.json").get_json()
    read = {
        one["name"].lower()
        for one in document["components"]["parameters"].values()
        if one["in"] == "header"
    }

    assert read
    assert read <= set(CORS_SENT.lower().split(", "))
