"""The delay before the next action: short at first, then longer and longer, never infinite."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_app.payments import backoff

AGES: Final = st.floats(-3600, 400 * 86_400, allow_nan=False)
COUNTS: Final = st.integers(0, 100_000)
HINTS: Final = st.none() | st.floats(-1e12, 1e12) | st.sampled_from([float("inf")])
# The largest factor by which jitter changes a delay.
WIDEST: Final = 1 + backoff.JITTER


def test_questions_become_rarer_with_age_and_never_stop() -> None:
    limits = [limit for limit, _ in backoff.CHECK_TABLE]
    delays = [*(delay for _, delay in backoff.CHECK_TABLE), backoff.CHECK_MAX_S]
    assert limits == sorted(set(limits))
    assert delays == sorted(set(delays))


@given(AGES)
def test_the_next_question_is_never_now_and_never_later_than_the_longest_pause(
    age_s: float,
) -> None:
    assert 0.5 <= backoff.check_delay_s(age_s) <= backoff.CHECK_MAX_S * WIDEST


@given(AGES, st.floats(0, 86_400))
def test_an_older_submission_is_asked_about_no_more_often(age_s: float, more_s: float) -> None:
    shortest = 1 - backoff.JITTER
    older = backoff.check_delay_s(age_s + more_s)
    assert older >= backoff.check_delay_s(age_s) / WIDEST * shortest


@pytest.mark.parametrize(("age_s", "delay_s"), [(0, 1), (10, 3), (59, 3), (60, 10), (10**9, 1800)])
def test_the_table_is_read_by_the_age(age_s: float, delay_s: float) -> None:
    assert delay_s * 0.8 <= backoff.check_delay_s(age_s) <= delay_s * 1.2


@given(AGES, AGES)
def test_whoever_fell_together_does_not_come_back_together(one: float, other: float) -> None:
    assert backoff.check_delay_s(one) != backoff.check_delay_s(other)


@given(COUNTS, HINTS)
def test_a_repeat_waits_but_never_longer_than_anyone_may_ask_for(
    submissions: int, retry_after_s: float | None
) -> None:
    delay = backoff.submit_delay_s(submissions, retry_after_s)
    assert 0.5 <= delay <= max(backoff.RETRY_AFTER_MAX_S, backoff.SUBMIT_MAX_S * WIDEST)


@given(COUNTS, st.floats(0, backoff.RETRY_AFTER_MAX_S))
def test_a_repeat_is_not_sent_before_the_provider_wants_it(
    submissions: int, retry_after_s: float
) -> None:
    assert backoff.submit_delay_s(submissions, retry_after_s) >= retry_after_s


def test_repeats_grow_apart_until_the_bound() -> None:
    tries = range(1, 12)
    means = [sum(backoff.submit_delay_s(n) for _ in range(200)) / 200 for n in tries]
    for before, after in pairwise(means):
        assert after > before * 1.5 or after == pytest.approx(backoff.SUBMIT_MAX_S, rel=0.1)
    assert means[0] == pytest.approx(backoff.SUBMIT_FIRST_S, rel=0.1)


@given(st.floats(0.1, 3600), COUNTS)
def test_not_found_must_last_longer_after_each_resend_up_to_a_bound(
    first_s: float, submissions: int
) -> None:
    wait = backoff.resend_after_s(first_s, submissions)
    assert min(first_s, backoff.RESEND_MAX_S) <= wait <= backoff.RESEND_MAX_S
    assert backoff.resend_after_s(first_s, submissions + 1) >= wait


@given(st.floats(0.001, 1e6))
def test_jitter_spreads_by_a_fifth_and_no_more(delay_s: float) -> None:
    assert delay_s * 0.8 <= backoff.jittered(delay_s) <= delay_s * 1.2
