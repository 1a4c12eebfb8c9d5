"""Tokens on a real Redis: minted once by everyone together, and never by a stampede."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from devstack.redis_server import RedisServer
from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import (
    Failure,
    FailureCode,
    Mode,
    Observation,
    ProviderAccount,
    Verdict,
)
from payments_app.providers.tokens import Minted, TokenCache

SECRET_KEY = Fernet.generate_key().decode()
REFUSED = Observation(
    Verdict.NOT_SENT,
    "token_refused",
    failure=Failure(FailureCode.PROVIDER_MISCONFIGURED, "login_failed"),
)
ACCOUNT = ProviderAccount(
    id=UUID("0199c0de-0000-7000-8000-00000000000a"),
    provider="mtn_momo",
    mode=Mode.TEST,
    base_url="https://mtn.test",
    target_environment="sandbox",
    credentials={"collection_api_user": "the-user", "collection_api_key": "the-key"},
    version="1",
)


class CountingMint:
    """Mints `name-1`, `name-2` … or what it was told to answer, after `takes_s`."""

    def __init__(
        self,
        name: str = "token",
        *,
        lives_s: float = 3600,
        answer: Observation | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.name = name
        self.lives_s = lives_s
        self.answer = answer
        self.takes_s = takes_s
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self) -> Minted | Observation:
        with self._lock:
            self.calls += 1
            number = self.calls
        time.sleep(self.takes_s)
        return self.answer or Minted(f"{self.name}-{number}", self.lives_s)


def a_client(url: str) -> Redis:
    return Redis.from_url(
        url, socket_timeout=0.5, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0)
    )


def keys(redis: Redis, pattern: str) -> list[bytes]:
    return cast("list[bytes]", redis.keys(pattern))


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    redis_server.flush()
    with a_client(redis_server.url) as client:
        yield client


@pytest.fixture
def process(redis: Redis) -> Callable[[], TokenCache]:
    """Each call gives a cache as another process would have it."""
    return lambda: TokenCache(redis, Cipher([SECRET_KEY]))


def away() -> TokenCache:
    return TokenCache(a_client("redis://127.0.0.1:1/0"), Cipher([SECRET_KEY]))


Process = Callable[[], TokenCache]


def test_a_token_is_minted_once_and_used_again(process: Process) -> None:
    cache, mint = process(), CountingMint()
    assert [cache.token(ACCOUNT, "collection", mint) for _ in range(3)] == ["token-1"] * 3
    assert mint.calls == 1


def test_another_process_uses_it_too(process: Process) -> None:
    mint = CountingMint()
    process().token(ACCOUNT, "collection", mint)
    assert process().token(ACCOUNT, "collection", mint) == "token-1"
    assert mint.calls == 1


# Waits until all processes are ready, then asks with 8 threads at once.
ASK_AT_ONCE = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from redis import Redis
from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import Mode, ProviderAccount
from payments_app.providers.tokens import Minted, TokenCache

redis = Redis.from_url(sys.argv[1])
cache = TokenCache(redis, Cipher([sys.argv[2]]))
account = ProviderAccount(None, "mtn_momo", Mode.TEST, "https://mtn.test", "sandbox", {"a": "b"})

def mint():
    number = redis.incr("test:mints")
    time.sleep(0.4)
    return Minted(f"token-{number}", 3600)

redis.incr("test:ready")
while int(redis.get("test:ready")) < 3:
    time.sleep(0.01)
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: cache.token(account, "collection", mint), range(8)))
print(json.dumps(found))
"""


