"""The rate limit of an account's status checks: several workers on a real Redis, and without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from uuid import uuid4

import pytest
from flask import Flask
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from payments_app import Parts
from payments_app.kernel.clock import boot_seconds
from payments_app.payments import rate_limit
from payments_app.payments.backoff import RETRY_AFTER_MAX_S
from payments_app.payments.rate_limit import (
    BATCH_S,
    BURST_S,
    RATE_MIN,
    SHARE_HALVES_S,
    SHORT_S,
    AccountPace,
)
from payments_app.payments.states import Step
from payments_app.providers.contract import AccountKey, Observation, Verdict

CEILING = 100.0
QUICK = Observation(Verdict.PENDING, "pending", http_status=200, elapsed_s=0.05)
TOO_MANY = Observation(Verdict.UNKNOWN, "throttled", http_status=429)
ASKED_AWAY = replace(TOO_MANY, retry_after_s=60.0)

Worker = Callable[[], AccountPace]


@pytest.fixture
def redis(app: Flask) -> Iterator[Redis]:
    """The app's Redis; a worker waits for it until it answers, as none here shall do without."""
    parts: Parts = app.extensions["maramoja"]
    with Redis.from_url(parts.settings.redis_url, socket_timeout=30.0) as client:
        yield client


@pytest.fixture(params=["shared", "alone"])
def worker(redis: Redis, request: pytest.FixtureRequest) -> Worker:
    """Makes workers, with the app's Redis or with an unreachable one."""
    away = Redis(port=1, retry=Retry(NoBackoff(), 0), socket_connect_timeout=0.1)
    used = redis if request.param == "shared" else away
    return lambda: AccountPace(used, ceiling=CEILING)


@pytest.fixture
def shared(redis: Redis) -> Worker:
    return lambda: AccountPace(redis, ceiling=CEILING)


