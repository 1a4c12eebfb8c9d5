"""The plan depends on the seed alone and has every kind of fault; no two overlap at a process."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from chaos.pairs import pairs_of_a_run
from chaos.plan import Plan, make_plan
from chaos.process_faults import ALL_KINDS_FROM_S, BROKER, KINDS, REDIS, ProcessFault

SEEDS = range(20)


def apart(one: ProcessFault, other: ProcessFault) -> bool:
    return (
        one.target != other.target
        or one.at_s + one.lasts_s <= other.at_s
        or other.at_s + other.lasts_s <= one.at_s
    )


def test_the_same_seed_gives_the_same_plan() -> None:
    assert make_plan(7, seconds=60) == make_plan(7, seconds=60)
    assert make_plan(7, seconds=60).digest() == make_plan(7, seconds=60).digest()


def test_another_process_makes_the_same_plan() -> None:
    code = "from chaos.plan import make_plan; print(make_plan(7, seconds=60).digest())"
    environment = {"PYTHONHASHSEED": "3", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == make_plan(7, seconds=60).digest()


def test_another_seed_gives_another_plan() -> None:
    assert len({make_plan(seed, seconds=60).digest() for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_minute_meets_every_kind(seed: int) -> None:
    plan = make_plan(seed, seconds=60)
    assert {disaster.name for disaster in plan.disasters} == set(KINDS)
    assert {fault.name for fault in plan.weather.background} >= set(plan.weather.names)
    assert len(plan.weather.names) == 55


@pytest.mark.parametrize("seed", SEEDS)
def test_all_is_over_when_the_run_is(seed: int) -> None:
    plan = make_plan(seed, seconds=60)
    assert all(one.at_s > 0 and one.at_s + one.lasts_s < plan.seconds for one in plan.disasters)
    assert all(0 < (one.at_s or 0) < plan.seconds for one in plan.weather.strikes)


def test_two_disasters_hardly_ever_meet_at_one_process() -> None:
    plans = [make_plan(seed, seconds=60) for seed in SEEDS]
    pairs = [pair for plan in plans for pair in itertools.combinations(plan.disasters, 2)]
    assert sum(not apart(*pair) for pair in pairs) <= 2


def test_without_redis_nothing_happens_to_it() -> None:
    plan = make_plan(7, seconds=60, redis=False)
    assert not {disaster.target for disaster in plan.disasters} & {*REDIS, *BROKER}


def test_a_longer_run_repeats_every_kind() -> None:
    plan = make_plan(7, seconds=180)
    names = [disaster.name for disaster in plan.disasters]
    assert {names.count(kind) for kind in KINDS} == {3}


def test_a_short_run_takes_some_of_the_kinds() -> None:
    plan = make_plan(7, seconds=15)
    assert 4 <= len(plan.disasters) < len(KINDS)
    assert plan.seconds < ALL_KINDS_FROM_S


def test_no_key_is_used_for_two_orders() -> None:
    plan = make_plan(7, seconds=60)
    keys = [step.key for script in plan.scripts for step in script.steps]
    assert len(set(keys)) == len(keys)


def test_each_pair_of_faults_has_a_payment_of_its_own_in_a_run_that_is_long_enough() -> None:
    plan = make_plan(7, seconds=300)
    assert sorted(pair.name for pair in plan.pairs) == sorted(map(str, pairs_of_a_run()))
    payers = [step.order.payer for script in plan.scripts for step in script.steps]
    keys = {step.key: step.order.payer for script in plan.scripts for step in script.steps}
    for pair in plan.pairs:
        assert payers.count(pair.payer) == 1
        assert keys[pair.key] == pair.payer
        assert {fault.match["msisdn"] for fault in pair.faults} <= {pair.payer}


def test_runs_meet_the_pairs_in_orders_of_their_own() -> None:
    first = [{pair.name for pair in make_plan(seed, seconds=60).pairs[:60]} for seed in SEEDS]
    assert len(set.union(*first)) > len(first[0]) * 3


def test_the_plan_can_be_kept_beside_the_report() -> None:
    plan: Plan = make_plan(7, seconds=60)
    kept = json.loads(plan.as_json())
    assert kept["seed"] == 7
    assert len(kept["disasters"]) == len(plan.disasters)