def test_three_processes_of_eight_threads_mint_once(redis: Redis, redis_url: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", ASK_AT_ONCE, redis_url, SECRET_KEY],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    found = [token for child in children for token in json.loads(child.communicate(timeout=60)[0])]
    assert found == ["token-1"] * 24
    assert redis.get("test:mints") == b"1"


# --- renewal -----------------------------------------------------------------------------------


def test_one_renews_ahead_of_time_while_the_others_go_on(process: Process) -> None:
    cache = process()
    # Lives 2.4 s, so it is renewed after 2.0 s.
    cache.token(ACCOUNT, "collection", CountingMint("old", lives_s=2.4))
    time.sleep(2.05)
    minting, finish = threading.Event(), threading.Event()

    def slow_mint() -> Minted:
        minting.set()
        assert finish.wait(5)
        return Minted("new", 3600)

    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(cache.token, ACCOUNT, "collection", slow_mint)
        assert minting.wait(1)
        started = time.monotonic()
        # The same process, and another one.
        assert cache.token(ACCOUNT, "collection", CountingMint()) == "old-1"
        assert process().token(ACCOUNT, "collection", CountingMint()) == "old-1"
        assert time.monotonic() - started < 0.2
        finish.set()
        assert renewing.result() == "new"
    assert cache.token(ACCOUNT, "collection", CountingMint()) == "new"


def test_a_renewal_that_fails_leaves_the_old_token_in_use_to_its_end(process: Process) -> None:
    cache, failing = process(), CountingMint(answer=REFUSED)
    cache.token(ACCOUNT, "collection", CountingMint("old", lives_s=1.2))
    time.sleep(1.02)
    assert cache.token(ACCOUNT, "collection", failing) == "old-1"
    assert cache.token(ACCOUNT, "collection", failing) == "old-1"
    assert failing.calls == 1
    time.sleep(0.2)
    answer = cache.token(ACCOUNT, "collection", failing)
    assert isinstance(answer, Observation)
    assert failing.calls == 1


def test_a_token_that_has_ended_is_not_used(process: Process) -> None:
    cache, mint = process(), CountingMint(lives_s=0.2)
    assert cache.token(ACCOUNT, "collection", mint) == "token-1"
    time.sleep(0.25)
    assert cache.token(ACCOUNT, "collection", mint) == "token-2"
    assert process().token(ACCOUNT, "collection", mint) == "token-2"


# --- failure -----------------------------------------------------------------------------------


def test_a_failing_endpoint_is_asked_once_and_then_left_alone(process: Process) -> None:
    caches, failing = [process(), process()], CountingMint(answer=REFUSED, takes_s=0.1)

    def ask(number: int) -> str | Observation:
        return caches[number % 2].token(ACCOUNT, "collection", failing)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(200)))
    assert failing.calls == 1
    for answer in answers:
        assert isinstance(answer, Observation)
        assert answer.verdict is Verdict.NOT_SENT
        assert 0 < (answer.retry_after_s or 0) <= 1


def test_what_was_refused_is_remembered_with_its_reason(process: Process) -> None:
    cache, failing = process(), CountingMint(answer=REFUSED)
    cache.token(ACCOUNT, "collection", failing)
    again = cache.token(ACCOUNT, "collection", failing)
    assert isinstance(again, Observation)
    assert (again.reason, again.failure) == (REFUSED.reason, REFUSED.failure)


def test_the_pause_grows_with_each_failure_and_ends_with_a_success(process: Process) -> None:
    cache, failing = process(), CountingMint(answer=REFUSED)
    first = cache.token(ACCOUNT, "collection", failing)
    time.sleep(1.05)
    second = cache.token(ACCOUNT, "collection", failing)
    assert isinstance(first, Observation)
    assert isinstance(second, Observation)
    assert (first.retry_after_s, second.retry_after_s) == (1.0, 2.0)
    # A process that hears of it counts on from there.
    other = process()
    other.token(ACCOUNT, "collection", failing)
    time.sleep(2.05)
    third = other.token(ACCOUNT, "collection", failing)
    assert isinstance(third, Observation)
    assert third.retry_after_s == 4.0
    assert failing.calls == 3


def test_after_a_success_the_pause_starts_small_again(process: Process) -> None:
    cache, failing = process(), CountingMint(answer=REFUSED)
    cache.token(ACCOUNT, "collection", failing)
    time.sleep(1.05)
    assert cache.token(ACCOUNT, "collection", CountingMint(lives_s=0.1)) == "token-1"
    time.sleep(0.15)
    answer = cache.token(ACCOUNT, "collection", failing)
    assert isinstance(answer, Observation)
    assert answer.retry_after_s == 1.0


def test_the_providers_own_wait_is_kept_up_to_a_bound(process: Process) -> None:
    for asked_s, kept_s in ((20.0, 20.0), (3600.0, 30.0), (0.1, 1.0)):
        failing = CountingMint(answer=replace(REFUSED, retry_after_s=asked_s))
        answer = process().token(replace(ACCOUNT, version=str(asked_s)), "collection", failing)
        assert isinstance(answer, Observation)
        assert answer.retry_after_s == kept_s


