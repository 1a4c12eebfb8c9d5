"""The numbers of a report, and the exit statuses of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.cases import Verdict, sort_by_key
from chaos.evidence import Evidence, Window, WireRequest
from chaos.fault_injector import Met
from chaos.figures import lost_answers, spread
from chaos.pairs import pairs_of_a_run
from chaos.plan import make_plan
from chaos.planned_pairs import PlannedPair, main, met_pairs
from chaos.report import Result, as_markdown, summary
from chaos.timeline import shortest, tell
from tests.chaos.stories import KEY, PAYER, REFERENCE, all_is_well, bad_stories, findings_of

PLAN = make_plan(3, seconds=10)


def a_result(evidence: Evidence, *, missing: str = "") -> Result:
    names = sorted({disaster.name for disaster in PLAN.disasters})
    return Result(
        plan=PLAN,
        evidence=evidence,
        cases=sort_by_key(evidence),
        findings=findings_of(evidence),
        met=[Met(name, "api", 1.0, 2.0, acted=name != missing) for name in names],
        provider_hits={name: 1 for name in PLAN.weather.names if name != missing},
        planned_disasters=names,
        healed_s=3.0,
        fenced={"payment.zombie_write": 1},
    )


def test_percentiles_are_values_that_were_measured() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 100.0])
    assert (found.count, found.p50_s, found.p95_s, found.max_s) == (5, 3.0, 100.0, 100.0)
    assert spread([]).count == 0


def test_the_truth_is_waited_for_from_when_the_provider_had_it() -> None:
    # Answer lost at 3 s, ended at the provider at 4 s, final at the gateway at 5 s.
    assert lost_answers(all_is_well(), []).on_the_wire.max_s == 1.0


def test_an_answer_that_died_with_its_worker_counts_apart() -> None:
    well = all_is_well()
    first = replace(well.exchanges[0], verdict=None, finished_at=None)
    found = lost_answers(replace(well, exchanges=[first, well.exchanges[1]]), [])
    assert (found.on_the_wire.count, found.with_its_process.count) == (0, 1)


def test_what_met_a_second_fault_is_not_alone() -> None:
    well = all_is_well()
    assert lost_answers(well, []).alone.count == 1
    assert lost_answers(well, [Window(4.0, 9.0)]).alone.count == 0
    slept = replace(well, payments=[replace(well.payments[0], generation=3)])
    assert lost_answers(slept, []).alone.count == 0
    faults = [WireRequest("status", REFERENCE, 500, "internal_error", 4.5)] * 2
    assert lost_answers(replace(well, wire=[*well.wire, *faults]), []).alone.count == 0


def test_a_clean_run_in_which_all_was_met_ends_with_0() -> None:
    result = a_result(all_is_well())
    assert (result.exit_status, result.verdicts[Verdict.OK]) == (0, 1)


@pytest.mark.parametrize("missing", ["create invisible", PLAN.disasters[0].name])
def test_a_kind_that_was_never_met_ends_with_2_and_is_named(missing: str) -> None:
    result = a_result(all_is_well(), missing=missing)
    assert result.exit_status == 2
    assert result.hits[missing] == 0
    assert missing in summary(result).rpartition("never met")[2]
    assert missing in as_markdown(result).partition("Never met")[2]


@pytest.mark.parametrize("name", bad_stories())
def test_anything_bad_ends_with_1_whatever_was_met(name: str) -> None:
    verdict, evidence = bad_stories()[name]
    result = a_result(evidence, missing="create invisible")
    assert result.exit_status == 1
    assert verdict in summary(result)


def test_the_report_tells_the_history_of_the_worst() -> None:
    _, evidence = bad_stories()["one reference moved money twice"]
    result = a_result(evidence)
    report = as_markdown(result)
    assert result.verdicts[Verdict.DUPLICATE] == 1
    assert f"key {KEY} of amber" in report
    assert "moves 1000 EUR" in report
    assert PLAN.digest() in report


def test_the_shortest_history_is_the_one_that_is_told() -> None:
    _, evidence = bad_stories()["paid, and no money moved"]
    other = [
        replace(one, key="another", call=one.call + 100) if one.key else one
        for one in evidence.lines[:2]
    ]
    both = replace(evidence, lines=[*evidence.lines, *other])
    cases = sort_by_key(both)
    worst = [one for one in findings_of(both) if one.verdict is Verdict.LIE]
    told = shortest(worst, cases)
    assert told is not None
    assert told.key == ("amber", KEY)
    assert len(tell(told)) == len(set(tell(told)))


def test_a_payment_with_a_planned_pair_counts_apart() -> None:
    found = lost_answers(all_is_well(), [], {KEY})
    assert (found.on_the_wire.count, found.alone.count, found.planned.count) == (0, 0, 1)


def test_a_pair_counts_where_the_providers_log_shows_both_of_it_in_their_order() -> None:
    names = [str(pair) for pair in pairs_of_a_run()]
    name = "taken, 401 → submission refused, NOT_ALLOWED"
    planned = [PlannedPair(name, KEY, PAYER, ())]
    first = WireRequest("create", REFERENCE, 401, "accept_then_401", 1.0)
    second = WireRequest("create", REFERENCE, 500, "refuse_500_code", 2.0)
    other = replace(second, reference="another payment")

    def met(*wire: WireRequest) -> int:
        counts = met_pairs(planned, replace(all_is_well(), wire=wire))
        assert list(counts) == names
        assert sum(counts.values()) == counts[name]
        return counts[name]

    assert met(second, first) == 1, "their times decide"
    assert met(first) == met(second) == met(first, other) == 0
    assert met(first, replace(second, operation="status")) == 0
    assert met(first, replace(second, fault="refuse_400")) == 0


def test_several_runs_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(pair) for pair in pairs_of_a_run()]
    for number, part in enumerate((names[:100], names[100:])):
        (tmp_path / f"{number}.json").write_text(json.dumps(dict.fromkeys(part, 2)))
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    assert main(files[:1]) == 1
    assert main(files) == 0
    assert f"{len(names)} of {len(names)} pairs met in 2 runs" in capsys.readouterr().out
