"""Each row of the contract's Idempotency-Key table, over HTTP.

Concurrency is tested elsewhere, with threads and processes. Here nothing is concurrent, but for
a first request that another connection holds open.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from redis import Redis

from devstack.postgres_server import PostgresServer
from payments_app.api import idempotent
from payments_app.payments import retention
from payments_app.providers.contract import Mode
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.scopes import Scope
from tests.api.http_caller import (
    PAYMENTS,
    Engine,
    HttpCaller,
    an_order,
    code_of,
    count_payments,
    new_caller,
)
from tests.builders import ANSWERS, ScriptedProvider, as_the_owner

A_KEY = "5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a"
# A bound that a loaded machine keeps too; the waits themselves are 2 s and 3 s.
PATIENCE_S = 6.0


def test_without_a_key_the_same_request_is_a_new_payment_each_time(caller: HttpCaller) -> None:
    first, second = caller.pay(), caller.pay()

    assert first["id"] != second["id"]


def test_a_tenant_that_requires_keys_is_refused_without_one(caller: HttpCaller) -> None:
    caller.configure(require_idempotency_key=True)

    refused = caller.post(an_order())

    assert refused.status_code == 400
    assert code_of(refused) == "idempotency_key_missing"
    assert 'rel="describedby"' in refused.headers["Link"]
    assert count_payments(caller) == 0
    assert caller.post(an_order(), key=uuid4()).status_code == 201


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("", id="empty"),
        pytest.param('""', id="quotes around nothing"),
        pytest.param('"', id="one quote"),
        pytest.param("order-123", id="not a UUID"),
        pytest.param(A_KEY.replace("-", ""), id="without hyphens"),
        pytest.param("{" + A_KEY + "}", id="braces"),
        pytest.param("urn:uuid:" + A_KEY, id="urn"),
        pytest.param(f'"{A_KEY}', id="quote at one end"),
        pytest.param(f'"{A_KEY}";a=1', id="with a parameter"),
        pytest.param(f"'{A_KEY}'", id="single quotes"),
        pytest.param(A_KEY + "0", id="one digit more"),
        pytest.param(A_KEY[:-1] + "g", id="not hexadecimal"),
        pytest.param("\N{ARABIC-INDIC DIGIT FIVE}" + A_KEY[1:], id="another alphabet's digit"),
        pytest.param("a" * 300, id="too long"),
        # A server joins the values of a repeated header with a comma.
        pytest.param(f"{A_KEY},{A_KEY}", id="the same twice"),
        pytest.param(f"{A_KEY}, 9f2c6a52-6b5f-4a53-8f5e-0d3c1a7b9e41", id="two"),
        pytest.param(str(UUID(int=0)), id="the nil UUID"),
        pytest.param(f'"{UUID(int=0)}"', id="the nil UUID, quoted"),
        pytest.param(str(UUID(int=2**128 - 1)), id="the max UUID"),
        pytest.param(str(UUID(int=2**128 - 1)).upper(), id="the max UUID in capitals"),
    ],
)
def test_a_key_that_is_not_one_uuid_is_refused(caller: HttpCaller, key: str) -> None:
    refused = caller.post(an_order(), key=key.encode().decode("latin-1"))

    assert refused.status_code == 400
    assert code_of(refused) == "idempotency_key_invalid"
    assert count_payments(caller) == 0


@pytest.mark.parametrize("with_the_right_one", [True, False])
@pytest.mark.parametrize("name", ["X-Idempotency-Key", "Idempotence-Key", "Idempotncy-Key"])
def test_a_key_under_a_wrong_name_is_refused_with_both_names(
    caller: HttpCaller, name: str, *, with_the_right_one: bool
) -> None:
    key = uuid4()

    refused = caller.post(
        an_order(), key=key if with_the_right_one else None, headers={name: str(key)}
    )

    assert refused.status_code == 400
    assert code_of(refused) == "idempotency_key_invalid"
    assert name in refused.get_json()["detail"]
    assert "Idempotency-Key." in refused.get_json()["detail"]
    assert count_payments(caller) == 0
    accepted = caller.post(an_order(), key=key)
    assert accepted.status_code == 201
    assert "Idempotent-Replayed" not in accepted.headers


@pytest.mark.parametrize(
    "name", ["idempotency_key", "Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"]
)
def test_a_key_in_the_address_is_refused(caller: HttpCaller, name: str) -> None:
    refused = caller.send("POST", f"{PAYMENTS}?{name}={A_KEY}", json=an_order(), headers={})

    assert (refused.status_code, code_of(refused)) == (400, "idempotency_key_invalid")
    assert count_payments(caller) == 0


def test_every_route_that_changes_something_refuses_it_and_no_other_does(
    caller: HttpCaller, app: Flask
) -> None:
    refusing = {}
    for rule in app.url_map.iter_rules():
        if not rule.rule.startswith("/api/"):
            continue
        path = re.sub("<[^>]*>", str(uuid4()), rule.rule)
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}:
            answer = caller.send(method, path, json={}, headers={"X-Idempotency-Key": A_KEY})
            refused = answer.status_code == 400 and code_of(answer) == "idempotency_key_invalid"
            refusing[f"{method} {rule.rule}"] = refused

    assert refusing == {route: not route.startswith("GET ") for route in refusing}
    assert "POST /api/v1/webhook-endpoints/<uuid:endpoint_id>/rotate-secret" in refusing


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param('"{}"', id="quoted"),
        pytest.param("  {}  ", id="spaces around"),
        pytest.param("{}", id="bare"),
    ],
)
@pytest.mark.parametrize("upper", [True, False])
def test_all_spellings_of_a_uuid_are_one_key(
    caller: HttpCaller, spelling: str, *, upper: bool
) -> None:
    key = str(uuid4())
    first = caller.post(an_order(), key=key)

    again = caller.post(an_order(), key=spelling.format(key.upper() if upper else key))

    assert again.get_data() == first.get_data()
    assert again.headers["Idempotent-Replayed"] == "true"


def test_the_first_use_says_where_the_payment_is_and_nothing_of_replays(caller: HttpCaller) -> None:
    first = caller.post(an_order(), key=uuid4())

    assert first.status_code == 201
    assert first.headers["Location"] == f"{PAYMENTS}/{first.get_json()['id']}"
    assert "Idempotent-Replayed" not in first.headers
    assert "Payment-Status" not in first.headers


def test_the_answer_is_given_again_byte_for_byte_with_the_status_of_now(
    scripted_caller: HttpCaller, engine: Engine
) -> None:
    key = uuid4()
    first = scripted_caller.post(an_order(), key=key)
    engine.finish(first.get_json())

    again = scripted_caller.post(an_order(), key=key)

    assert again.status_code == 201
    assert again.get_data() == first.get_data()
    assert again.get_json()["status"] == "PENDING"
    assert again.headers["Payment-Status"] == "SUCCESSFUL"
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert again.content_type == first.content_type
    assert count_payments(scripted_caller) == 1


def test_a_replay_of_a_failed_payment_does_not_try_again(
    scripted_caller: HttpCaller, engine: Engine, provider: ScriptedProvider
) -> None:
    provider.checks = [ANSWERS["declined"]]
    key = uuid4()
    first = scripted_caller.post(an_order(), key=key)
    engine.finish(first.get_json())

    again = scripted_caller.post(an_order(), key=key)

    assert again.headers["Payment-Status"] == "FAILED"
    assert again.get_data() == first.get_data()
    assert len(provider.submissions) == 1


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"amount": 10}, {"amount": "10"}),
        ({"amount": 10}, {"amount": "10.00"}),
        ({"amount": "10.5"}, {"amount": "10.50"}),
        ({"payer": "256772123456"}, {"payer": "+256 772-123456"}),
        ({"payer": "256772123456"}, {"payer": "00256772123456"}),
        ({}, {"description": None}),
        ({"metadata": {"a": 1, "b": 2}}, {"metadata": {"b": 2, "a": 1}}),
    ],
)
def test_what_means_the_same_is_one_request(
    caller: HttpCaller, first: dict[str, object], again: dict[str, object]
) -> None:
    key = uuid4()
    accepted = caller.post(an_order(**first), key=key)

    replayed = caller.post(an_order(**again), key=key)

    assert replayed.status_code == 201, replayed.text
    assert replayed.get_data() == accepted.get_data()


def test_another_request_under_the_key_is_told_which_fields_differ_and_no_values(
    caller: HttpCaller,
) -> None:
    key = uuid4()
    caller.post(an_order(description="a red shirt"), key=key)

    # An id by chance could hold one of the numbers below.
    refused = caller.post(
        an_order(amount=4711, payer="256782000111", description="a blue one"),
        key=key,
        headers={"X-Request-Id": "again"},
    )

    assert refused.status_code == 422
    assert code_of(refused) == "idempotency_key_reused"
    assert refused.get_json()["fields"] == ["amount", "description", "payer"]
    for value in ("4711", "1000", "256782000111", "256772123456", "blue", "red"):
        assert value not in refused.text
    assert count_payments(caller) == 1


def test_a_field_more_or_less_is_another_request(caller: HttpCaller) -> None:
    key = uuid4()
    caller.post(an_order(external_id=f"order-{key}"), key=key)

    refused = caller.post(an_order(), key=key)

    assert refused.get_json()["fields"] == ["external_id"]


def test_another_tenants_key_is_unrelated(caller: HttpCaller, app: Flask) -> None:
    key = uuid4()
    caller.post(an_order(), key=key)
    other = new_caller(app)

    same = other.post(an_order(), key=key)
    different = new_caller(app).post(an_order(amount=7), key=key)

    assert same.status_code == different.status_code == 201
    assert "Idempotent-Replayed" not in same.headers
    assert count_payments(other) == 1


def test_the_other_modes_key_is_unrelated(scripted_caller: HttpCaller) -> None:
    key = uuid4()
    scripted_caller.post(an_order(), key=key)

    other = scripted_caller.another_key(Mode.LIVE).post(an_order(amount=7), key=key)

    assert other.status_code == 201
    assert "Idempotent-Replayed" not in other.headers
    assert other.get_json()["mode"] == "live"


def test_an_answer_stays_when_what_the_tenant_may_ask_for_has_changed(
    scripted_caller: HttpCaller, engine: Engine
) -> None:
    key = uuid4()
    first = scripted_caller.post(an_order(), key=key)
    scripted_caller.configure(default_provider="another_rail")

    again = scripted_caller.post(an_order(), key=key)
    new = scripted_caller.post(an_order(), key=uuid4())

    assert again.get_data() == first.get_data()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert code_of(new) == "provider_unknown"
    assert engine.app is scripted_caller.app


def test_an_expired_answer_is_not_given_and_nothing_is_charged(
    scripted_caller: HttpCaller, engine: Engine, provider: ScriptedProvider
) -> None:
    key = uuid4()
    payment = scripted_caller.post(an_order(), key=key).get_json()
    engine.finish(payment)
    _let_the_answer_expire(scripted_caller, key)

    for dropped in (False, True):
        if dropped:
            with engine.app.app_context():
                retention.purge_responses()
        refused = scripted_caller.post(an_order(), key=key)
        assert refused.status_code == 409
        assert code_of(refused) == "idempotency_key_expired"
        assert refused.get_json()["payment_id"] == payment["id"]
        assert refused.headers["Location"] == f"{PAYMENTS}/{payment['id']}"
    assert count_payments(scripted_caller) == len(provider.submissions) == 1


def test_an_answer_does_not_expire_while_money_is_in_flight(
    scripted_caller: HttpCaller, engine: Engine, provider: ScriptedProvider
) -> None:
    # On a slow machine the check may already be due in the same step: it must end nothing.
    provider.checks = [ANSWERS["pending"]]
    key = uuid4()
    first = scripted_caller.post(an_order(), key=key)
    engine.step(first.get_json())
    _let_the_answer_expire(scripted_caller, key)
    with engine.app.app_context():
        retention.purge_responses()

    again = scripted_caller.post(an_order(), key=key)

    assert again.status_code == 201
    assert again.get_data() == first.get_data()


def test_an_expired_key_does_not_take_another_request(
    scripted_caller: HttpCaller, engine: Engine
) -> None:
    key = uuid4()
    engine.finish(scripted_caller.post(an_order(), key=key).get_json())
    _let_the_answer_expire(scripted_caller, key)
    with engine.app.app_context():
        retention.purge_responses()

    refused = scripted_caller.post(an_order(amount=7), key=key)

    assert refused.status_code == 422
    assert code_of(refused) == "idempotency_key_reused"
    # Only the fingerprint is left: it shows that they differ, but not where.
    assert refused.get_json()["fields"] == []


def test_while_the_first_request_runs_the_second_waits_a_while_and_is_told_to_come_back(
    caller: HttpCaller, postgres_server: PostgresServer, database_name: str
) -> None:
    key = uuid4()
    owner_url = postgres_server.owner_url(database_name)
    with _first_request_still_open(owner_url, caller, key):
        started = time.monotonic()
        refused = caller.post(an_order(), key=key)
        waited_s = time.monotonic() - started

    assert refused.status_code == 409
    assert code_of(refused) == "idempotency_key_in_progress"
    assert int(refused.headers["Retry-After"]) >= 1
    assert 1 < waited_s < PATIENCE_S
    # The first request was rolled back, so the key is free.
    assert caller.post(an_order(), key=key).status_code == 201


def test_a_lock_that_nobody_gives_back_costs_a_bounded_wait(
    caller: HttpCaller, redis_url: str
) -> None:
    """As after a process that was killed while it held the lock."""
    key = uuid4()
    with Redis.from_url(redis_url) as redis:
        redis.set(_lock_name(caller, key), "another's", px=30_000)
        started = time.monotonic()
        accepted = caller.post(an_order(), key=key)
        waited_s = time.monotonic() - started

        assert accepted.status_code == 201
        assert 1 < waited_s < PATIENCE_S
        assert redis.get(_lock_name(caller, key)) == b"another's"


@pytest.mark.parametrize("held", [b"", b"\xff\xfe", ["a", "list"]])
def test_a_lock_that_cannot_be_read_is_nobodys(
    caller: HttpCaller, redis_url: str, held: bytes | list[str]
) -> None:
    key = uuid4()
    name = _lock_name(caller, key)
    with Redis.from_url(redis_url) as redis:
        redis.rpush(name, *held) if isinstance(held, list) else redis.set(name, held)
        first, again = caller.post(an_order(), key=key), caller.post(an_order(), key=key)
        redis.delete(name)

    assert (first.status_code, again.get_data()) == (201, first.get_data())


def test_another_request_under_a_locked_key_is_told_so_at_once(
    caller: HttpCaller, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not pause for the lock's holder. A wait in the database would end in another code."""
    key = uuid4()
    assert caller.post(an_order(), key=key).status_code == 201
    with Redis.from_url(redis_url) as redis:
        assert redis.get(_lock_name(caller, key)) is not None
    pauses: list[float] = []
    watched = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    monkeypatch.setattr(idempotent, "time", watched)

    refused = caller.post(an_order(amount=7), key=key)

    assert code_of(refused) == "idempotency_key_reused"
    assert pauses == []


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        ({}, {}, 422),
        (an_order(), {"Content-Type": "text/plain"}, 415),
        (an_order(), {"X-API-Key": "a reader's"}, 403),
        (an_order(), {"X-API-Key": "one too many"}, 429),
    ],
)
def test_a_request_that_is_refused_holds_no_lock(
    caller: HttpCaller, redis_url: str, body: object, headers: dict[str, str | None], status: int
) -> None:
    key = uuid4()
    with caller.app.app_context():
        reader = issue_key(
            caller.tenant,
            NewKey(mode=Mode.TEST, scopes=frozenset({Scope.PAYMENTS_READ})),
            actor="cli:test",
        )
    if headers.get("X-API-Key") == "a reader's":
        headers = {"X-API-Key": reader.key}
    if headers.get("X-API-Key") == "one too many":
        caller.configure(rate_limit="1 per hour")
        caller.get()
        headers = {}

    refused = caller.post(body, key=key, headers=headers)

    assert refused.status_code == status, refused.text
    with Redis.from_url(redis_url) as redis:
        assert redis.get(_lock_name(caller, key)) is None


