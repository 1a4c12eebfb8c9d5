"""Each verdict is provoked: a check that cannot fail is worth nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos import invariants, verdicts
from chaos.cases import Verdict, sort_by_key
from chaos.evidence import Evidence, ExchangeRow, Window, WireRequest
from tests.chaos.stories import (
    ACCEPTED,
    FAILED,
    ID,
    PROBLEM,
    REFERENCE,
    TOLD,
    all_is_well,
    asked_and_answered,
    bad_stories,
    failed,
    findings_of,
    line,
    shown,
    still_open,
    story_of,
    with_lines,
)

BAD = bad_stories()


@pytest.mark.parametrize("name", BAD)
def test_what_must_not_be_gets_its_verdict(name: str) -> None:
    expected, evidence = BAD[name]
    assert expected in {finding.verdict for finding in findings_of(evidence)}


@pytest.mark.parametrize("rule", verdicts.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_about_a_key_can_fail(rule: verdicts.Rule) -> None:
    cases = [case for _, evidence in BAD.values() for case in sort_by_key(evidence)]
    assert any(list(rule(case)) for case in cases)


@pytest.mark.parametrize("rule", invariants.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_about_the_whole_can_fail(rule: invariants.Rule) -> None:
    assert any(list(rule(evidence)) for _, evidence in BAD.values())


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(all_is_well(), id="paid"),
        pytest.param(failed(), id="failed"),
        pytest.param(still_open(), id="the payer is silent"),
        pytest.param(still_open(next_action_at=60.0, lease_until=120.0), id="in hand"),
        pytest.param(
            with_lines(
                line(7.0, 5, "mutate", "asked"),
                line(
                    7.1,
                    5,
                    "mutate",
                    "refused",
                    status=422,
                    code="idempotency_key_reused",
                    headers=PROBLEM,
                ),
            ),
            id="another body is refused",
        ),
        pytest.param(
            with_lines(
                line(
                    7.1,
                    5,
                    "peek",
                    "refused",
                    tenant="basil",
                    payment_id=ID,
                    status=404,
                    code="payment_not_found",
                    headers=PROBLEM,
                )
            ),
            id="another tenant's payment is not there",
        ),
    ],
)
def test_what_may_be_is_ok(evidence: Evidence) -> None:
    assert findings_of(evidence) == []


def test_a_refusal_that_is_stored_needs_no_payment_at_the_provider() -> None:
    row = replace(failed().payments[0], evidence_verdict="REFUSED")
    evidence = replace(
        failed(),
        payments=[row],
        creations=[],
        events=story_of(ACCEPTED, FAILED),
        shown={ID: shown("FAILED", 2)},
    )
    assert findings_of(evidence) == []


def test_a_claim_may_send_again_after_a_401_and_only_then() -> None:
    well = all_is_well()
    refused = WireRequest("create", REFERENCE, 401, None, 2.1)
    again = WireRequest("create", REFERENCE, 202, None, 2.2)
    assert findings_of(replace(well, wire=[refused, again])) == []
    assert findings_of(replace(well, wire=[replace(refused, status=500), again])) != []


def test_a_resend_has_a_row_of_its_own() -> None:
    well = all_is_well()
    row = ExchangeRow(ID, 3, "submit", REFERENCE, "DUPLICATE", "duplicate", 3.5, 3.6)
    again = WireRequest("create", REFERENCE, 409, None, 3.55)
    assert (
        findings_of(replace(well, exchanges=[*well.exchanges, row], wire=[*well.wire, again])) == []
    )


def test_two_looks_that_overlap_may_cross() -> None:
    slow = line(5.9, 9, "look", "asked", client="amber-2", payment_id=ID)
    body = {"status": "PENDING"}
    late = line(6.2, 9, "look", "ok", client="amber-2", payment_id=ID, status=200, body=body)
    assert findings_of(with_lines(slow, late)) == []


def test_without_redis_the_database_is_still_an_excuse() -> None:
    away = line(11.0, 5, "pay", "unknown", status=503, code="x", headers=PROBLEM)
    evidence = replace(with_lines(away), redis=False, database_away=[Window(10.0, 12.0)])
    assert findings_of(evidence) == []


def test_the_worst_of_a_key_comes_first() -> None:
    well = all_is_well()
    evidence = replace(well, movements=[*well.movements] * 2, shown={ID: shown("FAILED", 3)})
    (case,) = sort_by_key(evidence)
    found = verdicts.judge_case(case)
    assert found[0].verdict is Verdict.DUPLICATE
    assert Verdict.LIE in {finding.verdict for finding in found}


def test_a_key_of_one_tenant_is_not_that_of_another() -> None:
    borrowed = [
        replace(one, tenant="basil", client="basil-1")
        for one in asked_and_answered()
        if one.act == "pay"
    ]
    evidence = with_lines(*borrowed)
    assert {case.key[0] for case in sort_by_key(evidence)} == {"amber", "basil"}
    assert any(finding.key and finding.key[0] == "basil" for finding in findings_of(evidence))


def test_what_a_client_was_told_counts_even_when_nothing_is_stored() -> None:
    evidence = Evidence(
        taken_at=9.0, lines=[line(1.0, 1, "pay", "ok", status=201, body=TOLD)], shown={}
    )
    assert {finding.verdict for finding in findings_of(evidence)} >= {Verdict.LOST}
