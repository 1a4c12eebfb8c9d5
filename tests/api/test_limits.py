"""Rate limits of a key: Redis counts, and while it is down each process counts by itself."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from uuid import UUID, uuid4

import pytest
from flask import Flask
from redis import Redis
from sqlalchemy import event

from devstack.redis_server import RedisServer
from devstack.servers import Servers
from devstack.supervisor import wait_until
from payments_app import REDIS_TIMEOUT_S
from payments_app.api.rate_limits import LET_THROUGH_EVERY_S
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.providers.contract import Mode
from payments_app.settings import RATE_LIMIT
from payments_app.tenants.key_format import new_key
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.model import Tenant
from tests.api.http_caller import (
    PAYMENTS,
    HttpCaller,
    MakeApp,
    an_order,
    code_of,
    new_caller,
)
from tests.builders import an_issued_key
from tests.metrics.conftest import PATIENCE_S


@pytest.fixture
def limited(make_app: MakeApp) -> HttpCaller:
    """A tenant of an installation with the default rate limit."""
    return new_caller(make_app(rate_limit_default=RATE_LIMIT))


def remaining(caller: HttpCaller, path: str = PAYMENTS) -> int:
    return int(caller.get(path).headers["RateLimit-Remaining"])


def test_a_hundred_a_minute_is_the_default(limited: HttpCaller) -> None:
    first = limited.get()

    assert first.headers["RateLimit-Limit"] == "100"
    assert first.headers["RateLimit-Remaining"] == "99"
    assert first.headers["RateLimit-Policy"] == '"key";q=100;w=60, "tenant";q=1000;w=60'
    assert 1 <= int(first.headers["RateLimit-Reset"]) <= 60
    assert "Retry-After" not in first.headers


def test_the_hundred_and_first_is_told_when_to_come_back(limited: HttpCaller) -> None:
    assert {limited.get().status_code for _ in range(100)} == {200}

    refused = limited.post(an_order())

    assert refused.status_code == 429
    assert code_of(refused) == "rate_limited"
    assert refused.headers["RateLimit-Remaining"] == "0"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["Retry-After"] == refused.headers["RateLimit-Reset"]


def test_all_routes_and_answers_count_alike(limited: HttpCaller) -> None:
    counts = [
        remaining(limited),
        remaining(limited, f"{PAYMENTS}?limit=0"),
        remaining(limited, f"{PAYMENTS}/{UUID(int=0)}"),
        int(limited.post(b"{").headers["RateLimit-Remaining"]),
        int(limited.post(an_order()).headers["RateLimit-Remaining"]),
    ]

    assert counts == [99, 98, 97, 96, 95]


def test_what_needs_no_key_is_not_counted(limited: HttpCaller) -> None:
    for path in ("/health", "/docs", "/openapi.json", "/nothing", "/problems/not_found"):
        assert "RateLimit-Limit" not in limited.get(path).headers
    assert "RateLimit-Limit" not in limited.send("PATCH", PAYMENTS).headers

    assert remaining(limited) == 99


def test_each_key_has_its_own_count(limited: HttpCaller) -> None:
    remaining(limited)

    assert remaining(limited.another_key(Mode.TEST)) == 99
    assert remaining(new_caller(limited.app)) == 99


def test_a_tenants_own_limit_stands_in_for_the_default(limited: HttpCaller) -> None:
    limited.configure(rate_limit="2 per hour")

    statuses = [limited.get().status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
    assert limited.get().headers["RateLimit-Policy"] == '"key";q=2;w=3600'
    limited.configure(rate_limit=None)
    assert limited.get().status_code == 200


def test_of_several_limits_each_holds(limited: HttpCaller) -> None:
    limited.configure(rate_limit="3 per hour; 2 per minute")

    answers = [limited.get() for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].headers["RateLimit-Policy"] == '"key";q=2;w=60'


def test_a_limit_that_nobody_can_read_gives_way_to_the_default(
    limited: HttpCaller, redis_url: str
) -> None:
    """As when it was written without the command that checks it. Others are counted as before."""
    other = new_caller(limited.app)
    with limited.app.app_context(), transaction(EVERY_TENANT) as session:
        session.get_one(Tenant, limited.tenant.id).rate_limit = "many"

    assert remaining(limited) == 99
    assert remaining(other) == 99
    with Redis.from_url(redis_url) as redis:
        assert list(redis.scan_iter(f"*{other.key.id}*", count=10_000))


def test_the_window_ends(limited: HttpCaller) -> None:
    limited.configure(rate_limit="1 per second")
    started = 0.0

    def is_open() -> bool:
        nonlocal started
        started = time.monotonic()
        return limited.get().status_code == 200

    for _ in range(20):
        # The request that is accepted begins the window, so the time runs from before it.
        wait_until(is_open, what="it stays shut", limit_s=30)
        second = limited.get().status_code
        # Else the machine stood still, and the window had ended.
        if time.monotonic() - started < 0.5:
            assert second == 429
            break
    else:
        pytest.fail("the machine stands still all the time")

    time.sleep(1.1)

    assert limited.get().status_code == 200


def test_counting_and_telling_is_one_round_trip_for_all_limits(
    limited: HttpCaller, redis_url: str
) -> None:
    limited.get()
    with Redis.from_url(redis_url) as redis:
        asked = _asked(redis, lambda: remaining(limited))

    assert asked == {"evalsha": 1, "incr": 2, "pttl": 2}


def test_the_keys_lock_is_taken_in_the_same_round_trip(limited: HttpCaller, redis_url: str) -> None:
    limited.get()
    key = uuid4()
    with Redis.from_url(redis_url) as redis:
        asked = [_asked(redis, lambda: limited.post(an_order(), key=key)) for _ in range(2)]

    again = {"evalsha": 1, "incr": 2, "pttl": 2, "get": 1}
    assert asked == [{**again, "set": 1}, again]


def test_a_count_without_an_end_gets_one(limited: HttpCaller, redis_url: str) -> None:
    limited.configure(rate_limit="2 per minute")
    limited.get()
    with Redis.from_url(redis_url) as redis:
        (name,) = redis.scan_iter(f"*{limited.key.id}*", count=10_000)
        redis.persist(name)

        limited.get()

        assert 0 < redis.ttl(name) <= 60


@pytest.mark.parametrize("junk", [b"\x00nonsense", b"", b"9" * 40, ["a", "list"]])
def test_a_count_that_is_none_begins_anew_and_fails_no_request(
    limited: HttpCaller, redis_url: str, junk: bytes | list[str]
) -> None:
    limited.get()
    with Redis.from_url(redis_url) as redis:
        (name,) = redis.scan_iter(f"*{limited.key.id}*", count=10_000)
        redis.delete(name)
        redis.rpush(name, *junk) if isinstance(junk, list) else redis.set(name, junk)

        assert limited.post(an_order()).status_code == 201
        assert remaining(limited) == 98
        assert 0 < redis.ttl(name) <= 60


def test_the_count_names_no_key_and_no_tenant_in_clear(limited: HttpCaller, redis_url: str) -> None:
    limited.get()
    with Redis.from_url(redis_url) as redis:
        names = list(redis.scan_iter("limit:*", count=10_000))

    assert names
    assert not [name for name in names if limited.key.key.encode() in name]


class TestWithoutRedis:
    """While Redis is away each process counts by itself."""

    @pytest.fixture
    def redis(self, servers: Servers) -> RedisServer:
        return servers.new_redis()

    @pytest.fixture
    def lonely(
        self, make_app: MakeApp, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> HttpCaller:
        # As short as in production: these tests are about a Redis that is away or hangs.
        monkeypatch.setattr("payments_app.REDIS_TIMEOUT_S", REDIS_TIMEOUT_S)
        app: Flask = make_app(redis_url=redis.url, rate_limit_default="3 per minute")
        return new_caller(app)

    def test_the_limit_holds_and_payments_are_taken(
        self, lonely: HttpCaller, redis: RedisServer
    ) -> None:
        redis.stop()

        answers = [lonely.post(an_order()) for _ in range(4)]

        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        assert [answer.headers["RateLimit-Remaining"] for answer in answers] == list("2100")
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60

    def test_redis_counts_again_when_it_is_back(
        self, lonely: HttpCaller, redis: RedisServer
    ) -> None:
        redis.stop()
        assert remaining(lonely) == 2
        redis.start()

        def is_counted_there() -> bool:
            lonely.get()
            return _has_counted(redis)

        wait_until(is_counted_there, what="the process still counts by itself", limit_s=PATIENCE_S)

    def test_a_redis_that_hangs_costs_a_bounded_wait(
        self, lonely: HttpCaller, redis: RedisServer
    ) -> None:
        lonely.get()
        redis.process.stop()
        try:
            started = time.monotonic()
            first = lonely.post(an_order())
            first_s = time.monotonic() - started
            started = time.monotonic()
            second = lonely.post(an_order())
            second_s = time.monotonic() - started
        finally:
            redis.process.cont()

        assert (first.status_code, second.status_code) == (201, 201)
        assert first_s < 6
        assert second_s < 4


def _asked(redis: Redis, ask: Callable[[], object]) -> dict[str, int]:
    """How often each command was run; a script's own commands count too but are no round trips."""
    before = _commands(redis)
    ask()
    after = _commands(redis)
    # Other commands belong to notifications, which no request waits for.
    ours = ("evalsha", "incr", "pttl", "get", "set", "del")
    asked = {name: after.get(name, 0) - before.get(name, 0) for name in ours}
    return {name: number for name, number in asked.items() if number}


