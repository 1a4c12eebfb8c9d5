"""How many deliveries run at once, and which endpoint is next: rules that need no database."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from payments_app.webhooks.concurrency import (
    FIRST_LIMIT,
    LIMIT_MAX,
    QUICK_S,
    SLOW_IN_A_ROW,
    SLOW_S,
    EndpointLimits,
    FairTurns,
    Waiting,
)

ENDPOINT = uuid4()


def limits_after(*answers: tuple[bool, float]) -> EndpointLimits:
    limits = EndpointLimits()
    for delivered, elapsed_s in answers:
        limits.record(ENDPOINT, delivered=delivered, elapsed_s=elapsed_s)
    return limits


def test_an_endpoint_that_is_quick_has_one_more_for_each_full_round_up_to_a_bound() -> None:
    limits = EndpointLimits()
    assert limits.limit(ENDPOINT) == FIRST_LIMIT
    seen = [FIRST_LIMIT]
    for _ in range(LIMIT_MAX**2):
        limits.record(ENDPOINT, delivered=True, elapsed_s=0.01)
        seen.append(limits.limit(ENDPOINT))
    assert all(after - before in (0, 1) for before, after in pairwise(seen))
    assert seen[FIRST_LIMIT] == FIRST_LIMIT, "more before a full round was answered"
    assert max(seen) == seen[-1] == LIMIT_MAX


@pytest.mark.parametrize("bad", [(False, 0.01), (True, SLOW_S)], ids=["failure", "slow"])
def test_it_falls_by_half_the_share_of_failures_and_slow_answers(bad: tuple[bool, float]) -> None:
    quick = [(True, 0.01)] * 1000
    after_one = limits_after(*quick, bad).limit(ENDPOINT)
    assert LIMIT_MAX * 0.9 < after_one < LIMIT_MAX
    falls = [limits_after(*quick, *[bad] * count).limit(ENDPOINT) for count in range(60)]
    assert all(before >= after for before, after in pairwise(falls))
    assert falls[8] <= LIMIT_MAX / 2
    assert falls[-1] == 1, "never to nothing"
    # The limit of an endpoint without any good answer is halved at once.
    assert limits_after(bad).limit(ENDPOINT) == FIRST_LIMIT // 2


def test_one_failure_in_fifty_leaves_most_of_it() -> None:
    limits = limits_after(*[*[(True, 0.01)] * 49, (False, 10.0)] * 200)
    assert limits.limit(ENDPOINT) >= LIMIT_MAX * 0.9


def test_an_answer_that_is_neither_quick_nor_slow_leaves_it() -> None:
    limits = limits_after(*[(True, (QUICK_S + SLOW_S) / 2)] * 100)
    assert limits.limit(ENDPOINT) == FIRST_LIMIT


def test_what_the_row_says_of_slow_answers_counts_whatever_this_process_knows() -> None:
    limits = limits_after(*[(True, 0.01)] * 1000)
    assert limits.limit(ENDPOINT, slow_in_a_row=SLOW_IN_A_ROW - 1) == LIMIT_MAX
    assert limits.limit(ENDPOINT, slow_in_a_row=SLOW_IN_A_ROW) == 1


def test_an_endpoint_is_judged_by_its_own_answers() -> None:
    limits = limits_after(*[(False, 0.01)] * 5)
    assert limits.limit(uuid4()) == FIRST_LIMIT


def a_tenant(*rooms: int) -> list[Waiting]:
    tenant = uuid4()
    return [Waiting(uuid4(), tenant, room) for room in rooms]


def by_tenant(shares: dict[UUID, int], *tenants: list[Waiting]) -> list[int]:
    return [sum(shares.get(one.endpoint_id, 0) for one in theirs) for theirs in tenants]


def test_tenants_share_the_slots_evenly_however_many_endpoints_they_have() -> None:
    many, one = a_tenant(*[32] * 16), a_tenant(32)
    assert by_tenant(FairTurns(64).share_out(10, [*many, *one]), many, one) == [5, 5]


def test_a_tenants_endpoints_share_its_slots_evenly() -> None:
    waiting = a_tenant(32, 32, 1)
    shares = FairTurns(64).share_out(9, waiting)
    assert [shares[one.endpoint_id] for one in waiting] == [4, 4, 1]


def test_nobody_has_more_than_there_is_room_for_and_no_slot_is_left_over() -> None:
    small, large = a_tenant(2), a_tenant(32)
    assert by_tenant(FairTurns(64).share_out(20, [*small, *large]), small, large) == [2, 18]
    assert FairTurns(64).share_out(20, a_tenant(0, -3)) == {}
    assert FairTurns(64).share_out(0, large) == {}


def test_one_tenant_holds_its_part_of_the_slots_and_no_more() -> None:
    turns, theirs = FairTurns(per_tenant=3), a_tenant(32, 32)
    assert by_tenant(turns.share_out(64, theirs), theirs) == [3]
    for _ in range(3):
        turns.take(theirs[0].tenant_id)
    assert turns.share_out(64, theirs) == {}
    turns.free(theirs[0].tenant_id)
    assert by_tenant(turns.share_out(64, theirs), theirs) == [1]


def test_who_was_served_longest_ago_is_next() -> None:
    turns = FairTurns(64)
    tenants = [a_tenant(32, 32) for _ in range(3)]
    waiting = [one for theirs in tenants for one in theirs]
    served: Counter[UUID] = Counter()
    for _ in range(12):
        (endpoint_id,) = turns.share_out(1, waiting)
        served[endpoint_id] += 1
    assert set(served.values()) == {2}
    assert len(served) == 6


# --- what docs/webhooks.md says -------------------------------------------------------------------


def test_an_endpoint_gets_four_at_once_and_32_at_most() -> None:
    assert limits_after().limit(ENDPOINT) == 4
    # The limit grows by one after five quick answers: four at once, and the next one.
    assert [limits_after(*[(True, 0.0)] * n).limit(ENDPOINT) for n in (4, 5)] == [4, 5]
    assert limits_after(*[(True, 0.0)] * 5000).limit(ENDPOINT) == 32


@pytest.mark.parametrize(("elapsed_s", "limit"), [(1.0, 5), (1.01, 4), (2.99, 4), (3.0, 2)])
def test_within_a_second_is_quick_and_three_seconds_are_slow(elapsed_s: float, limit: int) -> None:
    assert (
        limits_after(*[(True, elapsed_s)] * (1 if elapsed_s >= 3 else 5)).limit(ENDPOINT) == limit
    )


def test_three_slow_answers_in_a_row_make_it_one_at_a_time() -> None:
    limits = limits_after(*[(True, 0.0)] * 5000)
    assert [limits.limit(ENDPOINT, slow_in_a_row=row) for row in (0, 2, 3, 4)] == [32, 32, 1, 1]