class StandingClock:
    """The time of this process and of Redis's script, which passes in `leap` only."""

    KEY = "now of a test"
    ms = 1_800_000_000_000

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.leap(0)

    def leap(self, ms: int) -> None:
        self.ms += ms
        self._redis.delete(self.KEY)
        # As TIME answers: seconds, and microseconds of the second.
        self._redis.rpush(self.KEY, self.ms // 1000, self.ms % 1000 * 1000)

    def seconds(self) -> float:
        return self.ms / 1000


@pytest.fixture
def clock(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandingClock]:
    """For workers that are made later in the test: no pause of the machine is time to them."""
    standing = StandingClock(redis)
    asks, told = "redis.call('TIME')", f"redis.call('LRANGE', '{StandingClock.KEY}', 0, 1)"
    assert rate_limit._SHARE.count(asks) == 1
    monkeypatch.setattr(rate_limit, "_SHARE", rate_limit._SHARE.replace(asks, told))
    monkeypatch.setattr(rate_limit, "boot_seconds", standing.seconds)
    yield standing
    redis.delete(StandingClock.KEY)


def an_account() -> AccountKey:
    return AccountKey("mtn_momo", uuid4())


def granted(pace: AccountPace, account: AccountKey, wanted: int) -> int:
    return pace.grant({account: wanted})[account]


def rate_of(pace: AccountPace, account: AccountKey) -> float | None:
    """The rate that this worker has last read."""
    granted(pace, account, 0)
    return pace._of(account).rate


def test_an_account_without_a_limit_is_asked_at_once(worker: Worker) -> None:
    assert granted(worker(), an_account(), 1000) == 1000


def test_a_rate_is_handed_out_evenly_and_all_of_it(worker: Worker) -> None:
    pace, account = worker(), an_account()
    pace.advise(account, 20.0)
    started, given, lost_s = time.monotonic(), 0, 0.0
    asked_at = started
    burst = granted(pace, account, 1000)
    assert 1 <= burst <= 20 * BURST_S + 1
    while asked_at - started < 1.5:
        time.sleep(0.05)
        before, asked_at = asked_at, time.monotonic()
        given += granted(pace, account, 1000)
        # After a longer pause of the machine, more is due than may leave at once.
        lost_s += max(0.0, time.monotonic() - before - (BURST_S - BATCH_S))
    least_s, most_s = asked_at - started - lost_s, time.monotonic() - started
    assert 0.8 * 20 * (least_s - BATCH_S) - 2 <= given <= 20 * most_s + 1


@pytest.mark.usefixtures("clock")
def test_what_the_rate_holds_back_closes_the_account_for_questions_only(worker: Worker) -> None:
    pace, account = worker(), an_account()
    pace.advise(account, 20.0)
    for _ in range(2):
        granted(pace, account, 1000)
        assert not pace.is_open(account, Step.CHECK)
        assert pace.is_open(account, Step.SUBMIT)


def test_workers_share_one_rate(shared: Worker) -> None:
    account, workers = an_account(), [shared() for _ in range(4)]
    for pace in workers:
        pace.advise(account, 10.0)
    started = time.monotonic()
    given = sum(granted(pace, account, 100) for pace in workers)
    assert given <= 10 * (BURST_S + time.monotonic() - started) + 1


def test_what_was_not_wanted_is_not_kept_for_later(shared: Worker) -> None:
    """After an idle time, an account does not get a hundred checks at once."""
    pace, account = shared(), an_account()
    pace.advise(account, 10.0)
    assert granted(pace, account, 1) == 1
    time.sleep(2 * BURST_S)
    assert granted(pace, account, 100) <= 10 * BURST_S + 1


def test_the_rate_rises_while_it_is_what_holds_questions_back_up_to_the_ceiling(
    shared: Worker,
) -> None:
    pace, account = shared(), an_account()
    pace.advise(account, 10.0)
    granted(pace, account, 100)
    for _ in range(10):
        pace.learn(account, Step.CHECK, QUICK, calls=1)
    granted(pace, account, 100)
    # At this rate, ten answers are one second's.
    assert rate_of(pace, account) == pytest.approx(11.0)
    for _ in range(10_000):
        pace.learn(account, Step.CHECK, QUICK, calls=1)
    granted(pace, account, 100)
    assert rate_of(pace, account) == CEILING


@pytest.mark.parametrize(
    "seen",
    [
        replace(QUICK, elapsed_s=2.0),
        replace(QUICK, http_status=500),
        replace(QUICK, http_status=None),
    ],
    ids=["slow", "error", "no answer"],
)
def test_answers_that_are_not_quick_raise_nothing(shared: Worker, seen: Observation) -> None:
    pace, account = shared(), an_account()
    pace.advise(account, 10.0)
    granted(pace, account, 100)
    for _ in range(100):
        pace.learn(account, Step.CHECK, seen, calls=1)
    granted(pace, account, 100)
    assert rate_of(pace, account) == 10.0


def test_a_rate_that_is_not_used_up_does_not_rise(shared: Worker) -> None:
    pace, account = shared(), an_account()
    pace.advise(account, 10.0)
    for _ in range(100):
        pace.learn(account, Step.CHECK, QUICK, calls=1)
    granted(pace, account, 1)
    assert rate_of(pace, account) == 10.0


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("advice", [40.0, None])
def test_a_refusal_halves_the_rate_at_once_for_every_worker(
    shared: Worker, advice: float | None
) -> None:
    """Also for an account without a known limit: the refusal shows that it has one."""
    pace, other, account = shared(), shared(), an_account()
    pace.advise(account, advice)
    other.advise(account, advice)
    pace.learn(account, Step.CHECK, TOO_MANY, calls=1)
    assert rate_of(other, account) == (advice or CEILING) / 2
    # Refusals of checks that were under way at the same time do not count again.
    pace.learn(account, Step.CHECK, TOO_MANY, calls=1)
    assert rate_of(other, account) == (advice or CEILING) / 2


@pytest.mark.usefixtures("clock")
def test_the_rate_falls_by_half_the_share_of_questions_that_were_refused(worker: Worker) -> None:
    """One refusal among many is no reason to halve the rate."""
    pace, account = worker(), an_account()
    pace.advise(account, 40.0)
    granted(pace, account, 1)
    for _ in range(9):
        pace.learn(account, Step.CHECK, QUICK, calls=1)
    pace.learn(account, Step.CHECK, TOO_MANY, calls=1)
    assert pace._of(account).rate == pytest.approx(40.0 * (1 - 0.1 / 2), rel=0.05)


@pytest.mark.usefixtures("clock")
def test_refusals_of_long_ago_are_outweighed(worker: Worker) -> None:
    pace, account = worker(), an_account()
    pace.advise(account, 40.0)
    for _ in range(50):
        pace.learn(account, Step.CHECK, QUICK, calls=1)
    known = pace._of(account)
    assert known.checks.answered == pytest.approx(50, rel=0.05)
    known.checks.counted_at -= 10 * SHARE_HALVES_S
    pace.learn(account, Step.CHECK, TOO_MANY, calls=1)
    assert known.rate == pytest.approx(20.0, rel=0.05)


def test_a_provider_that_does_not_know_us_says_nothing_about_the_rate(worker: Worker) -> None:
    """A refused token: another one is fetched, at growing intervals (tokens.py)."""
    pace, account = worker(), an_account()
    pace.advise(account, 40.0)
    pace.learn(account, Step.CHECK, replace(TOO_MANY, reason="refused", http_status=401), calls=2)
    granted(pace, account, 1)
    assert pace._of(account).rate in {None, 40.0}


def test_however_often_it_refuses_it_is_still_asked(worker: Worker) -> None:
    pace, account = worker(), an_account()
    pace.advise(account, RATE_MIN * 1.5)
    pace.learn(account, Step.CHECK, TOO_MANY, calls=2)
    assert pace._of(account).rate == RATE_MIN


def test_retry_after_closes_the_account_for_questions_of_every_worker(shared: Worker) -> None:
    pace, other, account = shared(), shared(), an_account()
    pace.learn(account, Step.CHECK, ASKED_AWAY, calls=1)
    assert not pace.is_open(account, Step.CHECK)
    assert pace.is_open(account, Step.SUBMIT)
    assert granted(other, account, 5) == 0
    assert not other.is_open(account, Step.CHECK)
    assert granted(other, an_account(), 5) == 5


def test_retry_after_is_obeyed_while_redis_is_away(worker: Worker, clock: StandingClock) -> None:
    pace, account = worker(), an_account()
    pace.learn(account, Step.CHECK, replace(ASKED_AWAY, retry_after_s=0.3), calls=1)
    assert granted(pace, account, 5) == 0
    clock.leap(299)
    assert granted(pace, account, 5) == 0
    clock.leap(2)
    assert granted(pace, account, 5) >= 1


def test_a_throttled_submission_closes_the_account_for_submissions(worker: Worker) -> None:
    pace, account = worker(), an_account()
    throttled = replace(ASKED_AWAY, verdict=Verdict.NOT_SENT)
    pace.learn(account, Step.SUBMIT, throttled, calls=1)
    assert not pace.is_open(account, Step.SUBMIT)
    assert pace.is_open(account, Step.CHECK)
    # A submission that the provider may have taken closes nothing for others.
    second = an_account()
    pace.learn(second, Step.SUBMIT, replace(ASKED_AWAY, http_status=503), calls=1)
    assert pace.is_open(second, Step.SUBMIT)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("step", Step)
def test_a_short_retry_after_of_one_among_many_holds_up_itself_only(
    worker: Worker, step: Step
) -> None:
    """Its row has its own delay. Several such answers close the account, and so does a long one."""
    pace, account, other = worker(), an_account(), an_account()
    throttled = replace(ASKED_AWAY, verdict=Verdict.NOT_SENT)
    for one in (account, other):
        for _ in range(19):
            pace.learn(one, step, QUICK, calls=1)
    pace.learn(account, step, replace(throttled, retry_after_s=SHORT_S), calls=1)
    assert pace.is_open(account, step)
    for _ in range(9):
        pace.learn(account, step, replace(throttled, retry_after_s=SHORT_S), calls=1)
    assert not pace.is_open(account, step)
    pace.learn(other, step, throttled, calls=1)
    assert not pace.is_open(other, step)


@pytest.mark.parametrize("asked_s", [float("nan"), float("inf"), -5.0])
def test_what_is_no_time_to_wait_closes_nothing_for_longer_than_may_be(
    worker: Worker, asked_s: float
) -> None:
    pace, account = worker(), an_account()
    pace.learn(account, Step.CHECK, replace(TOO_MANY, retry_after_s=asked_s), calls=1)
    assert pace.is_open(account, Step.CHECK) is not (asked_s > 0)
    assert pace._of(account).checks_at <= boot_seconds() + RETRY_AFTER_MAX_S + 1


@pytest.mark.usefixtures("clock")
def test_every_call_of_a_question_counts(shared: Worker) -> None:
    """Including the second call after a 401."""
    waits = []
    for calls in (1, 2):
        pace, account = shared(), an_account()
        pace.advise(account, 1.0)
        granted(pace, account, 100)
        pace.learn(account, Step.CHECK, QUICK, calls=calls)
        granted(pace, account, 1)
        waits.append(pace._of(account).checks_at)
    assert 0.8 < waits[1] - waits[0] < 1.5


def test_a_key_of_another_kind_is_replaced(redis: Redis, shared: Worker) -> None:
    account = an_account()
    redis.set(f"pace:mtn_momo:{account.id}", "1")
    pace = shared()
    pace.advise(account, 10.0)
    assert 1 <= granted(pace, account, 100) <= 10 * BURST_S + 1


def test_instants_that_nobody_can_have_written_close_nothing(redis: Redis, shared: Worker) -> None:
    pace, account = shared(), an_account()
    pace.advise(account, 10.0)
    assert granted(pace, account, 1) == 1
    (name,) = redis.keys(f"pace:*{account.id}")
    redis.hset(name, mapping=dict.fromkeys(("next", "fell", "checks", "submits"), 9 * 10**15))
    assert granted(pace, account, 1) == 1
    assert pace.is_open(account, Step.SUBMIT)
    pace.learn(account, Step.CHECK, TOO_MANY, 1)
    assert rate_of(pace, account) == 5.0


# --- exact numbers --------------------------------------------------------------------------------


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("rate", "at_once"), [(0.5, 1), (2.0, 3), (7.0, 9), (10.5, 13), (33.0, 40)]
)
def test_after_a_rest_what_a_second_and_a_fifth_are_worth_leaves_at_once_and_no_more(
    worker: Worker, rate: float, at_once: int
) -> None:
    """Plus the one that is due now: 1.2 s at 7 a second are 8.4, so nine are granted."""
    assert grants(worker, rate, (1000, 1000, 1)) == [at_once, 0, 0]


