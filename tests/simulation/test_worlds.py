"""The simulation itself: runs repeat, replay and shrink, and a broken engine is detected."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT, read
from tests.simulation import pairs
from tests.simulation.__main__ import tell_pairs
from tests.simulation.choices import Choices
from tests.simulation.installation import Installation
from tests.simulation.mutants import ALL
from tests.simulation.network import CHECK_FAULTS, SUBMIT_FAULTS
from tests.simulation.run import Run, run
from tests.simulation.shrinking import shrunk

SEEDS = 500
# SEEDS seeds cover at least this part of all pairs.
PAIRS_PART = 0.85
# A row of docs/mutants.md: the mutant, what is wrong, the check, the seed.
_ROW = re.compile(r"^\| `(\w+)` \| (.+) \| (.+) \| (\d+) \|$", re.MULTILINE)
LISTED = {
    name: (wrong, check, int(seed))
    for name, wrong, check, seed in _ROW.findall(read("docs/mutants.md"))
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_500_seeds_keep_every_promise() -> None:
    done = _simulate("--seeds", str(SEEDS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all promises kept" in done.stdout
    assert re.search(rf"{SEEDS} seeds, [1-9]\d* payments", done.stdout)
    came = re.search(rf"(\d+) of {len(pairs.ALL)} pairs came", done.stdout)
    assert came is not None
    assert int(came[1]) >= len(pairs.ALL) * PAIRS_PART


def test_the_first_payments_of_so_many_seeds_have_all_pairs_in_turn() -> None:
    turns = [
        pairs.ALL[Choices(seed).in_turn(len(pairs.ALL), seed)]
        for seed in range(7, 7 + len(pairs.ALL))
    ]
    assert sorted(turns) == sorted(pairs.ALL)


def test_a_script_says_what_becomes_of_the_first_two_requests(installation: Installation) -> None:
    """The effects that happened are counted as the pair that was planned."""
    for seed in (1, 150, 333):
        played = run(installation, seed)
        script = next(line for line in played.trace if ": " in line and " → " in line)
        assert [str(pair) for pair in played.pairs if script.endswith(f": {pair}")]


def test_a_big_run_in_which_a_pair_never_came_does_not_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    counts = dict.fromkeys(pairs.ALL, 3)
    assert tell_pairs(counts, is_big=True) == 0
    assert "taken, 401 → submission: " in capsys.readouterr().out
    lost = pairs.Pair("taken, 401", pairs.SUBMISSION, "refused by code")
    counts[lost] = 0
    assert tell_pairs(counts, is_big=False) == 0
    assert tell_pairs(counts, is_big=True) == 2
    said = capsys.readouterr().out
    assert said.count("never came: taken, 401 → submission: refused by code") == 2
    assert "refused by code 0" in said


def test_each_effect_has_a_fault_of_the_network() -> None:
    assert {*SUBMIT_FAULTS, pairs.LEASE_OVER} == set(pairs.SUBMISSIONS)
    assert set(CHECK_FAULTS) == set(pairs.QUESTIONS)


def test_a_broken_promise_ends_the_search_with_a_short_trace_and_its_seed() -> None:
    done = _simulate("--seeds", "40", "--jobs", "1", "--mutant", "not_found_is_failed")
    assert done.returncode == 1, done.stderr
    assert "VIOLATION the end is the provider's truth" in done.stdout
    assert re.search(r"again: make simulate SEED=\d+ MUTANT=not_found_is_failed", done.stdout)


@pytest.mark.parametrize("seed", [1, 2, 3, 20, 77])
def test_a_seed_goes_the_same_way_each_time(installation: Installation, seed: int) -> None:
    first = run(installation, seed)
    assert run(installation, seed) == first
    assert len(first.trace) > 1


def test_its_choices_replay_a_seed_and_others_do_not(installation: Installation) -> None:
    found = run(installation, 5)
    assert run(installation, 5, found.choices) == found
    tame = run(installation, 5, ())
    assert tame.trace != found.trace
    assert tame.broken is None


def test_what_is_found_shrinks_to_less_that_breaks_the_same(installation: Installation) -> None:
    name = "not_found_is_failed"
    with ALL[name].applied():
        found = run(installation, LISTED[name][2])
        short = shrunk(installation, found)
        assert short.broken is found.broken is not None
        assert len(short.trace) < len(found.trace)
        assert run(installation, short.seed, short.choices).trace == short.trace
        # An id begins with the real time, which would make the trace another one some minutes later.
        assert [line for line in found.trace if '"externalId": "' in line]
        assert not [line for line in found.trace if '"externalId": "0' in line]
    assert run(installation, short.seed, short.choices).broken is None


def test_every_mutant_is_listed() -> None:
    assert {name: wrong for name, (wrong, _, _) in LISTED.items()} == {
        name: mutant.wrong for name, mutant in ALL.items()
    }


@pytest.mark.parametrize("name", ALL)
def test_a_mutant_is_caught_where_the_list_says_and_its_absence_is_clean(
    installation: Installation, name: str
) -> None:
    _, check, seed = LISTED[name]
    with ALL[name].applied():
        assert _caught_by(run(installation, seed)) == check
    assert _caught_by(run(installation, seed)) is None


def _caught_by(played: Run) -> str | None:
    return None if played.broken is None else str(played.broken)


def _simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
