"""Hand-made evidence: one payment without a fault, and every way to falsify it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chaos.cases import Finding, sort_by_key
from chaos.evidence import (
    Creation,
    EventRow,
    Evidence,
    ExchangeRow,
    KeyRow,
    Movement,
    PaymentRow,
    Shown,
    Told,
    Window,
    WireRequest,
)
from chaos.history import Line
from chaos.invariants import judge_all
from chaos.scripts import masked
from chaos.verdicts import judge_case

KEY = "6f1c9c1e-6f2f-4b0e-8f57-0d6a3f6f7a01"
ID = "01900000-0000-7000-8000-000000000001"
REFERENCE = "4c2a1b9e-1111-4222-8333-444455556666"
PAYER = "256772123456"
ORDER = {"amount": 1000, "currency": "EUR", "payer": PAYER, "metadata": {"key": KEY}}
TOLD = {"id": ID, "status": "PENDING", "amount": "1000.00", "currency": "EUR", "payer": PAYER}
PROBLEM = {"Content-Type": "application/problem+json"}

Bend = Callable[[Evidence], Evidence]


def line(at: float, call: int, act: str, outcome: str, **more: Any) -> Line:
    body = more.pop("body", None)
    text = body if isinstance(body, str) or body is None else json.dumps(body)
    key = None if act in ("look", "peek", "page") else KEY
    client = more.pop("client", "amber-1")
    tenant = more.pop("tenant", "amber")
    return Line(at, call, client, tenant, act, outcome, key=key, body=text, **more)  # type: ignore[arg-type]


def asked_and_answered() -> list[Line]:
    """A request without an answer, its retry with one; then queries until the payment's end."""
    return [
        line(1.0, 1, "pay", "asked", body=ORDER),
        line(1.1, 1, "pay", "unknown", error="ReadTimeout"),
        line(1.2, 2, "pay", "asked", body=ORDER),
        line(1.3, 2, "pay", "ok", body=TOLD, status=201),
        line(1.4, 3, "look", "asked", payment_id=ID),
        line(1.5, 3, "look", "ok", payment_id=ID, status=200, body={"status": "PENDING"}),
        line(6.0, 4, "look", "asked", payment_id=ID),
        line(6.1, 4, "look", "ok", payment_id=ID, status=200, body={"status": "SUCCESSFUL"}),
    ]


def a_payment(**changes: Any) -> PaymentRow:
    row = PaymentRow(
        id=ID,
        tenant="amber",
        chaos_key=KEY,
        reference=REFERENCE,
        amount_minor=100_000,
        currency="EUR",
        payer_masked=masked(PAYER),
        external_id=None,
        status="SUCCESSFUL",
        stage="final",
        generation=2,
        submissions=1,
        evidence_verdict="SUCCESSFUL",
        next_action_at=None,
        lease_until=None,
        created_at=1.1,
        final_at=5.0,
    )
    return replace(row, **changes)


def story_of(*steps: tuple[str, str, str]) -> list[EventRow]:
    return [
        EventRow(ID, number, f"payment.{kind}", status, stage, 1.0 + number)
        for number, (kind, status, stage) in enumerate(steps, start=1)
    ]


def shown(status: str, events: int, **changes: Any) -> Shown:
    document = {"status": status, "reference": REFERENCE, **changes}
    return Shown(200, document, [{"sequence": number} for number in range(1, events + 1)])


ACCEPTED = ("accepted", "PENDING", "accepted")
WAITING = ("pending", "PENDING", "awaiting_payer")
PAID = ("successful", "SUCCESSFUL", "final")
FAILED = ("failed", "FAILED", "final")


def all_is_well() -> Evidence:
    """One payment, requested twice, charged once, reported correctly."""
    return Evidence(
        taken_at=100.0,
        lines=asked_and_answered(),
        payments=[a_payment()],
        keys=[KeyRow("amber", KEY, ID)],
        exchanges=[
            ExchangeRow(ID, 1, "submit", REFERENCE, "UNKNOWN", "timeout", 2.0, 3.0),
            ExchangeRow(ID, 2, "check", REFERENCE, "SUCCESSFUL", "successful", 4.9, 5.0),
        ],
        events=story_of(ACCEPTED, WAITING, PAID),
        creations=[Creation(REFERENCE, ID, "1000", "EUR", PAYER, "SUCCESSFUL", 2.1, 4.0)],
        movements=[Movement(REFERENCE, ID, "1000", "EUR", 4.0)],
        wire=[WireRequest("create", REFERENCE, 202, None, 2.1)],
        shown={ID: shown("SUCCESSFUL", 3)},
        told=[told(number) for number in (1, 1, 2, 3)],
    )


