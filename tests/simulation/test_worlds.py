"""The simulation itself: it repeats, it replays, it shrinks; and it tells a broken engine."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT, read
from tests.simulation.installation import Installation
from tests.simulation.mutants import ALL
from tests.simulation.run import Run, run
from tests.simulation.shrinking import shrunk

SEEDS = 500
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