def test_what_minting_raises_passes_through_and_blocks_nobody(process: Process) -> None:
    def raising() -> Minted:
        raise TimeoutError("the lease is over")

    cache = process()
    with pytest.raises(TimeoutError):
        cache.token(ACCOUNT, "collection", raising)
    assert process().token(ACCOUNT, "collection", CountingMint()) == "token-1"


def the_turn(redis: Redis) -> bytes:
    """The key that says whose turn it is to mint, as one failure leaves it behind."""
    cache = TokenCache(redis, Cipher([SECRET_KEY]))
    cache.token(ACCOUNT, "collection", CountingMint(answer=REFUSED))
    (name,) = keys(redis, "*:turn")
    return name


def test_a_minter_that_was_killed_holds_the_others_up_for_a_bounded_time(
    redis: Redis, process: Process
) -> None:
    redis.set(the_turn(redis), "of a dead process", px=400)
    started = time.monotonic()
    assert process().token(ACCOUNT, "collection", CountingMint()) == "token-1"
    assert 0.3 < time.monotonic() - started < 1


def test_who_waits_too_long_for_anothers_token_hands_the_work_back(
    redis: Redis, process: Process
) -> None:
    redis.set(the_turn(redis), "of a slow process", px=9_000)
    started = time.monotonic()
    answer = process().token(ACCOUNT, "collection", CountingMint())
    assert isinstance(answer, Observation)
    assert (answer.verdict, answer.reason) == (Verdict.NOT_SENT, "token_pending")
    assert 2.5 < time.monotonic() - started < 4


# --- Redis away, empty, wrong ---------------------------------------------------------------------


def test_without_redis_each_process_mints_for_itself() -> None:
    mint = CountingMint(takes_s=0.1)
    cache = away()
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.token(ACCOUNT, "collection", mint), range(50)))
    assert found == ["token-1"] * 50
    assert time.monotonic() - started < 1
    assert away().token(ACCOUNT, "collection", mint) == "token-2"


def test_without_redis_a_failing_endpoint_is_left_alone_too() -> None:
    cache, failing = away(), CountingMint(answer=REFUSED)
    for _ in range(20):
        assert isinstance(cache.token(ACCOUNT, "collection", failing), Observation)
    assert failing.calls == 1


def test_a_redis_that_goes_away_takes_no_token_with_it(
    redis_server: RedisServer, process: Process
) -> None:
    cache, mint = process(), CountingMint(lives_s=0.5)
    cache.token(ACCOUNT, "collection", mint)
    redis_server.kill()
    try:
        assert cache.token(ACCOUNT, "collection", mint) == "token-1"
        cache.discard(ACCOUNT, "collection", "token-1")
        assert cache.token(ACCOUNT, "collection", mint) == "token-2"
    finally:
        redis_server.start()


def test_a_refused_token_that_redis_could_not_be_told_of_is_not_taken_back(
    redis_server: RedisServer, process: Process
) -> None:
    cache, mint = process(), CountingMint()
    cache.token(ACCOUNT, "collection", mint)
    redis_server.process.stop()
    try:
        cache.discard(ACCOUNT, "collection", "token-1")
    finally:
        redis_server.process.cont()
    assert process().token(ACCOUNT, "collection", mint) == "token-1"
    assert cache.token(ACCOUNT, "collection", mint) == "token-2"


def test_a_flushed_redis_costs_at_most_one_more_token(
    redis_server: RedisServer, process: Process
) -> None:
    cache, mint = process(), CountingMint()
    cache.token(ACCOUNT, "collection", mint)
    redis_server.flush()
    assert cache.token(ACCOUNT, "collection", mint) == "token-1"
    assert process().token(ACCOUNT, "collection", mint) == "token-2"


def test_a_turn_that_never_ends_stops_nobody(redis: Redis, process: Process) -> None:
    redis.set(the_turn(redis), "for ever")
    assert process().token(ACCOUNT, "collection", CountingMint()) == "token-1"


@pytest.mark.parametrize("value", ["", "nonsense", "failed:", "{}"])
def test_a_value_that_is_none_of_ours_is_not_a_token(
    redis: Redis, process: Process, value: str
) -> None:
    process().token(ACCOUNT, "collection", CountingMint("first"))
    (name,) = keys(redis, "token:*")
    redis.set(name, value, px=60_000)
    assert process().token(ACCOUNT, "collection", CountingMint("second")) == "second-1"