def told(sequence: int, **changes: Any) -> Told:
    """A correct webhook about the payment."""
    one = Told(
        tenant="amber",
        message_id=f"msg_{sequence}",
        digest=f"body {sequence}",
        payment_id=ID,
        sequence=sequence,
        genuine=True,
        stamped_s=0.0,
        taken=True,
        at=sequence,
    )
    return replace(one, **changes)


def still_open(**changes: Any) -> Evidence:
    """The same payment before the payer's answer: open, with its next check soon."""
    row = {
        "status": "PENDING",
        "stage": "awaiting_payer",
        "evidence_verdict": None,
        "next_action_at": 130.0,
        "final_at": None,
        **changes,
    }
    return replace(
        all_is_well(),
        lines=asked_and_answered()[:6],
        payments=[a_payment(**row)],
        events=story_of(ACCEPTED, WAITING),
        creations=[Creation(REFERENCE, ID, "1000", "EUR", PAYER, "PENDING", 2.1, None)],
        movements=[],
        shown={ID: shown("PENDING", 2)},
    )


def failed() -> Evidence:
    """The payer has refused: FAILED everywhere, and no money moved."""
    row = a_payment(status="FAILED", evidence_verdict="FAILED")
    lines = asked_and_answered()
    lines[-1] = line(6.1, 4, "look", "ok", payment_id=ID, status=200, body={"status": "FAILED"})
    return replace(
        all_is_well(),
        lines=lines,
        payments=[row],
        events=story_of(ACCEPTED, WAITING, FAILED),
        creations=[Creation(REFERENCE, ID, "1000", "EUR", PAYER, "FAILED", 2.1, 4.0)],
        movements=[],
        shown={ID: shown("FAILED", 3)},
    )


def with_lines(*more: Line) -> Evidence:
    return replace(all_is_well(), lines=[*asked_and_answered(), *more])


def with_payment(**changes: Any) -> Evidence:
    return replace(all_is_well(), payments=[a_payment(**changes)])


def findings_of(evidence: Evidence) -> list[Finding]:
    return [
        *judge_all(evidence),
        *(one for case in sort_by_key(evidence) for one in judge_case(case)),
    ]


def bad_stories() -> dict[str, tuple[str, Evidence]]:
    """A broken rule → (the verdict that it must get, its evidence)."""
    return {
        **_duplicates(),
        **_losses(),
        **_lies_about_money(),
        **_lies_in_answers(),
        **_lies_in_the_story(),
        **_stuck(),
        **_walls(),
        **_news(),
    }


def _news() -> dict[str, tuple[str, Evidence]]:
    well = all_is_well()
    in_order = list(well.told or ())
    return {
        "an event was never told": ("LOST", replace(well, told=in_order[:-1])),
        "an event was told and not taken": (
            "LOST",
            replace(well, told=[*in_order[:-1], told(3, taken=False)]),
        ),
        "two bodies under one id": (
            "LIE",
            replace(well, told=[*in_order, told(3, digest="another")]),
        ),
        "news that nobody signed": ("LIE", replace(well, told=[*in_order, told(3, genuine=False)])),
        "news of an hour ago": ("LIE", replace(well, told=[*in_order, told(3, stamped_s=-3600.0)])),
        "another tenant's news": ("LIE", replace(well, told=[*in_order, told(3, tenant="basil")])),
        "the end before the beginning": (
            "LIE",
            replace(well, told=[told(3, at=0.5), *in_order]),
        ),
    }


