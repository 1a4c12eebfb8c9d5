"""Tokens on a real Redis: all processes together fetch one, never many at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from redis import Redis

from payments_app.kernel.clock import boot_seconds
from payments_app.providers.contract import (
    Observation,
    Verdict,
)
from payments_app.providers.tokens import IssuedToken
from tests.providers.leaping import LeapingClock
from tests.providers.minting import (
    ACCOUNT,
    REFUSED,
    SECRET_KEY,
    CountingMint,
    Process,
    the_turn,
)


def test_a_token_is_minted_once_and_used_again(process: Process) -> None:
    cache, fetch_token = process(), CountingMint()
    assert [cache.token(ACCOUNT, "collection", fetch_token) for _ in range(3)] == ["token-1"] * 3
    assert fetch_token.calls == 1


def test_another_process_uses_it_too(process: Process) -> None:
    fetch_token = CountingMint()
    process().token(ACCOUNT, "collection", fetch_token)
    assert process().token(ACCOUNT, "collection", fetch_token) == "token-1"
    assert fetch_token.calls == 1


PassTime = Callable[[float], None]

# Waits until all processes are ready, then asks with 8 threads at once. A process waits long for
# the one that fetches: how long it does wait is not tested here.
ASK_AT_ONCE = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from redis import Redis
from payments_app.kernel.secrets import Cipher
from payments_app.providers import tokens
from payments_app.providers.contract import Mode, ProviderAccount
from payments_app.providers.tokens import IssuedToken, TokenCache

tokens.WAIT_MAX_S = 60.0
redis = Redis.from_url(sys.argv[1])
cache = TokenCache(redis, Cipher([sys.argv[2]]))
account = ProviderAccount(None, "mtn_momo", Mode.TEST, "https://mtn.test", "sandbox", {"a": "b"})

def mint():
    number = redis.incr("test:mints")
    time.sleep(0.4)
    return IssuedToken(f"token-{number}", 3600)

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


def test_one_renews_ahead_of_time_while_the_others_go_on(
    process: Process, pass_time: PassTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than the renewal waits: a process that waited for it would get no old token.
    monkeypatch.setattr("payments_app.providers.tokens.WAIT_MAX_S", 60.0)
    cache = process()
    # Lives 48 s, so it is renewed after 40 s.
    cache.token(ACCOUNT, "collection", CountingMint("old", lives_s=48))
    pass_time(40.5)
    minting, finish = threading.Event(), threading.Event()

    def slow_mint() -> IssuedToken:
        minting.set()
        assert finish.wait(20)
        return IssuedToken("new", 3600)

    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(cache.token, ACCOUNT, "collection", slow_mint)
        assert minting.wait(20)
        # The same process, and another one.
        assert cache.token(ACCOUNT, "collection", CountingMint()) == "old-1"
        assert process().token(ACCOUNT, "collection", CountingMint()) == "old-1"
        assert not renewing.done()
        finish.set()
        assert renewing.result() == "new"
    assert cache.token(ACCOUNT, "collection", CountingMint()) == "new"


def test_a_renewal_that_fails_leaves_the_old_token_in_use_to_its_end(
    process: Process, pass_time: PassTime
) -> None:
    cache, failing = process(), CountingMint(answer=replace(REFUSED, retry_after_s=20.0))
    cache.token(ACCOUNT, "collection", CountingMint("old", lives_s=36))
    pass_time(30.2)
    assert cache.token(ACCOUNT, "collection", failing) == "old-1"
    assert cache.token(ACCOUNT, "collection", failing) == "old-1"
    assert failing.calls == 1
    # The token has ended, and the pause after the failure has not.
    pass_time(6)
    answer = cache.token(ACCOUNT, "collection", failing)
    assert isinstance(answer, Observation)
    assert failing.calls == 1


def test_a_token_that_has_ended_is_not_used(process: Process, pass_time: PassTime) -> None:
    cache, fetch_token = process(), CountingMint(lives_s=60)
    assert cache.token(ACCOUNT, "collection", fetch_token) == "token-1"
    pass_time(60.5)
    assert cache.token(ACCOUNT, "collection", fetch_token) == "token-2"
    assert process().token(ACCOUNT, "collection", fetch_token) == "token-2"


# --- failure -----------------------------------------------------------------------------------


def test_a_failing_endpoint_is_asked_once_and_then_left_alone(process: Process) -> None:
    # The pause that the provider asks for outlasts all these calls.
    refused = replace(REFUSED, retry_after_s=20.0)
    caches, failing = [process(), process()], CountingMint(answer=refused, takes_s=0.1)

    def ask(number: int) -> str | Observation:
        return caches[number % 2].token(ACCOUNT, "collection", failing)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(200)))
    assert failing.calls == 1
    for answer in answers:
        assert isinstance(answer, Observation)
        assert answer.verdict is Verdict.NOT_SENT
        assert 0 < (answer.retry_after_s or 0) <= 20


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
    # Another process that sees the failure continues the count.
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
    def raising() -> IssuedToken:
        raise TimeoutError("the lease is over")

    cache = process()
    with pytest.raises(TimeoutError):
        cache.token(ACCOUNT, "collection", raising)
    assert process().token(ACCOUNT, "collection", CountingMint()) == "token-1"


def test_a_minter_that_was_killed_holds_the_others_up_for_a_bounded_time(
    redis: Redis, process: Process
) -> None:
    turn = the_turn(redis)
    started = time.monotonic()
    redis.set(turn, "of a dead process", px=400)
    assert process().token(ACCOUNT, "collection", CountingMint()) == "token-1"
    assert 0.3 < time.monotonic() - started < 2


def test_who_waits_too_long_for_anothers_token_hands_the_work_back(
    redis: Redis, process: Process, clock: LeapingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.set(the_turn(redis), "of a slow process", px=9_000)
    # The time that it waits is what it sleeps, however busy the machine is.
    clock.stop()
    monkeypatch.setattr("payments_app.providers.tokens.time", SimpleNamespace(sleep=clock.leap))
    started = boot_seconds()
    answer = process().token(ACCOUNT, "collection", CountingMint())
    assert isinstance(answer, Observation)
    assert (answer.verdict, answer.reason) == (Verdict.NOT_SENT, "token_pending")
    assert 2.5 < boot_seconds() - started < 4
