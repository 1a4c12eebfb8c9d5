"""The verdict on each key. Pure: takes one case, returns what is wrong with it; no finding is OK.

Each rule is a function over a case. A rule yields nothing when it finds nothing wrong; tests
break each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from chaos.cases import Case, Finding, Verdict, read_body
from chaos.evidence import Creation, Movement, PaymentRow, Shown
from chaos.scripts import masked

FINAL: Final = frozenset({"SUCCESSFUL", "FAILED"})
# The longest time until the gateway checks an open payment again.
ASKED_AGAIN_WITHIN_S: Final = 1_860.0
# Due work is claimed within a second; two such polls and a slow machine.
OVERDUE_S: Final = 10.0
# (stage before, stage after) that consecutive events of a payment may have. Final is never left.
LAWFUL_MOVES: Final = frozenset(
    {
        ("", "accepted"),
        # A claim writes no event.
        ("accepted", "awaiting_payer"),
        ("accepted", "unknown"),
        ("accepted", "final"),
        ("accepted", "submitting"),
        ("submitting", "accepted"),
        ("submitting", "awaiting_payer"),
        ("submitting", "unknown"),
        ("awaiting_payer", "unknown"),
        ("unknown", "awaiting_payer"),
        ("submitting", "final"),
        ("awaiting_payer", "final"),
        ("unknown", "final"),
        ("final", "final"),
    }
)

Said = Iterator[tuple[Verdict, str]]
Rule = Callable[[Case], Said]


def judge_case(case: Case) -> list[Finding]:
    """All that is wrong with this key, the worst first."""
    found = [
        Finding(verdict, rule.__name__.removeprefix("_"), text, case.key)
        for rule in RULES
        for verdict, text in rule(case)
    ]
    order = list(Verdict)
    return sorted(found, key=lambda finding: order.index(finding.verdict))


def _one_payment_for_each_key(case: Case) -> Said:
    if len(case.payments) > 1:
        yield Verdict.DUPLICATE, f"{len(case.payments)} payments for one key"
    if len(case.told_ids) > 1:
        yield Verdict.DUPLICATE, f"clients were told of payments {', '.join(case.told_ids)}"


def _one_charge_for_each_payment(case: Case) -> Said:
    for what, rows in (("creations", case.creations), ("movements", case.movements)):
        if len(rows) > len(case.payments):
            yield Verdict.DUPLICATE, f"the provider has {len(rows)} {what} for one payment"
    moved = Counter(row.reference for row in case.movements)
    if any(count > 1 for count in moved.values()):
        yield Verdict.DUPLICATE, "one reference has moved money twice"


def _what_was_answered_exists(case: Case) -> Said:
    rows = {row.id: row for row in case.payments}
    for payment_id in case.told_ids:
        if payment_id not in rows:
            yield Verdict.LOST, f"answered 2xx, and payment {payment_id} is not in the database"
        shown = case.shown.get(payment_id)
        if shown is None or shown.status != 200:  # noqa: PLR2004
            status = None if shown is None else shown.status
            yield Verdict.LOST, f"answered 2xx, and GET of payment {payment_id} gives {status}"


def _it_is_what_was_asked_for(case: Case) -> Said:
    for row in case.payments:
        if wrong := _differences(case, row):
            yield Verdict.LOST, f"payment {row.id} is not what was asked for: {wrong}"
    for line in case.accepted:
        told = read_body(line)
        if wrong := [
            name for name in ("amount", "payer", "currency") if not _same(case, told, name)
        ]:
            yield Verdict.LIE, f"the answer differs from what was asked for: {wrong}"
            return


def _the_provider_knows_of_it(case: Case) -> Said:
    row = case.payment
    if row is None or case.creations:
        return
    refused = row.status == "FAILED" and row.evidence_verdict == "REFUSED"
    if not refused and row.status != "SUCCESSFUL":
        yield Verdict.LOST, f"{row.status}, and the provider never came to know of it"


def _it_ends(case: Case) -> Said:
    row, creation = case.payment, case.creation
    if row is None or row.status in FINAL:
        return
    if creation is not None and creation.status in FINAL:
        yield Verdict.STUCK, f"open ({row.stage}), though the provider says {creation.status}"
    if row.next_action_at is None:
        yield Verdict.STUCK, "open, and nothing is to be done for it ever"
        return
    due_in_s = row.next_action_at - case.taken_at
    if due_in_s > ASKED_AGAIN_WITHIN_S:
        yield Verdict.STUCK, f"open, and not asked for again within {due_in_s:.0f} s"
    held = row.lease_until is not None and row.lease_until > case.taken_at - OVERDUE_S
    if due_in_s < -OVERDUE_S and not held:
        yield Verdict.STUCK, f"due {-due_in_s:.0f} s ago, and nobody has it in hand"


def _every_client_gets_an_answer(case: Case) -> Said:
    for act in ("pay", "mutate"):
        asked = [line for line in case.lines if line.act == act]
        answered = any(line.outcome in ("ok", "refused") for line in asked)
        if asked and not answered:
            yield Verdict.STUCK, f"{act}: no answer, though all is healed and the client asked on"


def _an_end_is_the_truth(case: Case) -> Said:
    row, creation = case.payment, case.creation
    if row is None:
        return
    if row.status == "SUCCESSFUL" and not case.movements:
        yield Verdict.LIE, "SUCCESSFUL, and no money moved"
    if row.status == "FAILED" and case.movements:
        yield Verdict.LIE, "FAILED, and money moved"
    if row.status == "FAILED" and creation is not None and creation.status != "FAILED":
        yield Verdict.LIE, f"FAILED, and the provider says {creation.status}"


def _the_charge_is_what_was_asked_for(case: Case) -> Said:
    row = case.payment
    if row is None:
        return
    rows: list[Creation | Movement] = [*case.creations, *case.movements]
    for one in rows:
        charged = int(Decimal(one.amount) * 100)
        if (charged, one.currency) != (row.amount_minor, row.currency):
            yield Verdict.LIE, f"the provider has {one.amount} {one.currency}"
    for creation in case.creations:
        if (creation.party, creation.reference) != (case.order.get("payer"), row.reference):
            yield Verdict.LIE, "the provider has another payer or reference"


def _the_api_says_what_is_stored(case: Case) -> Said:
    for row in case.payments:
        shown = case.shown.get(row.id)
        if shown is None or shown.status != 200:  # noqa: PLR2004
            continue
        said = shown.document.get("status")
        if row.status in FINAL and said != row.status:
            yield Verdict.LIE, f"stored {row.status}, shown {said}"
        if shown.document.get("reference") != row.reference:
            yield Verdict.LIE, "another provider reference is shown than is stored"


def _one_answer_for_each_key(case: Case) -> Said:
    bodies = {line.body for line in case.accepted}
    if len(bodies) > 1:
        yield Verdict.LIE, f"{len(bodies)} different 2xx bodies for one key"
    statuses = {line.status for line in case.accepted}
    if len(statuses) > 1:
        yield Verdict.LIE, f"different statuses for one key: {sorted(map(str, statuses))}"


def _another_body_is_refused(case: Case) -> Said:
    for line in case.lines:
        if line.act != "mutate" or line.outcome in ("asked", "unknown"):
            continue
        if (line.status, line.code) != (422, "idempotency_key_reused"):
            yield Verdict.LIE, f"another body under a used key: {line.status} {line.code or ''}"


def _a_valid_request_is_not_refused(case: Case) -> Said:
    for line in case.lines:
        if line.act in ("pay", "look") and line.outcome == "refused":
            yield Verdict.LIE, f"{line.act} was refused: {line.status} {line.code}"


def _an_end_is_never_left(case: Case) -> Said:
    seen = _observed(case)
    ends = {one.status for one in seen} & FINAL | {row.status for row in case.payments} & FINAL
    if len(ends) > 1:
        yield Verdict.LIE, f"seen as {' and as '.join(sorted(ends))}"
    ended_at = min((one.answered_at for one in seen if one.status in FINAL), default=None)
    # Only requests sent after some client had seen the end: answers of two that overlap may cross.
    left = [one for one in seen if ended_at is not None and one.asked_at > ended_at]
    if any(one.status not in FINAL for one in left):
        yield Verdict.LIE, "seen as PENDING after an end was seen"


def _the_story_has_no_gap(case: Case) -> Said:
    for row in case.payments:
        story = [event for event in case.events if event.payment_id == row.id]
        if [event.sequence for event in story] != list(range(1, len(story) + 1)):
            yield Verdict.LIE, "the story's numbers have a gap"
        if not story or story[-1].status != row.status:
            yield Verdict.LIE, "the story does not end where the payment stands"
        before = ""
        for event in story:
            if (before, event.stage) not in LAWFUL_MOVES and before != event.stage:
                yield Verdict.LIE, f"the story goes from {before or 'nothing'} to {event.stage}"
            before = event.stage
        statuses = [event.status for event in story]
        if any(one in FINAL and two != one for one, two in pairwise(statuses)):
            yield Verdict.LIE, "the story leaves an end"
        yield from _told_story(row, story_shown=case.shown.get(row.id), stored=len(story))


def _told_story(row: PaymentRow, *, story_shown: Shown | None, stored: int) -> Said:
    if story_shown is None:
        return
    told = [event.get("sequence") for event in story_shown.events]
    if told != list(range(1, len(told) + 1)):
        yield Verdict.LIE, "the story that the API tells has a gap"
    if row.status in FINAL and len(told) < stored:
        yield Verdict.LIE, f"the API tells {len(told)} of {stored} lines of the story"


RULES: Final[Sequence[Rule]] = (
    _one_payment_for_each_key,
    _one_charge_for_each_payment,
    _what_was_answered_exists,
    _it_is_what_was_asked_for,
    _the_provider_knows_of_it,
    _an_end_is_the_truth,
    _the_charge_is_what_was_asked_for,
    _the_api_says_what_is_stored,
    _one_answer_for_each_key,
    _another_body_is_refused,
    _a_valid_request_is_not_refused,
    _an_end_is_never_left,
    _the_story_has_no_gap,
    _it_ends,
    _every_client_gets_an_answer,
)


def _differences(case: Case, row: PaymentRow) -> list[str]:
    order = case.order
    wanted = {
        "amount_minor": int(order.get("amount", 0)) * 100,
        "currency": order.get("currency"),
        # The number itself is stored encrypted, and chaos has no key.
        "payer_masked": masked(order.get("payer", "")),
        "external_id": order.get("external_id"),
        "tenant": case.key[0],
    }
    return [name for name, value in wanted.items() if getattr(row, name) != value]


def _same(case: Case, told: dict[str, Any], name: str) -> bool:
    asked, said = case.order.get(name), told.get(name)
    if name == "amount":
        # Requested in whole units, returned as a decimal.
        return str(said).removesuffix(".00") == str(asked)
    return bool(asked == said)


@dataclass(frozen=True, slots=True)
class _Observation:
    asked_at: float
    answered_at: float
    status: str


def _observed(case: Case) -> list[_Observation]:
    """The statuses that clients saw: from GET, and in the header of a replayed answer."""
    asked_at = {line.call: line.at for line in case.lines if line.outcome == "asked"}
    found = []
    for line in case.lines:
        if line.outcome != "ok":
            continue
        if line.act == "look":
            status = str(read_body(line).get("status"))
        elif "Payment-Status" in line.headers:
            status = line.headers["Payment-Status"]
        else:
            continue
        found.append(_Observation(asked_at.get(line.call, line.at), line.at, status))
    return found