def _duplicates() -> dict[str, tuple[str, Evidence]]:
    well = all_is_well()
    other = a_payment(id="other", reference="other-reference")
    told_twice = line(7.1, 5, "pay", "ok", status=201, body={**TOLD, "id": "other"})
    return {
        "two payments for one key": ("DUPLICATE", replace(well, payments=[*well.payments, other])),
        "two payments told": ("DUPLICATE", with_lines(told_twice)),
        "one reference moved money twice": (
            "DUPLICATE",
            replace(well, movements=[*well.movements, Movement(REFERENCE, ID, "1000", "EUR", 9)]),
        ),
        "sent again under another reference": (
            "DUPLICATE",
            replace(
                well,
                creations=[
                    *well.creations,
                    Creation("new", ID, "1000", "EUR", PAYER, "SUCCESSFUL", 9, 9),
                ],
            ),
        ),
        "an exchange under another reference": (
            "DUPLICATE",
            replace(
                well,
                exchanges=[
                    *well.exchanges,
                    ExchangeRow(ID, 3, "submit", "new", None, None, 9, None),
                ],
            ),
        ),
        "a payment that no key holds": ("DUPLICATE", replace(well, keys=[])),
        "another body was charged": (
            "DUPLICATE",
            replace(
                with_lines(line(7.0, 5, "mutate", "ok", status=201, body=TOLD)),
                payments=[*well.payments, replace(other, amount_minor=100_100)],
            ),
        ),
    }


def _losses() -> dict[str, tuple[str, Evidence]]:
    well = all_is_well()
    refused = with_payment(status="FAILED", evidence_verdict="FAILED")
    return {
        "answered, and not stored": (
            "LOST",
            replace(well, payments=[], keys=[], exchanges=[], events=[]),
        ),
        "answered, and not shown": ("LOST", replace(well, shown={ID: Shown(404, {}, [])})),
        "stored with another amount": ("LOST", with_payment(amount_minor=99_999)),
        "stored for another payer": ("LOST", with_payment(payer_masked=masked("256772999998"))),
        "never sent": ("LOST", replace(still_open(), creations=[], wire=[])),
        "failed without a refusal, never sent": (
            "LOST",
            replace(refused, creations=[], movements=[], wire=[]),
        ),
        "a charge that no row knows": (
            "LOST",
            replace(
                well,
                movements=[*well.movements, Movement("unheard-of", "nobody", "5", "EUR", 9)],
            ),
        ),
    }


# house: allow length because it is a table of cases, read line by line
def _lies_about_money() -> dict[str, tuple[str, Evidence]]:
    well, bad = all_is_well(), failed()
    return {
        "paid, and no money moved": ("LIE", replace(well, movements=[])),
        "failed, and money moved": ("LIE", replace(bad, movements=well.movements)),
        "failed, and the provider has it open": (
            "LIE",
            replace(bad, creations=[replace(bad.creations[0], status="PENDING")]),
        ),
        "another amount charged": (
            "LIE",
            replace(well, movements=[Movement(REFERENCE, ID, "10", "EUR", 4.0)]),
        ),
        "another payer charged": (
            "LIE",
            replace(well, creations=[replace(well.creations[0], party="256772999999")]),
        ),
        "sums that differ": ("LIE", with_payment(amount_minor=100_001)),
        "sent before it was written": (
            "LIE",
            replace(
                well, exchanges=[replace(well.exchanges[0], started_at=2.5), well.exchanges[1]]
            ),
        ),
        "sent twice for one row": (
            "LIE",
            replace(well, wire=[*well.wire, WireRequest("create", REFERENCE, 409, None, 3.0)]),
        ),
    }


def _lies_in_answers() -> dict[str, tuple[str, Evidence]]:
    well = all_is_well()
    other_bytes = line(7.1, 5, "pay", "ok", status=201, body={**TOLD, "stage": "x"})
    refused = line(7.1, 5, "pay", "refused", status=409, code="external_id_taken", headers=PROBLEM)
    reused = line(7.1, 5, "mutate", "refused", status=409, code="other", headers=PROBLEM)
    return {
        "two answers that differ by a byte": ("LIE", with_lines(other_bytes)),
        "201 once and 200 then": (
            "LIE",
            with_lines(line(7.1, 5, "pay", "ok", status=200, body=TOLD)),
        ),
        "another amount answered": (
            "LIE",
            replace(
                well,
                lines=[
                    replace(one, body=json.dumps({**TOLD, "amount": "1"}))
                    if one.act == "pay" and one.outcome == "ok"
                    else one
                    for one in well.lines
                ],
            ),
        ),
        "another body answered 201": (
            "LIE",
            with_lines(line(7.0, 5, "mutate", "ok", status=201, body=TOLD)),
        ),
        "another body answered 409": ("LIE", with_lines(reused)),
        "a valid request refused": ("LIE", with_lines(refused)),
    }


