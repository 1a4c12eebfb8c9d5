"""Which requests are authenticated, and that all others learn nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import func, update
from werkzeug.test import TestResponse

from payments_app.api.presented_key import NOT_ACCEPTED
from payments_app.kernel.database import transaction
from payments_app.providers.contract import Mode
from payments_app.tenants.key_format import checksum, new_key
from payments_app.tenants.keys import revoke_key
from payments_app.tenants.model import ApiKey
from payments_app.tenants.registry import resume_tenant, suspend_tenant
from tests.api.http_caller import (
    PAYMENTS,
    HttpCaller,
    an_order,
    await_known,
    code_of,
    count_payments,
    new_caller,
)


def bearer(key: str) -> dict[str, str | None]:
    return {"X-API-Key": None, "Authorization": f"Bearer {key}"}


def with_another_secret(key: str) -> str:
    """The same prefix and a valid checksum: only the hash differs."""
    unsigned = key[:-6]
    unsigned = unsigned[:-1] + ("A" if unsigned[-1] != "A" else "B")
    return unsigned + checksum(unsigned)


def _expired_key(caller: HttpCaller, app: Flask) -> str:
    expired = caller.another_key(Mode.TEST)
    with app.app_context(), transaction(caller.tenant.id) as session:
        past = func.clock_timestamp() - timedelta(hours=1)
        session.execute(update(ApiKey).where(ApiKey.id == expired.key.id).values(expires_at=past))
    return expired.key.key


def what_a_stranger_learns(answer: TestResponse) -> dict[str, Any]:
    document: dict[str, Any] = answer.get_json()
    return {**document, "request_id": None, "status code": answer.status_code}


def test_a_key_opens_in_either_header(caller: HttpCaller) -> None:
    key = caller.key.key

    assert caller.get().status_code == 200
    assert caller.get(headers=bearer(key)).status_code == 200
    assert caller.get(headers=bearer(key) | {"Authorization": f"bearer  {key}"}).status_code == 200
    assert caller.get(headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"X-API-Key": None}, id="none"),
        pytest.param({"X-API-Key": ""}, id="empty"),
        pytest.param({"X-API-Key": "garbage"}, id="garbage"),
        pytest.param({"X-API-Key": "\xff\xfe"}, id="no ASCII"),
        pytest.param({"X-API-Key": new_key(Mode.TEST)[1]}, id="well formed and nobody's"),
        pytest.param({"X-API-Key": new_key(Mode.TEST)[0]}, id="a prefix"),
        pytest.param({"X-API-Key": None, "Authorization": "Basic dTpw"}, id="Basic"),
        pytest.param({"X-API-Key": None, "Authorization": "Bearer"}, id="Bearer and nothing"),
        pytest.param({"X-API-Key": None, "Authorization": "Bearer a b"}, id="Bearer with two"),
    ],
)
def test_what_is_no_key_is_refused_and_told_how_to_authenticate(
    caller: HttpCaller, method: str, headers: dict[str, str | None]
) -> None:
    refused = caller.send(method, PAYMENTS, headers=headers)

    assert refused.status_code == 401
    assert code_of(refused) == "unauthenticated"
    assert refused.headers["WWW-Authenticate"] == 'Bearer realm="maramoja"'
    assert "RateLimit-Limit" not in refused.headers


def test_all_keys_that_open_nothing_are_answered_alike(caller: HttpCaller, app: Flask) -> None:
    revoked = caller.another_key(Mode.TEST)
    with app.app_context():
        revoke_key(str(revoked.key.id), actor="cli:test")
        await_known()
    wrong = [
        with_another_secret(caller.key.key),
        new_key(Mode.TEST)[1],
        new_key(Mode.LIVE)[1],
        revoked.key.key,
        with_another_secret(revoked.key.key),
        with_another_secret(_expired_key(caller, app)),
    ]

    answers = [what_a_stranger_learns(caller.get(headers={"X-API-Key": key})) for key in wrong]

    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["status code"] == 401
    assert answers[0]["detail"] == NOT_ACCEPTED


ANOTHERS = new_key(Mode.TEST)[1]
# What is sent, a part of the sentence about it, and a part of the advice.
SENT = [
    pytest.param({}, "has no API key", "X-API-Key", id="none"),
    pytest.param({"X-API-Key": "  "}, "X-API-Key is empty", "mara_test_", id="empty"),
    pytest.param({"X-API-Key": "sk_live_51H8"}, "X-API-Key does not hold", "mara_test_", id="form"),
    pytest.param({"X-API-Key": ANOTHERS[:-1]}, "does not hold", "38 letters", id="cut"),
    pytest.param({"X-API-Key": f"{ANOTHERS},{ANOTHERS}"}, "does not hold", "mara_", id="twice"),
    pytest.param(
        {"X-API-Key": ANOTHERS[:-1] + ("B" if ANOTHERS[-1] == "A" else "A")},
        *("mistyped", "Copy the whole key"),
        id="mistyped",
    ),
    pytest.param(
        {"X-API-Key": f"Bearer {ANOTHERS}"}, "alone", "without the word Bearer", id="Bearer in it"
    ),
    pytest.param(
        {"Authorization": "Bearer x"}, "Authorization does not hold", "mara_test_", id="Bearer form"
    ),
    pytest.param({"Authorization": "Bearer"}, "followed by", "mara_test_", id="Bearer alone"),
    pytest.param({"Authorization": ANOTHERS}, "only as Bearer", "X-API-Key", id="no scheme"),
    pytest.param({"Authorization": "Basic dTpw"}, "only as Bearer", "X-API-Key", id="Basic"),
]


@pytest.mark.parametrize(("headers", "wrong", "to_do"), SENT)
def test_who_sends_no_key_is_told_what_was_sent_and_what_to_send(
    caller: HttpCaller, headers: dict[str, str | None], wrong: str, to_do: str
) -> None:
    refused = caller.get(headers={"X-API-Key": None} | headers)

    assert (refused.status_code, code_of(refused)) == (401, "unauthenticated")
    assert wrong in refused.get_json()["detail"]
    assert to_do in refused.get_json()["detail"]
    # It may be a secret with a typing error.
    assert ANOTHERS[-20:-1] not in refused.text


def test_a_revoked_key_opens_nothing_at_once(caller: HttpCaller, app: Flask) -> None:
    assert caller.get().status_code == 200
    with app.app_context():
        revoke_key(str(caller.key.id), actor="cli:test")
        await_known()

    assert caller.get().status_code == 401
    assert caller.post(an_order()).status_code == 401
    assert count_payments(caller) == 0


def test_two_different_keys_are_refused_even_when_both_are_right(caller: HttpCaller) -> None:
    other = caller.another_key(Mode.TEST).key.key

    refused = caller.get(headers={"Authorization": f"Bearer {other}"})

    assert refused.status_code == 401
    assert caller.key.key not in refused.text
    assert other not in refused.text


def test_the_tenants_own_id_or_slug_may_be_sent_along(caller: HttpCaller) -> None:
    for name in (caller.tenant.slug, str(caller.tenant.id), str(caller.tenant.id).upper()):
        assert caller.get(headers={"X-Tenant-Id": name}).status_code == 200


def test_another_tenants_name_is_answered_like_one_that_does_not_exist(
    caller: HttpCaller, app: Flask
) -> None:
    other = new_caller(app).tenant
    names = [other.slug, str(other.id), "no-such-tenant", str(uuid4()), "", "'", "\xe9"]

    answers = [what_a_stranger_learns(caller.get(headers={"X-Tenant-Id": name})) for name in names]

    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["status code"] == 403
    assert answers[0]["code"] == "tenant_mismatch"


def test_a_suspended_tenant_is_told_so_by_its_own_keys_only(caller: HttpCaller, app: Flask) -> None:
    payment = caller.pay()
    with app.app_context():
        suspend_tenant(caller.tenant, actor="cli:test")
        await_known()

    refused = caller.post(an_order())
    guessed = caller.get(headers={"X-API-Key": with_another_secret(caller.key.key)})

    assert refused.status_code == 403
    assert code_of(refused) == "tenant_suspended"
    assert caller.get(f"{PAYMENTS}/{payment['id']}").status_code == 403
    assert guessed.status_code == 401
    with app.app_context():
        resume_tenant(caller.tenant, actor="cli:test")
        await_known()
    assert caller.show(payment)["id"] == payment["id"]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/docs", "/openapi.json"])
def test_what_is_public_asks_for_no_key(caller: HttpCaller, path: str) -> None:
    assert caller.get(path, headers={"X-API-Key": None}).status_code == 200


@pytest.mark.parametrize(
    "spelling", ["//api//v1//payments", "/api/v1//payments", "/API/v1/payments"]
)
def test_another_spelling_of_a_path_is_no_way_around(caller: HttpCaller, spelling: str) -> None:
    answer = caller.get(spelling, headers={"X-API-Key": None})

    assert answer.status_code == 404
    assert "Location" not in answer.headers