def grants(worker: Worker, rate: float, wanted: Sequence[int]) -> list[int]:
    """What a new account at this rate is granted at one instant, one call after the other."""
    pace, account = worker(), an_account()
    pace.advise(account, rate)
    return [granted(pace, account, count) for count in wanted]


# Nine are due. The rest is granted as a batch only if it is worth a second, i.e. at least seven.
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("wanted", "left"), [(1, 8), (2, 7), (3, 0), (8, 0), (9, 0)])
def test_as_many_as_are_wanted_and_no_more(worker: Worker, wanted: int, left: int) -> None:
    assert grants(worker, 7.0, (wanted, 1000)) == [wanted, left]


# At 2.5 a second, a check is due every 400 ms; a batch worth a second is two.
GAP_MS = 400


@pytest.mark.parametrize(
    ("due_for_ms", "wanted", "leave"),
    [
        *((-200, 1, 0), (-200, 9, 0)),
        *((200, 1, 1), (200, 9, 0)),
        *((600, 1, 1), (600, 2, 2), (600, 9, 2)),
        *((1000, 2, 2), (1000, 3, 3), (1000, 9, 3)),
    ],
)
def test_each_question_that_is_due_leaves_and_none_that_is_not(
    redis: Redis, clock: StandingClock, shared: Worker, due_for_ms: int, wanted: int, leave: int
) -> None:
    pace, account = shared(), an_account()
    pace.advise(account, 1000 / GAP_MS)
    redis.hset(f"pace:mtn_momo:{account.id}", "next", clock.ms - due_for_ms)
    assert granted(pace, account, wanted) == leave