def test_a_value_moved_from_another_account_is_not_used(redis: Redis, process: Process) -> None:
    other = replace(ACCOUNT, base_url="https://other.test")
    process().token(ACCOUNT, "collection", CountingMint("mine"))
    (mine,) = keys(redis, "token:*")
    process().token(other, "collection", CountingMint("theirs"))
    (theirs,) = set(keys(redis, "token:*")) - {mine}
    redis.copy(theirs.decode(), mine.decode(), replace=True)
    assert process().token(ACCOUNT, "collection", CountingMint("new")) == "new-1"


def test_a_token_under_a_lost_encryption_key_is_minted_anew(redis: Redis) -> None:
    TokenCache(redis, Cipher([SECRET_KEY])).token(ACCOUNT, "collection", CountingMint("first"))
    other = TokenCache(redis, Cipher([Fernet.generate_key().decode()]))
    assert other.token(ACCOUNT, "collection", CountingMint("second")) == "second-1"


def test_redis_never_sees_a_secret(redis: Redis, process: Process) -> None:
    process().token(ACCOUNT, "collection", CountingMint("s3cret-token"))
    names = keys(redis, "*")
    stored = b" ".join(names) + b" ".join(cast("bytes", redis.get(name)) for name in names)
    for secret in (b"s3cret-token", b"the-user", b"the-key"):
        assert secret not in stored
    assert all(cast("int", redis.pttl(name)) > 0 for name in names)


# --- whose token ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "2"},
        {"base_url": "https://new-platform.test"},
        {"target_environment": "mtnuganda"},
        {"id": None},
        {"credentials": {"collection_api_user": "the-user", "collection_api_key": "new-key"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_account_or_other_credentials_never_get_this_token(
    process: Process, changed: dict[str, object]
) -> None:
    cache = process()
    cache.token(ACCOUNT, "collection", CountingMint("old"))
    account = replace(ACCOUNT, **changed)  # type: ignore[arg-type]
    assert cache.token(account, "collection", CountingMint("new")) == "new-1"
    assert process().token(account, "collection", CountingMint("newer")) == "new-1"


def test_each_product_has_its_own_token(process: Process) -> None:
    cache = process()
    assert cache.token(ACCOUNT, "collection", CountingMint("in")) == "in-1"
    assert cache.token(ACCOUNT, "disbursement", CountingMint("out")) == "out-1"


# --- discard --------------------------------------------------------------------------------------


def test_a_refused_token_is_gone_for_every_new_process(process: Process) -> None:
    cache, mint = process(), CountingMint()
    cache.token(ACCOUNT, "collection", mint)
    cache.discard(ACCOUNT, "collection", "token-1")
    assert process().token(ACCOUNT, "collection", mint) == "token-2"
    assert cache.token(ACCOUNT, "collection", mint) == "token-2"


def test_a_late_refusal_of_an_old_token_leaves_the_new_one(process: Process) -> None:
    cache, mint = process(), CountingMint()
    cache.token(ACCOUNT, "collection", mint)
    cache.discard(ACCOUNT, "collection", "token-1")
    cache.token(ACCOUNT, "collection", mint)
    cache.discard(ACCOUNT, "collection", "token-1")
    assert cache.token(ACCOUNT, "collection", mint) == "token-2"
    assert process().token(ACCOUNT, "collection", mint) == "token-2"


def test_a_late_refusal_costs_no_token_without_redis_either() -> None:
    cache, mint = away(), CountingMint()
    cache.token(ACCOUNT, "collection", mint)
    cache.discard(ACCOUNT, "collection", "token-0")
    assert cache.token(ACCOUNT, "collection", mint) == "token-1"


def test_who_takes_over_a_token_leaves_the_turn_to_the_next(process: Process) -> None:
    mint = CountingMint()
    process().token(ACCOUNT, "collection", mint)
    other = process()
    other.token(ACCOUNT, "collection", mint)
    other.discard(ACCOUNT, "collection", "token-1")
    started = time.monotonic()
    assert process().token(ACCOUNT, "collection", mint) == "token-2"
    assert time.monotonic() - started < 1


def test_eight_refusals_at_once_mint_one_new_token(process: Process) -> None:
    cache, mint = process(), CountingMint(takes_s=0.05)
    cache.token(ACCOUNT, "collection", mint)

    def refuse_and_ask(_: int) -> str | Observation:
        cache.discard(ACCOUNT, "collection", "token-1")
        return cache.token(ACCOUNT, "collection", mint)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(refuse_and_ask, range(8))) == ["token-2"] * 8