def _commands(redis: Redis) -> dict[str, int]:
    stats = redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): found["calls"] for name, found in stats.items()}


def _has_counted(redis: RedisServer) -> bool:
    with redis.client() as client:
        return bool(list(client.scan_iter("limit:*")))


def test_both_limits_are_told(limited: HttpCaller) -> None:
    answer = limited.get()

    state = re.fullmatch(
        r'"key";r=99;t=([0-9]+), "tenant";r=999;t=([0-9]+)', answer.headers["RateLimit"]
    )
    assert state is not None
    assert all(1 <= int(seconds) <= 60 for seconds in state.groups())


def test_all_keys_of_a_tenant_share_its_limit(limited: HttpCaller) -> None:
    limited.configure(tenant_rate_limit="3 per minute")
    with limited.app.app_context():
        second = an_issued_key(tenant=limited.tenant, mode=Mode.TEST).key
    other = new_caller(limited.app)

    assert [limited.get().status_code for _ in range(2)] == [200, 200]
    assert limited.get(headers={"X-API-Key": second}).status_code == 200
    refused = limited.get(headers={"X-API-Key": second})

    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit-Remaining"] == "0"
    assert other.get().status_code == 200


def test_who_has_no_valid_key_is_limited_by_address_and_others_there_are_not(
    make_app: MakeApp,
) -> None:
    caller = new_caller(make_app(rate_limit_unauthenticated="3 per minute"))
    wrong = {"X-API-Key": "mara_live_nothing"}
    elsewhere = {"environ_base": {"REMOTE_ADDR": f"2001:db8::{uuid4().hex[:4]}"}}
    there = {"environ_base": {"REMOTE_ADDR": f"2001:db8:1::{uuid4().hex[:4]}"}}

    statuses = [caller.get(headers=wrong, **there).status_code for _ in range(5)]
    refused = caller.get(headers=wrong, **there)

    assert statuses == [401, 401, 401, 429, 429]
    assert code_of(refused) == "rate_limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert caller.get(**there).status_code == 200
    assert caller.get(headers=wrong, **elsewhere).status_code == 401