@pytest.mark.parametrize("field", ["rate", "next", "fell", "checks", "submits"])
@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf", "1e999", "x", ""])
def test_no_number_in_redis_stops_an_account_for_good(
    redis: Redis, shared: Worker, field: str, value: str
) -> None:
    pace, account = shared(), an_account()
    pace.advise(account, 5.0)
    redis.hset(f"pace:mtn_momo:{account.id}", field, value)
    assert granted(pace, account, 1) == 1
    assert rate_of(pace, account) in {5.0, CEILING, RATE_MIN}
    pace.learn(account, Step.CHECK, TOO_MANY, calls=1)
    assert rate_of(pace, account) in {2.5, CEILING / 2, RATE_MIN}


def test_what_falls_within_a_second_falls_once(
    redis: Redis, clock: StandingClock, shared: Worker
) -> None:
    """On both sides of the second, by the instant that Redis stores."""
    for since_ms, falls in ((900, False), (1100, True)):
        pace, account = shared(), an_account()
        pace.advise(account, 40.0)
        granted(pace, account, 1)
        redis.hset(f"pace:mtn_momo:{account.id}", "fell", clock.ms - since_ms)
        pace.learn(account, Step.CHECK, TOO_MANY, calls=1)
        assert (rate_of(pace, account) == 20.0) == falls


def test_a_pace_is_no_slower_than_one_in_two_seconds_and_no_quicker_than_its_ceiling(
    shared: Worker,
) -> None:
    pace, account = shared(), an_account()
    pace.advise(account, 0.1)
    granted(pace, account, 1)
    assert rate_of(pace, account) == 0.5
    fast = an_account()
    pace.advise(fast, 5000.0)
    assert granted(pace, fast, 5000) == 121, "1.2 s at a hundred a second, and the one due now"
    assert rate_of(pace, fast) == CEILING