def test_who_only_asks_for_the_methods_holds_no_lock(caller: HttpCaller, redis_url: str) -> None:
    key = uuid4()
    for method in ("OPTIONS", "HEAD", "GET"):
        caller.send(method, "/api/v1/payments", headers={"Idempotency-Key": str(key)})
    with Redis.from_url(redis_url) as redis:
        assert redis.get(_lock_name(caller, key)) is None


def test_the_lock_is_given_back_by_who_fails_and_holds_neither_number_nor_key(
    caller: HttpCaller, redis_url: str
) -> None:
    key = uuid4()
    caller.pay(external_id="order-1")
    with Redis.from_url(redis_url) as redis:
        assert caller.post(an_order(external_id="order-1"), key=key).status_code == 409
        assert redis.get(_lock_name(caller, key)) is None
        assert caller.post(an_order(), key=key).status_code == 201
        assert redis.get(_lock_name(caller, key)) is not None
        for name in redis.scan_iter(count=1000):
            held = name + (redis.get(name) or b"" if redis.type(name) == b"string" else b"")
            assert b"256772123456" not in held
            assert caller.key.key.encode() not in held


def _let_the_answer_expire(caller: HttpCaller, key: UUID) -> None:
    as_the_owner(
        caller.app,
        "UPDATE idempotency_keys SET expires_at = clock_timestamp() - interval '1 second'"
        " WHERE tenant_id = %(tenant)s AND key = %(key)s",
        tenant=caller.tenant.id,
        key=key,
    )


@contextmanager
def _first_request_still_open(url: str, caller: HttpCaller, key: UUID) -> Iterator[None]:
    """Another connection has claimed the key and not committed; at the end it rolls back."""
    with psycopg.connect(url, options="-c maramoja.tenant=*") as connection:
        connection.execute(
            "INSERT INTO idempotency_keys (tenant_id, mode, key, fingerprint,"
            " fingerprint_version, resource_id, status, expires_at)"
            " VALUES (%s, 'test', %s, sha256(''), 1, %s, 201, clock_timestamp())",
            [caller.tenant.id, key, uuid4()],
        )
        yield
        connection.rollback()


def _lock_name(caller: HttpCaller, key: UUID) -> str:
    return f"idempotency:{caller.tenant.id}:test:{key}"
