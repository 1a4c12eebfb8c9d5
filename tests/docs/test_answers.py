"""Each row of the table of answers in docs/idempotency.md, requested from the real API."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
import requests
from psycopg import sql

from devstack.demo import SUCCESS_MAX_S
from payments_app.api.problem_types import HTTP_PROBLEMS, PROBLEMS
from payments_app.tenants.caller import KNOWN_FOR_S
from tests.docs.cli_server import ask
from tests.docs.conftest import Site
from tests.docs.pages import read
from tests.docs.test_retry_loops import expire

PAGE: Final = "docs/idempotency.md"
TENANT: Final = "answers"
ORDER: Final = {"amount": "10", "currency": "EUR", "payer": "256772123456"}
JSON: Final = {"Content-Type": "application/json"}
# Not answers to a well-formed POST /payments, or only possible with a fault of ours.
NOT_ASKED_FOR: Final = {
    "internal_error": "needs a fault of ours: tests of the API make one",
    "provider_account_unreadable": "needs SECRET_KEYS to lose a key: tests/storage",
    "data_key_unreadable": "needs SECRET_KEYS to lose a key: tests/storage",
    "provider_required": "needs a second provider: tests of the API have one",
    "provider_not_enabled": "needs an installation without a platform account",
}
# The API's other codes, which are never an answer to POST /payments.
OF_OTHER_CALLS: Final = {
    *("cursor_invalid", "payment_not_found", "problem_unknown", "bad_request", "not_acceptable"),
    *("webhook_url_refused", "webhook_endpoint_not_found", "webhook_delivery_not_found"),
    *("webhook_endpoints_too_many", "webhook_endpoint_disabled", "webhook_rotation_running"),
}
# Each process needs one failed request to discover that its connections are broken.
SETTLED_AFTER: Final = 12


def documented() -> dict[str, int]:
    """Code → status, from the page's table."""
    section = read(PAGE).split("## Every answer", 1)[1].split("\n## ", 1)[0]
    found: dict[str, int] = {}
    for row in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        _, statuses, codes, _ = (cell.strip() for cell in row.split("|"))
        pairs = zip(re.findall(r"\d+", statuses), re.findall(r"`(\w+)`", codes), strict=False)
        found.update({code: int(status) for status, code in pairs})
    return found


