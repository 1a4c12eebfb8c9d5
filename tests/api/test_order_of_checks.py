"""Checks before the key is claimed: a refused request does nothing and leaves its key unused."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from uuid import UUID, uuid4

import pytest
from flask import Flask
from werkzeug.test import TestResponse, create_environ

from payments_app.tenants.registry import resume_tenant, suspend_tenant
from tests.api.http_caller import (
    PAYMENTS,
    HttpCaller,
    an_order,
    assert_spends_no_key,
    await_known,
    code_of,
)

Send = Callable[[UUID], TestResponse]
TOO_LARGE = b'{"description": "' + b"a" * 70_000 + b'"}'


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        pytest.param(TOO_LARGE, "application/json", 413, "body_too_large", id="413"),
        pytest.param(b"{}", "text/plain", 415, "unsupported_media_type", id="415"),
        pytest.param(b"{", "application/json", 400, "body_malformed", id="malformed"),
        pytest.param(b"{}", "application/json", 422, "validation_failed", id="422"),
    ],
)
def test_a_body_that_is_refused_spends_no_key(
    caller: HttpCaller, body: bytes, content_type: str, status: int, code: str
) -> None:
    refused = assert_spends_no_key(
        caller, lambda key: caller.post(body, key=key, content_type=content_type)
    )

    assert (refused.status_code, code_of(refused)) == (status, code)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"currency": "KES"}, "currency", id="a currency the account has not"),
        pytest.param({"payer_message": "héllo"}, "payer_message", id="a text the rail refuses"),
        pytest.param({"payer": "0772123456"}, "payer", id="a number"),
    ],
)
def test_an_order_that_the_rail_does_not_take_spends_no_key(
    caller: HttpCaller, changes: dict[str, object], field: str
) -> None:
    refused = assert_spends_no_key(caller, lambda key: caller.post(an_order(**changes), key=key))

    assert [error["field"] for error in refused.get_json()["errors"]] == [field]


def test_an_unknown_provider_spends_no_key(caller: HttpCaller) -> None:
    refused = assert_spends_no_key(
        caller, lambda key: caller.post(an_order(provider="airtel_money"), key=key)
    )

    assert (refused.status_code, code_of(refused)) == (422, "provider_unknown")


def test_an_external_id_that_is_taken_spends_no_key(caller: HttpCaller) -> None:
    first = caller.pay(external_id="order-1")

    refused = assert_spends_no_key(
        caller, lambda key: caller.post(an_order(external_id="order-1"), key=key)
    )

    assert (refused.status_code, code_of(refused)) == (409, "external_id_taken")
    told = refused.get_json()
    assert (told["external_id"], told["payment_id"]) == ("order-1", first["id"])
    assert refused.headers["Location"] == told["payment"] == f"/api/v1/payments/{first['id']}"


def test_401_and_403_spend_no_key(caller: HttpCaller, app: Flask) -> None:
    def without_a_key(key: UUID) -> TestResponse:
        return caller.post(an_order(), key=key, headers={"X-API-Key": None})

    def as_another_tenant(key: UUID) -> TestResponse:
        return caller.post(an_order(), key=key, headers={"X-Tenant-Id": "another"})

    def suspended(key: UUID) -> TestResponse:
        with app.app_context():
            suspend_tenant(caller.tenant, actor="cli:test")
            await_known()
        refused = caller.post(an_order(), key=key)
        with app.app_context():
            resume_tenant(caller.tenant, actor="cli:test")
            await_known()
        return refused

    statuses = [
        assert_spends_no_key(caller, send).status_code
        for send in (without_a_key, as_another_tenant, suspended)
    ]

    assert statuses == [401, 403, 403]


def test_429_spends_no_key(caller: HttpCaller) -> None:
    def beyond_the_limit(key: UUID) -> TestResponse:
        caller.configure(rate_limit="1 per hour")
        assert caller.get().status_code == 200
        refused = caller.post(an_order(), key=key)
        caller.configure(rate_limit=None)
        return refused

    refused = assert_spends_no_key(caller, beyond_the_limit)

    assert (refused.status_code, code_of(refused)) == (429, "rate_limited")


def test_each_check_comes_before_those_that_know_more(caller: HttpCaller) -> None:
    """The first check refuses a request that is wrong in every way; then the next one."""
    caller.configure(rate_limit="1 per hour")
    wrong = {"X-Tenant-Id": "another", "Idempotency-Key": "x"}
    everything = {**wrong, "X-API-Key": "garbage"}

    def answer(headers: dict[str, str | None], content_type: str, body: bytes) -> int:
        return caller.post(body, headers=headers, content_type=content_type).status_code

    assert answer(everything, "text/plain", TOO_LARGE) == 401
    assert answer(wrong, "text/plain", TOO_LARGE) == 403
    caller.get()
    assert answer({"Idempotency-Key": "x"}, "text/plain", TOO_LARGE) == 429
    caller.configure(rate_limit=None)
    assert answer({"Idempotency-Key": "x"}, "text/plain", TOO_LARGE) == 415
    assert answer({"Idempotency-Key": "x"}, "application/json", TOO_LARGE) == 413
    assert answer({"Idempotency-Key": "x"}, "application/json", b"{}") == 422


def test_a_body_without_a_length_is_cut_off_too(caller: HttpCaller) -> None:
    """As a server passes on a chunked body."""
    environ = create_environ(PAYMENTS, method="POST", content_type="application/json")
    environ["HTTP_X_API_KEY"] = caller.key.key
    environ["wsgi.input"] = BytesIO(TOO_LARGE)
    environ["wsgi.input_terminated"] = True

    refused = caller.app.test_client().open(environ)

    assert (refused.status_code, code_of(refused)) == (413, "body_too_large")


def test_a_replay_is_refused_too_while_it_may_not_ask(caller: HttpCaller) -> None:
    key = uuid4()
    first = caller.post(an_order(), key=key)

    assert caller.post(an_order(), key=key, headers={"X-API-Key": None}).status_code == 401
    assert caller.post(an_order(), key=key).get_data() == first.get_data()