def test_every_refusal_of_a_key_counts_and_no_right_one_is_refused_for_it(
    make_app: MakeApp,
) -> None:
    """Another tenant's name, an expired key, a key from a wrong network, two keys at once."""
    app = make_app(rate_limit_unauthenticated="2 per minute")
    caller = new_caller(app)
    with app.app_context():
        wanted = NewKey(mode=Mode.TEST)
        ended, elsewhere = (
            issue_key(caller.tenant, replace(wanted, **bound), actor="cli:test")
            for bound in (
                {"lifetime": timedelta(microseconds=1)},
                {"networks": [ip_network("192.0.2.0/24")]},
            )
        )
    refused: list[tuple[dict[str, str | None], int]] = [
        ({"X-Tenant-Id": "somebody"}, 403),
        ({"X-API-Key": ended.key}, 401),
        ({"X-API-Key": elsewhere.key}, 403),
        ({"Authorization": "Bearer another"}, 401),
    ]
    for number, (headers, status) in enumerate(refused, 1):
        # Each has an address that no other shares: a count by address would be shared too.
        there = {"environ_base": {"REMOTE_ADDR": f"2001:db8:2::{number}"}}
        statuses = [caller.get(headers=headers, **there).status_code for _ in range(4)]
        assert statuses == [status, status, 429, 429], headers
        assert caller.get(**there).status_code == 200


def test_guesses_beyond_the_limit_cost_the_database_nothing(make_app: MakeApp) -> None:
    app = make_app(rate_limit_unauthenticated="3 per minute")
    caller = new_caller(app)
    assert caller.get().status_code == 200
    statements: list[str] = []
    with app.app_context():
        event.listen(db.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    guesses = [new_key(Mode.TEST)[1] for _ in range(60)]
    started = time.monotonic()
    statuses = Counter(caller.get(headers={"X-API-Key": key}).status_code for key in guesses)
    assert statuses == {401: 3, 429: 57}
    # The attempt that finds the limit full, and one a second after that: it may be a valid key.
    let_through = 1 + (time.monotonic() - started) / LET_THROUGH_EVERY_S
    looks = sum("key_and_tenant" in statement for statement in statements)
    assert 3 <= looks <= 3 + 1 + let_through
    assert caller.get().status_code == 200


def test_a_right_key_that_is_new_behind_a_busy_address_gets_in_soon(make_app: MakeApp) -> None:
    app = make_app(rate_limit_unauthenticated="2 per minute")
    caller, newcomer = new_caller(app), new_caller(app)
    for _ in range(4):
        caller.get(headers={"X-API-Key": "mara_live_nothing"})
    wait_until(
        lambda: newcomer.get().status_code == 200, what="a right key stays outside", limit_s=10
    )


def test_strangers_are_counted_without_redis_too(make_app: MakeApp) -> None:
    app = make_app(redis_url="redis://127.0.0.1:1/0", rate_limit_unauthenticated="2 per minute")
    caller = new_caller(app)
    wrong = {"X-API-Key": "mara_live_nothing"}

    assert [caller.get(headers=wrong).status_code for _ in range(3)] == [401, 401, 429]
