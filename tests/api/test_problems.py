"""Every refusal is a problem document (RFC 9457) that a program and a person can act on."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import uuid4

import pytest
from werkzeug.test import TestResponse

from payments_app.api.problem_types import all_problems
from tests.api.http_caller import NOBODYS, PAYMENTS, HttpCaller, an_order

Send = Callable[[HttpCaller], TestResponse]
REFUSALS: dict[str, tuple[int, Send]] = {
    "unauthenticated": (401, lambda caller: caller.get(headers={"X-API-Key": "x"})),
    "tenant_mismatch": (403, lambda caller: caller.get(headers={"X-Tenant-Id": "x"})),
    "payment_not_found": (404, lambda caller: caller.get(f"{PAYMENTS}/{uuid4()}")),
    "not_found": (404, lambda caller: caller.get("/api/v1/nothing")),
    "method_not_allowed": (405, lambda caller: caller.send("DELETE", PAYMENTS)),
    "body_malformed": (400, lambda caller: caller.post(b"{")),
    "body_too_large": (413, lambda caller: caller.post(b" " * 70_000)),
    "unsupported_media_type": (415, lambda caller: caller.post(b"{}", content_type="text/plain")),
    "validation_failed": (422, lambda caller: caller.post({})),
    "cursor_invalid": (400, lambda caller: caller.get(f"{PAYMENTS}?cursor=x")),
    "idempotency_key_invalid": (400, lambda caller: caller.post(an_order(), key="x")),
    "problem_unknown": (404, lambda caller: caller.get("/problems/nothing")),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_a_problem_document(caller: HttpCaller, code: str) -> None:
    status, send = REFUSALS[code]

    refused = send(caller)

    document = refused.get_json()
    assert refused.status_code == document["status"] == status
    assert refused.content_type == "application/problem+json"
    assert document["code"] == code
    assert document["type"] == f"/problems/{code}"
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == refused.headers["X-Request-Id"]
    assert refused.headers["Link"] == f'</problems/{code}>; rel="describedby"'


@pytest.mark.parametrize("code", [problem.code for problem in all_problems()])
def test_the_type_leads_to_what_it_means(caller: HttpCaller, code: str) -> None:
    described = caller.get(f"/problems/{code}", headers={"X-API-Key": None})

    assert described.status_code == 200
    assert described.get_json()["code"] == code
    assert described.get_json()["advice"]


def test_each_code_means_one_thing() -> None:
    codes = [problem.code for problem in all_problems()]

    assert len(codes) == len(set(codes))
    assert all(re.fullmatch("[a-z][a-z0-9_]*", code) for code in codes)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (PAYMENTS, {"GET", "HEAD", "OPTIONS", "POST"}),
        (f"{PAYMENTS}/{NOBODYS}", {"GET", "HEAD", "OPTIONS"}),
        ("/health", {"GET", "HEAD", "OPTIONS"}),
        ("/callbacks/mtn_momo/x", {"OPTIONS", "POST", "PUT"}),
    ],
)
def test_a_method_that_is_not_allowed_is_told_which_are(
    caller: HttpCaller, path: str, allowed: set[str]
) -> None:
    refused = caller.send("PATCH", path)

    assert refused.status_code == 405
    assert set(refused.headers["Allow"].split(", ")) == allowed


def test_a_payment_id_that_is_no_uuid_is_not_found(caller: HttpCaller) -> None:
    for name in ("1", "x" * 36, "%00", "..", str(uuid4()) + "0"):
        assert caller.get(f"{PAYMENTS}/{name}").status_code == 404


def test_a_query_error_says_that_it_is_in_the_query(caller: HttpCaller) -> None:
    refused = caller.get(f"{PAYMENTS}?limit=0")

    error = refused.get_json()["errors"][0]
    assert (error["in"], error["field"]) == ("query", "limit")
    assert "pointer" not in error


def test_a_refusal_has_no_body_on_head(caller: HttpCaller) -> None:
    refused = caller.send("HEAD", f"{PAYMENTS}/{uuid4()}")

    assert refused.status_code == 404
    assert refused.get_data() == b""