def post(
    site: Site,
    order: Mapping[str, Any] | None = None,
    *,
    key: UUID | str | None = None,
    tenant: str = TENANT,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> requests.Response:
    own = {"X-API-Key": site.key_of(tenant)} | dict(headers or {})
    if key is not None:
        own["Idempotency-Key"] = str(key)
    body = {} if "data" in options else {"json": {**ORDER, **(order or {})}}
    return requests.post(site.payments, headers=own, timeout=30, **body, **options)


def in_progress(site: Site) -> requests.Response:
    """Another transaction holds the key's row, uncommitted, for longer than a request waits."""
    key = uuid4()
    site.key_of(TENANT)
    tenant = json.loads(site.flask("tenants", "show", TENANT, "--json"))
    with psycopg.connect(site.stack.administrator_url) as connection:
        connection.execute(
            "INSERT INTO idempotency_keys (tenant_id, mode, key, fingerprint,"
            " fingerprint_version, resource_id, status, expires_at)"
            " VALUES (%s, 'test', %s, sha256('x'), 1, gen_random_uuid(), 201, now())",
            [tenant["id"], key],
        )
        answer = post(site, key=key)
        connection.rollback()
    assert int(answer.headers["Retry-After"]) >= 1
    assert post(site, key=key).status_code == 201
    return answer


def expired(site: Site) -> requests.Response:
    key = uuid4()
    payment = post(site, key=key).json()
    until_final(site, payment["id"])
    expire(site, str(key))
    with kept(site, key):
        answer = post(site, key=key)
        problem = answer.json()
        assert problem["payment_id"] == payment["id"]
        other = post(site, {"amount": "11"}, key=key)
        assert (other.status_code, other.json()["fields"]) == (422, ["amount"])
    forget(site, key)
    assert post(site, {"amount": "11"}, key=key).json()["fields"] == []
    assert post(site, key=key).json() | {"request_id": None} == problem | {"request_id": None}
    assert answer.headers["Location"] == problem["payment"] == f"/api/v1/payments/{payment['id']}"
    return answer


def external_id_taken(site: Site) -> requests.Response:
    order = {"external_id": f"order-{uuid4()}"}
    assert post(site, order, key=uuid4()).status_code == 201
    return post(site, order, key=uuid4())


def reused(site: Site) -> requests.Response:
    key = uuid4()
    post(site, key=key)
    answer = post(site, {"amount": "11", "description": "other"}, key=key)
    assert answer.json()["fields"] == ["amount", "description"]
    return answer


def key_missing(site: Site) -> requests.Response:
    site.key_of("strict")
    site.flask("tenants", "set", "strict", "--require-idempotency-key")
    return post(site, tenant="strict")


def suspended(site: Site) -> requests.Response:
    site.key_of("gone")
    site.flask("tenants", "suspend", "gone")
    return post(site, tenant="gone")


def held(site: Site) -> requests.Response:
    key = uuid4()
    site.key_of("held")
    first = post(site, tenant="held", key=key)
    site.flask("tenants", "hold", "held", "--why", "a test")
    time.sleep(KNOWN_FOR_S)
    again = post(site, tenant="held", key=key)
    assert (again.status_code, again.content) == (201, first.content)
    answer = post(site, tenant="held", key=uuid4())
    assert int(answer.headers["Retry-After"]) >= 1
    site.flask("tenants", "release", "held")
    time.sleep(KNOWN_FOR_S)
    assert post(site, tenant="held", key=uuid4()).status_code == 201
    return answer


def with_a_key(site: Site, *bounds: str) -> requests.Response:
    site.key_of(TENANT)
    issued = json.loads(site.flask("keys", "issue", TENANT, *bounds, "--json"))
    return post(site, headers={"X-API-Key": issued["key"]})


def rate_limited(site: Site) -> requests.Response:
    site.key_of("eager")
    site.flask("tenants", "set", "eager", "--rate-limit", "2 per minute")
    for _ in range(2):
        post(site, tenant="eager")
    answer = post(site, tenant="eager")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    return answer


def without_database(site: Site) -> requests.Response:
    key = uuid4()
    site.key_of(TENANT)
    with shut_database(site):
        answer = post(site, key=key)
        assert int(answer.headers["Retry-After"]) >= 1
    again = until_answered(lambda: post(site, key=key))
    assert again.status_code == 201
    settle(site)
    return answer


ASK: Final[Mapping[str, Callable[[Site], requests.Response]]] = {
    "idempotency_key_in_progress": in_progress,
    "idempotency_key_expired": expired,
    "idempotency_key_reused": reused,
    "external_id_taken": external_id_taken,
    "idempotency_key_missing": key_missing,
    "idempotency_key_invalid": lambda site: post(site, key="order-123"),
    "validation_failed": lambda site: post(site, {"amount": 12.5}),
    "provider_unknown": lambda site: post(site, {"provider": "nobody"}),
    "body_malformed": lambda site: post(site, data="{", headers=JSON),
    "unauthenticated": lambda site: post(site, headers={"X-API-Key": "mara_live_x"}),
    "tenant_mismatch": lambda site: post(site, headers={"X-Tenant-Id": "other"}),
    "tenant_suspended": suspended,
    "tenant_held": held,
    "api_key_expired": lambda site: with_a_key(site, "--expires-in", "0m"),
    "scope_missing": lambda site: with_a_key(site, "--scope", "payments:read"),
    "network_not_allowed": lambda site: with_a_key(site, "--network", "203.0.113.0/24"),
    "not_found": lambda site: requests.post(f"{site.payments}s", timeout=30),
    "method_not_allowed": lambda site: requests.put(
        site.payments, headers={"X-API-Key": site.key_of(TENANT)}, timeout=30
    ),
    "body_too_large": lambda site: post(site, data=b" " * 70_000, headers=JSON),
    "unsupported_media_type": lambda site: post(site, data="amount=1"),
    "rate_limited": rate_limited,
    "temporarily_unavailable": without_database,
}


def test_the_table_has_each_code_and_no_other() -> None:
    asked = set(ASK) | set(NOT_ASKED_FOR)
    assert set(documented()) == asked
    in_code = {problem.code for problem in (*PROBLEMS.values(), *HTTP_PROBLEMS.values())}
    assert in_code - OF_OTHER_CALLS <= asked


@pytest.mark.parametrize("code", sorted(NOT_ASKED_FOR))
def test_what_is_not_asked_for_has_the_status_of_the_code(code: str) -> None:
    table = {problem.code: problem for problem in (*PROBLEMS.values(), *HTTP_PROBLEMS.values())}
    assert documented()[code] == table[code].status


@pytest.mark.parametrize("code", sorted(ASK))
def test_the_answer_is_as_the_table_says(code: str, site: Site) -> None:
    answer = ASK[code](site)
    assert (answer.status_code, answer.json()["code"]) == (documented()[code], code)
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_replay_has_the_same_bytes_and_the_status_now(site: Site) -> None:
    key = uuid4()
    first = post(site, key=key)
    until_final(site, first.json()["id"])
    again = post(site, key=f'"{str(key).upper()}"')
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Payment-Status"] == "SUCCESSFUL"


SAME: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "an integer": ({"amount": 10}, {"amount": "10.00"}),
    "a plus and spaces": ({}, {"payer": "+256 772 123456"}),
    "two zeros": ({}, {"payer": "00256772123456"}),
    "null and left out": ({"description": None}, {}),
    "order in metadata": ({"metadata": {"a": 1, "b": 2}}, {"metadata": {"b": 2, "a": 1}}),
}
OTHER: Final[dict[str, tuple[dict[str, Any], dict[str, Any], str]]] = {
    "amount": ({}, {"amount": "10.01"}, "amount"),
    "payer": ({}, {"payer": "256772123457"}, "payer"),
    "text": ({"description": "a"}, {"description": "b"}, "description"),
    "external_id": ({}, {"external_id": "x"}, "external_id"),
    "provider named": ({"provider": "mtn_momo"}, {}, "provider"),
    "number in metadata": ({"metadata": {"a": 1}}, {"metadata": {"a": 1.0}}, "metadata"),
    "text in metadata": ({"metadata": {"a": 1}}, {"metadata": {"a": "1"}}, "metadata"),
    "empty metadata": ({"metadata": {}}, {}, "metadata"),
}