def _lies_in_the_story() -> dict[str, tuple[str, Evidence]]:
    well = all_is_well()
    late = line(8.0, 9, "look", "asked", payment_id=ID)
    pending = line(8.1, 9, "look", "ok", payment_id=ID, status=200, body={"status": "PENDING"})
    return {
        "shown otherwise than stored": ("LIE", replace(well, shown={ID: shown("FAILED", 3)})),
        "another reference shown": (
            "LIE",
            replace(well, shown={ID: shown("SUCCESSFUL", 3, reference="x")}),
        ),
        "pending again after the end": ("LIE", with_lines(late, pending)),
        "pending again beside a replay": (
            "LIE",
            with_lines(
                line(8.0, 9, "pay", "asked", body=ORDER),
                line(
                    8.1,
                    9,
                    "pay",
                    "ok",
                    status=201,
                    body=TOLD,
                    headers={"Payment-Status": "PENDING"},
                ),
            ),
        ),
        "two ends seen": (
            "LIE",
            with_lines(late, replace(pending, body=json.dumps({"status": "FAILED"}))),
        ),
        "a gap in the story": ("LIE", replace(well, events=[well.events[0], well.events[2]])),
        "a story that leaves the end": (
            "LIE",
            replace(well, events=story_of(ACCEPTED, PAID, WAITING, PAID)),
        ),
        "a story without its end": ("LIE", replace(well, events=story_of(ACCEPTED, WAITING))),
        "a story that jumps": (
            "LIE",
            replace(well, events=story_of(("x", "PENDING", "unknown"), WAITING, PAID)),
        ),
        "a gap in the story that is told": (
            "LIE",
            replace(well, shown={ID: replace(shown("SUCCESSFUL", 3), events=[{"sequence": 2}])}),
        ),
        "a line of the story that is not told": (
            "LIE",
            replace(well, shown={ID: shown("SUCCESSFUL", 2)}),
        ),
    }


def _stuck() -> dict[str, tuple[str, Evidence]]:
    unanswered = [line(1.0, 1, "pay", "asked", body=ORDER)]
    unknown = line(1.1, 1, "pay", "unknown", error="ReadTimeout")
    ended = replace(still_open().creations[0], status="SUCCESSFUL", ended_at=4.0)
    moved = [Movement(REFERENCE, ID, "1000", "EUR", 4.0)]
    return {
        "open though the provider has ended it": (
            "STUCK",
            replace(still_open(), creations=[ended], movements=moved),
        ),
        "open, with nothing to be done": ("STUCK", still_open(next_action_at=None)),
        "open, and due in a day": ("STUCK", still_open(next_action_at=86_500.0)),
        "overdue, in nobody's hand": ("STUCK", still_open(next_action_at=60.0)),
        "overdue, in a dead hand": ("STUCK", still_open(next_action_at=60.0, lease_until=60.0)),
        "never answered": ("STUCK", Evidence(taken_at=100.0, lines=[*unanswered, unknown])),
    }


def _walls() -> dict[str, tuple[str, Evidence]]:
    peeked = line(7.1, 5, "peek", "ok", tenant="basil", payment_id=ID, status=200, body=TOLD)
    told = line(
        7.1,
        5,
        "peek",
        "refused",
        tenant="basil",
        payment_id=ID,
        status=403,
        code="x",
        headers=PROBLEM,
    )
    page = line(7.1, 5, "page", "ok", tenant="basil", status=200, body={"data": [{"id": ID}]})
    bare = line(7.1, 5, "look", "unknown", payment_id=ID, status=500)
    away = line(50.0, 5, "pay", "unknown", status=503, code="x", headers=PROBLEM)
    return {
        "another tenant's payment seen": ("LIE", with_lines(peeked)),
        "another tenant's payment known to be there": ("LIE", with_lines(told)),
        "another tenant's payment listed": ("LIE", with_lines(page)),
        "an error without a code": ("LIE", with_lines(bare)),
        "turned away for want of Redis": (
            "LIE",
            replace(with_lines(away), redis=False, database_away=[Window(10.0, 12.0)]),
        ),
    }
