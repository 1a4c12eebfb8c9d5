"""Whichever pair of effects two consecutive requests meet, the payment ends as in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import pytest

from chaos.pairs import REFUSED, Pair
from tests.conftest import Installation
from tests.pairs.page import PAGE, tables_in, tables_of
from tests.pairs.playing import Outcome, Stage, all_pairs, play_all
from tests.providers.mtn_rig import MtnRig


@pytest.fixture
def stage(installation_of_its_own: Installation) -> Iterator[Stage]:
    logging.disable()
    with MtnRig() as rig, Stage.set_up(installation_of_its_own.app, rig.account()) as stage:
        yield stage
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_pair_ends_in_the_ledgers_truth_as_the_page_says(stage: Stage) -> None:
    outcomes = play_all(stage)
    assert [f"{outcome.fault}: {pair}" for pair, outcome in outcomes.items() if outcome.fault] == []
    without_second = {pair.first for pair, outcome in outcomes.items() if not outcome.had_second}
    assert without_second == set(REFUSED), "a refusal of the only request is an end"
    assert tables_in(PAGE.read_text("utf-8")) == tables_of(outcomes)


@pytest.mark.parametrize(
    ("told", "taken", "moved", "fault"),
    [
        ("SUCCESSFUL", 1, 1, ""),
        ("FAILED", 0, 0, ""),
        ("FAILED", 1, 1, "LIE"),
        ("FAILED", 1, 0, "LIE"),
        ("SUCCESSFUL", 1, 0, "LIE"),
        ("SUCCESSFUL", 0, 0, "LIE"),
        ("SUCCESSFUL", 1, 2, "DUPLICATE"),
        ("SUCCESSFUL", 2, 1, "DUPLICATE"),
        ("PENDING", 0, 0, "STUCK"),
        ("PENDING", 1, 1, "STUCK"),
    ],
)
def test_a_cell_is_judged_by_the_ledger(told: str, taken: int, moved: int, fault: str) -> None:
    assert Outcome(told, taken, moved, had_second=True).fault == fault


def test_a_cell_that_breaks_a_promise_shows_in_the_page() -> None:
    outcomes: Mapping[Pair, Outcome] = {
        pair: Outcome("FAILED", 1, 1, had_second=True) for row in all_pairs() for pair in row
    }
    assert all("**LIE** F1" in table for table in tables_of(outcomes).values())