@pytest.mark.parametrize("case", SAME)
def test_these_are_the_same_request(case: str, site: Site) -> None:
    key = uuid4()
    first, second = SAME[case]
    assert post(site, first, key=key).content == post(site, second, key=key).content


@pytest.mark.parametrize("case", OTHER)
def test_these_are_different_requests(case: str, site: Site) -> None:
    key = uuid4()
    first, second, field = OTHER[case]
    assert post(site, first, key=key).status_code == 201
    answer = post(site, second, key=key)
    assert (answer.status_code, answer.json()["fields"]) == (422, [field])


def test_another_api_key_of_the_tenant_gives_the_same_payment(site: Site) -> None:
    key = uuid4()
    first = post(site, key=key)
    other_key = site.new_key(TENANT)["key"]
    assert post(site, key=key, headers={"X-API-Key": other_key}).content == first.content


def test_what_the_operator_changes_meanwhile_does_not_touch_an_answer(site: Site) -> None:
    site.key_of("moved")
    _move_to(site, "mtnuganda")
    live = json.loads(site.flask("keys", "issue", "moved", "--mode", "live", "--json"))["key"]

    def ask_for_shillings(key: UUID) -> requests.Response:
        return post(site, {"currency": "UGX"}, key=key, headers={"X-API-Key": live})

    key = uuid4()
    first = ask_for_shillings(key)
    assert first.status_code == 201
    _move_to(site, "mtnzambia", "--may-move")
    until_answered(lambda: None if ask_for_shillings(uuid4()).ok else first)
    assert ask_for_shillings(key).content == first.content


def _move_to(site: Site, environment: str, *options: str) -> None:
    credentials = ("collection_subscription_key", "collection_api_user", "collection_api_key")
    site.flask(
        *("providers", "set", "moved", "mtn_momo", "--target-environment", environment),
        *("--base-url", "http://127.0.0.1:1", *options),
        *(f"--credential={name}=env:HOME" for name in credentials),
    )


def test_another_tenants_use_of_a_key_is_unrelated(site: Site) -> None:
    key = uuid4()
    mine, theirs = post(site, key=key), post(site, {"amount": "9"}, key=key, tenant="neighbour")
    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert mine.json()["id"] != theirs.json()["id"]


def test_a_refusal_spends_no_key(site: Site) -> None:
    key = uuid4()
    assert post(site, {"amount": "0"}, key=key).status_code == 422
    assert post(site, key=key).status_code == 201


@contextmanager
def kept(site: Site, key: UUID) -> Iterator[None]:
    """Lock the key's row: the worker forgets no answer whose row is locked."""
    with psycopg.connect(site.stack.administrator_url) as connection:
        connection.execute("SELECT FROM idempotency_keys WHERE key = %s FOR UPDATE", [key])
        yield


def forget(site: Site, key: UUID) -> None:
    """Do what the worker does some minutes after an answer has expired."""
    with psycopg.connect(site.stack.administrator_url) as connection:
        connection.execute(
            "UPDATE idempotency_keys SET body = NULL, headers = NULL, field_digests = NULL"
            " WHERE key = %s",
            [key],
        )


def until_final(site: Site, payment_id: str) -> None:
    def is_final() -> requests.Response | None:
        status = site.get(f"/{payment_id}", tenant=TENANT)["status"]
        return None if status == "PENDING" else requests.Response()

    until_answered(is_final)


def until_answered(ask: Callable[[], requests.Response | None]) -> requests.Response:
    deadline = time.monotonic() + SUCCESS_MAX_S
    while (answer := ask()) is None or answer.status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return answer


def settle(site: Site) -> None:
    """Wait until requests are answered, and start the API anew: no connection is broken then."""
    good, deadline = 0, time.monotonic() + SUCCESS_MAX_S
    while good < SETTLED_AFTER:
        assert time.monotonic() < deadline
        answer = requests.get(site.payments, headers={"X-API-Key": site.key_of(TENANT)}, timeout=30)
        good = good + 1 if answer.ok else 0
    # The kernel may have given all of them to one process, and the other would fail the next test.
    site.stack.processes["api"].restart()
    site.stack.await_ready()
    for _ in range(2):
        ask(site.cli_socket, ["tenants", "list"], "")


@contextmanager
def shut_database(site: Site) -> Iterator[None]:
    """Make PostgreSQL unavailable, for this stack alone."""
    name = sql.Identifier(site.stack.database)
    with psycopg.connect(site.stack.postgres.administrator_url(), autocommit=True) as connection:
        allow = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
        connection.execute(allow.format(name, sql.SQL("false")))
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [site.stack.database],
            )
            yield
        finally:
            connection.execute(allow.format(name, sql.SQL("true")))
