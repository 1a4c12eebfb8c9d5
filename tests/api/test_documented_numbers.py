"""The numbers in the pages and in openapi.json, checked by what the API does, not by its constants.

Numbers of bodies, fields, pages and headers are tested elsewhere: test_bodies.py, test_fields.py,
test_lists.py, test_limits.py, test_headers.py, test_webhooks.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from redis import Redis
from sqlalchemy import text

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.settings import Settings
from payments_app.tenants.caller import Keys
from payments_app.tenants.keys import revoke_key
from tests.api.http_caller import PAYMENTS, HttpCaller, MakeApp, an_order, code_of, new_caller
from tests.docs.pages import the_page_says
from tests.nobodys_addresses import NOBODYS_URL
from tests.pure.test_settings import GOOD

ENDPOINTS = "/api/v1/webhook-endpoints"


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def as_delivered(make_app: MakeApp) -> Flask:
    """All limits have their default values."""
    plain = Settings.from_env(GOOD)
    names = ("rate_limit_default", "rate_limit_unauthenticated", "rate_limit_callbacks")
    return make_app(**{name: getattr(plain, name) for name in names})


# --- keys and answers -----------------------------------------------------------------------------


def test_an_answer_is_kept_for_24_hours(make_app: MakeApp) -> None:
    the_page_says("docs/idempotency.md", "The stored answer is kept for 24 hours")
    hours = Settings.from_env(GOOD).idempotency_ttl_hours
    caller, key = new_caller(make_app(idempotency_ttl_hours=hours)), uuid4()
    assert caller.post(an_order(), key=key).status_code == 201
    assert seconds_left(caller.app, "idempotency_keys", "expires_at", f"key = '{key}'") == about(
        24 * 3600
    )


def about(seconds: float) -> Any:
    """At most `seconds`, and at most 10 s less, for the time that the machine takes besides."""
    return pytest.approx(seconds - 5, abs=5)


def seconds_left(app: Flask, table: str, column: str, where: str) -> float:
    """Seconds until the time in this column, by the database's clock."""
    query = f"SELECT extract(epoch FROM {column} - clock_timestamp()) FROM {table} WHERE {where}"  # noqa: S608  the test's own
    with app.app_context(), transaction(EVERY_TENANT) as session:
        return float(session.scalar(text(query)))


def test_a_keys_lock_is_for_a_minute(caller: HttpCaller, redis: Redis) -> None:
    the_page_says("docs/idempotency.md", "a lock for each key, for a minute")
    key = uuid4()
    assert caller.post(an_order(), key=key).status_code == 201
    (name,) = redis.scan_iter(f"*{key}*", count=10_000)
    assert redis.pttl(name) / 1000 == about(60)


def test_a_second_request_asks_for_up_to_2_seconds(caller: HttpCaller, redis: Redis) -> None:
    the_page_says("docs/idempotency.md", "for up to 2 seconds, then tries for itself")
    key = uuid4()
    assert caller.post(b"{", key=key).status_code == 400
    caller.post(an_order(), key=key)
    (name,) = redis.scan_iter(f"*{key}*", count=10_000)
    other = uuid4()
    # Another request holds this key's lock and never answers.
    redis.set(name.replace(str(key).encode(), str(other).encode()), "another's", px=60_000)
    before = time.monotonic()
    assert caller.post(an_order(), key=other).status_code == 201
    waited_s = time.monotonic() - before
    assert waited_s >= 1.95
    # The rest of the request takes some hundredths of a second, and more on a busy machine.
    assert waited_s < 8


@pytest.mark.parametrize(("age_s", "questions"), [(0.099, 1), (0.1, 2)])
def test_a_key_is_remembered_for_a_tenth_of_a_second(
    caller: HttpCaller, age_s: float, questions: int
) -> None:
    the_page_says("ARCHITECTURE.md", "remembered for 0.1 s")
    now = [1000.0]
    keys = Keys(lambda: now[0])
    prefix = caller.key.prefix
    with caller.app.app_context():
        first = keys.look_up(prefix)
        revoke_key(prefix, actor="cli:test")
        now[0] += age_s
        assert len({first, keys.look_up(prefix)}) == questions


# --- limits ---------------------------------------------------------------------------------------


def test_without_a_valid_key_one_address_may_send_300_a_minute(
    as_delivered: Flask, redis: Redis
) -> None:
    the_page_says("docs/settings.md", "| `300 per minute` | How many requests without a valid key")
    caller = new_caller(as_delivered)
    address = f"2001:db8:3::{uuid4().hex[:4]}"
    there = {"environ_base": {"REMOTE_ADDR": address}, "headers": {"X-API-Key": "mara_live_x"}}
    assert_holds(redis, address, 300, 60, lambda: caller.get(**there).status_code, (401, 429))


