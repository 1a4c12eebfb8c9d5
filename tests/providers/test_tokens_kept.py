"""Tokens when Redis is unavailable, empty or wrong, for other credentials, and after a refusal."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import pytest
from cryptography.fernet import Fernet
from redis import Redis

from devstack.redis_server import RedisServer
from devstack.supervisor import wait_until
from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import (
    Observation,
)
from payments_app.providers.tokens import NEW_REFUSED_KEPT_S, TokenCache
from tests.providers.leaping import LeapingClock
from tests.providers.minting import (
    ACCOUNT,
    REFUSED,
    SECRET_KEY,
    CountingMint,
    Process,
    a_client,
    away,
    keys,
    the_turn,
)

# --- Redis away, empty, wrong ---------------------------------------------------------------------


def test_without_redis_each_process_mints_for_itself() -> None:
    fetch_token = CountingMint(takes_s=0.1)
    cache = away()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.token(ACCOUNT, "collection", fetch_token), range(50)))
    assert (found, fetch_token.calls) == (["token-1"] * 50, 1)
    assert away().token(ACCOUNT, "collection", fetch_token) == "token-2"


def test_without_redis_a_failing_endpoint_is_left_alone_too(clock: LeapingClock) -> None:
    # The calls come within the pause after a failure, however busy the machine is.
    clock.stop()
    cache, failing = away(), CountingMint(answer=REFUSED)
    for _ in range(20):
        assert isinstance(cache.token(ACCOUNT, "collection", failing), Observation)
    assert failing.calls == 1


def test_a_redis_that_goes_away_takes_no_token_with_it(
    redis_server: RedisServer, process: Process
) -> None:
    cache, fetch_token = process(), CountingMint()
    cache.token(ACCOUNT, "collection", fetch_token)
    redis_server.kill()
    try:
        assert cache.token(ACCOUNT, "collection", fetch_token) == "token-1"
        cache.discard(ACCOUNT, "collection", "token-1")
        assert cache.token(ACCOUNT, "collection", fetch_token) == "token-2"
    finally:
        redis_server.start()


def test_a_refused_token_that_redis_could_not_be_told_of_is_not_taken_back(
    redis_server: RedisServer, process: Process
) -> None:
    cache, fetch_token = process(), CountingMint()
    cache.token(ACCOUNT, "collection", fetch_token)
    patient = cache._shared._redis
    # Only the call that gets no answer waits for a short time.
    with a_client(redis_server.url, timeout_s=0.5) as cache._shared._redis:
        redis_server.process.stop()
        try:
            cache.discard(ACCOUNT, "collection", "token-1")
        finally:
            redis_server.process.cont()
    cache._shared._redis = patient
    assert process().token(ACCOUNT, "collection", fetch_token) == "token-1"
    assert cache.token(ACCOUNT, "collection", fetch_token) == "token-2"


def test_a_flushed_redis_costs_at_most_one_more_token(
    redis_server: RedisServer, process: Process
) -> None:
    cache, fetch_token = process(), CountingMint()
    cache.token(ACCOUNT, "collection", fetch_token)
    redis_server.flush()
    assert cache.token(ACCOUNT, "collection", fetch_token) == "token-1"
    assert process().token(ACCOUNT, "collection", fetch_token) == "token-2"


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


# --- whose token ------------------------------------------------------------------------------


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
    cache, fetch_token = process(), CountingMint()
    cache.token(ACCOUNT, "collection", fetch_token)
    cache.discard(ACCOUNT, "collection", "token-1")
    assert process().token(ACCOUNT, "collection", fetch_token) == "token-2"
    assert cache.token(ACCOUNT, "collection", fetch_token) == "token-2"


def test_a_late_refusal_of_an_old_token_leaves_the_new_one(process: Process) -> None:
    cache, fetch_token = process(), CountingMint()
    cache.token(ACCOUNT, "collection", fetch_token)
    cache.discard(ACCOUNT, "collection", "token-1")
    cache.token(ACCOUNT, "collection", fetch_token)
    cache.discard(ACCOUNT, "collection", "token-1")
    assert cache.token(ACCOUNT, "collection", fetch_token) == "token-2"
    assert process().token(ACCOUNT, "collection", fetch_token) == "token-2"


def test_a_late_refusal_costs_no_token_without_redis_either() -> None:
    cache, fetch_token = away(), CountingMint()
    cache.token(ACCOUNT, "collection", fetch_token)
    cache.discard(ACCOUNT, "collection", "token-0")
    assert cache.token(ACCOUNT, "collection", fetch_token) == "token-1"


def test_who_takes_over_a_token_leaves_the_turn_to_the_next(process: Process) -> None:
    fetch_token = CountingMint()
    process().token(ACCOUNT, "collection", fetch_token)
    other = process()
    other.token(ACCOUNT, "collection", fetch_token)
    other.discard(ACCOUNT, "collection", "token-1")
    # If the lock were still held, this would return a NOT_SENT observation: see test_tokens.
    assert process().token(ACCOUNT, "collection", fetch_token) == "token-2"


def test_eight_refusals_at_once_mint_one_new_token(process: Process) -> None:
    cache, fetch_token = process(), CountingMint(takes_s=0.05)
    cache.token(ACCOUNT, "collection", fetch_token)

    def refuse_and_ask(_: int) -> str | Observation:
        cache.discard(ACCOUNT, "collection", "token-1")
        return cache.token(ACCOUNT, "collection", fetch_token)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(refuse_and_ask, range(8))) == ["token-2"] * 8


# --- new tokens that are refused too --------------------------------------------------------------


def refused_again(cache: TokenCache, fetch_token: CountingMint) -> bool:
    """A request under the current token is refused, and so is one under a new token."""
    token = cache.token(ACCOUNT, "collection", fetch_token)
    if not cache.discard(ACCOUNT, "collection", str(token)):
        return False
    new = cache.token(ACCOUNT, "collection", fetch_token)
    cache.note_refused(ACCOUNT, "collection", str(new))
    return True


def test_who_refuses_every_token_is_not_asked_for_one_with_each_call(
    process: Process, clock: LeapingClock
) -> None:
    # All calls come within the pause after the second refusal, however busy the machine is.
    clock.stop()
    cache, fetch_token = process(), CountingMint()
    for _ in range(60):
        refused_again(cache, fetch_token)
    # One at first, and one for each refusal until two new ones were refused.
    assert fetch_token.calls == 3
    assert isinstance(cache.token(ACCOUNT, "collection", fetch_token), str)


def test_after_a_pause_one_more_is_tried_and_one_that_is_taken_ends_it(process: Process) -> None:
    cache, fetch_token = process(), CountingMint()
    assert refused_again(cache, fetch_token)
    assert refused_again(cache, fetch_token)
    wait_until(
        lambda: refused_again(cache, fetch_token), what="no token is tried again", limit_s=10
    )
    assert fetch_token.calls == 4
    cache.note_accepted("token-4")
    wait_until(
        lambda: cache.discard(ACCOUNT, "collection", "token-4"),
        what="the token that was let in stays when it is refused later",
        limit_s=NEW_REFUSED_KEPT_S + 1,
    )


def test_a_new_token_that_many_calls_were_refused_under_counts_once(process: Process) -> None:
    """The requests ran at the same time: they prove nothing about a second token."""
    cache, fetch_token = process(), CountingMint()
    assert refused_again(cache, fetch_token)
    for _ in range(20):
        cache.note_refused(ACCOUNT, "collection", "token-2")
    assert cache.discard(ACCOUNT, "collection", "token-2")


def test_a_payment_that_is_refused_under_each_token_holds_up_no_other(process: Process) -> None:
    """The provider accepts the others' tokens; when one ends, a new one is fetched soon."""
    cache, fetch_token = process(), CountingMint()
    for _ in range(20):
        token = str(cache.token(ACCOUNT, "collection", fetch_token))
        cache.note_accepted(token)
        refused_again(cache, fetch_token)
        cache.note_accepted(str(cache.token(ACCOUNT, "collection", fetch_token)))
    ended = str(cache.token(ACCOUNT, "collection", fetch_token))
    wait_until(
        lambda: cache.discard(ACCOUNT, "collection", ended),
        what="a token that has ended is kept",
        limit_s=NEW_REFUSED_KEPT_S + 1,
    )