def test_one_address_may_send_6000_callbacks_a_minute(as_delivered: Flask, redis: Redis) -> None:
    the_page_says("docs/settings.md", "| `6000 per minute` | How many callbacks one address")
    caller = new_caller(as_delivered)
    address = f"2001:db8:4::{uuid4().hex[:4]}"
    path = f"/callbacks/mtn_momo/{uuid4()}"

    def send() -> int:
        there = {"REMOTE_ADDR": address}
        return caller.send("POST", path, environ_base=there, data=b"{}").status_code

    assert_holds(redis, address, 6000, 60, send, (send(), 429))


def test_a_key_may_send_100_a_minute_and_a_tenant_1000(as_delivered: Flask, redis: Redis) -> None:
    the_page_says("docs/settings.md", "| `100 per minute` | How many requests an API key may send")
    caller = new_caller(as_delivered)
    assert_holds(redis, str(caller.key.id), 100, 60, lambda: caller.get().status_code, (200, 429))
    other = new_caller(as_delivered)
    whose = str(other.tenant.id)
    assert_holds(redis, whose, 1000, 60, lambda: other.get().status_code, (200, 429))


def assert_holds(
    redis: Redis, whose: str, most: int, seconds: int, ask: Callable[[], int], says: tuple[int, int]
) -> None:
    """The last request that fits is accepted, the next is refused; the window is `seconds` long."""
    assert ask() == says[0]
    (window,) = redis.scan_iter(f"*{whose}*", count=10_000)
    assert redis.pttl(window) / 1000 == about(seconds)
    redis.set(window, most - 1, keepttl=True)
    assert [ask(), ask()] == list(says)


def test_the_last_request_that_fits_counts_for_the_tenant_and_takes_its_lock(
    as_delivered: Flask, redis: Redis
) -> None:
    caller, key = new_caller(as_delivered), uuid4()
    # The tenant has no limit of its own, so this makes it 20 for the tenant.
    caller.configure(rate_limit="2 per minute")
    first, last = caller.get(), caller.post(an_order(), key=key)
    assert [remaining(first), remaining(last)] == [("1", "19"), ("0", "18")]
    assert len(list(redis.scan_iter(f"*{key}*", count=10_000))) == 1
    # A request over the limit neither counts for the tenant nor takes the lock.
    unused = uuid4()
    refused = caller.post(an_order(), key=unused)
    assert refused.status_code == 429
    assert list(redis.scan_iter(f"*{unused}*", count=10_000)) == []
    (window,) = redis.scan_iter(f"limit:*{caller.tenant.id}*", count=10_000)
    assert int(redis.get(window) or 0) == 2


def remaining(answer: Any) -> tuple[str, ...]:
    """What is left by the `RateLimit` header: of the key, and of the tenant."""
    parts = answer.headers["RateLimit"].split(", ")
    return tuple(part.split(";")[1].removeprefix("r=") for part in parts)


# --- webhooks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "hours"), [({}, 24), ({"overlap_hours": 72}, 72)])
def test_two_secrets_sign_for_24_hours_and_72_at_most(
    caller: HttpCaller, asked: dict[str, int], hours: int
) -> None:
    endpoint = caller.send("POST", ENDPOINTS, json={"url": NOBODYS_URL})
    path = f"{ENDPOINTS}/{endpoint.get_json()['id']}"
    assert caller.send("POST", f"{path}/rotate-secret", json=asked).status_code == 200
    where = f"id = '{UUID(endpoint.get_json()['id'])}'"
    left_s = seconds_left(caller.app, "webhook_endpoints", "previous_secret_until", where)
    assert left_s == about(hours * 3600)


def test_more_than_72_hours_and_less_than_none_are_refused(caller: HttpCaller) -> None:
    path = f"{ENDPOINTS}/{uuid4()}/rotate-secret"
    for hours in (-1, 73):
        answer = caller.send("POST", path, json={"overlap_hours": hours})
        assert (answer.status_code, code_of(answer)) == (422, "validation_failed")


# --- browsers -------------------------------------------------------------------------------------


def test_a_browser_keeps_what_it_was_allowed_for_ten_minutes(make_app: MakeApp) -> None:
    app = make_app(cors_allowed_origins=("https://shop.example",))
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    answer = app.test_client().options(PAYMENTS, headers=asks)
    assert answer.headers["Access-Control-Max-Age"] == "600"
