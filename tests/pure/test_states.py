"""The whole table of states: a payment can make no transition that is not written here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Final

import pytest

from payments_app.payments.model import Payment
from payments_app.payments.states import (
    INITIAL_STATE,
    TRANSITIONS,
    Event,
    IllegalTransition,
    Stage,
    State,
    Status,
    next_state,
)

NOW: Final = datetime(2026, 11, 20, tzinfo=UTC)
LATER: Final = NOW + timedelta(minutes=1)
IN_FLIGHT: Final = ("submitting", "awaiting_payer", "unknown")
# The lawful transitions, written again independently of the table: (stage, event) → state after.
LAWFUL: Final = {
    ("accepted", "payment.submitting"): ("PENDING", "submitting"),
    ("submitting", "payment.submitting"): ("PENDING", "submitting"),
    # A resend keeps the stage that is known.
    ("awaiting_payer", "payment.submitting"): ("PENDING", "awaiting_payer"),
    ("unknown", "payment.submitting"): ("PENDING", "unknown"),
    # After a restore: a payment that the backup calls unsent may have been sent since.
    ("accepted", "payment.unknown"): ("PENDING", "unknown"),
    # Only a submission that was not sent can go back to accepted.
    ("submitting", "payment.handed_back"): ("PENDING", "accepted"),
    **{(stage, "payment.pending"): ("PENDING", "awaiting_payer") for stage in IN_FLIGHT},
    **{(stage, "payment.unknown"): ("PENDING", "unknown") for stage in IN_FLIGHT},
    **{(stage, "payment.successful"): ("SUCCESSFUL", "final") for stage in IN_FLIGHT},
    **{(stage, "payment.failed"): ("FAILED", "final") for stage in IN_FLIGHT},
}
ALL_PAIRS: Final = list(product(Stage, Event))


def a_payment(stage: Stage) -> Payment:
    status = Status.FAILED if stage is Stage.FINAL else Status.PENDING
    return Payment(status=status, stage=stage, next_action_at=NOW, lease_until=NOW, final_at=None)


@pytest.mark.parametrize(("stage", "event"), ALL_PAIRS)
def test_each_event_in_each_stage_does_what_is_written_and_nothing_else(
    stage: Stage, event: Event
) -> None:
    if (stage.value, event.value) in LAWFUL:
        assert next_state(stage, event) == LAWFUL[stage.value, event.value]
    else:
        with pytest.raises(IllegalTransition):
            next_state(stage, event)


@pytest.mark.parametrize(("stage", "event"), ALL_PAIRS)
def test_a_refused_event_leaves_the_payment_as_it_was(stage: Stage, event: Event) -> None:
    payment = a_payment(stage)
    if (stage, event) in TRANSITIONS:
        payment.apply(event, LATER)
        assert (payment.status, payment.stage) == TRANSITIONS[stage, event]
        assert payment.updated_at == LATER
        return
    before = (payment.status, payment.stage, payment.next_action_at, payment.final_at)
    with pytest.raises(IllegalTransition):
        payment.apply(event, LATER)
    assert (payment.status, payment.stage, payment.next_action_at, payment.final_at) == before


@pytest.mark.parametrize("event", Event)
def test_the_end_is_never_left(event: Event) -> None:
    with pytest.raises(IllegalTransition):
        next_state(Stage.FINAL, event)


@pytest.mark.parametrize("event", Event)
def test_nothing_ends_before_it_may_have_been_sent(event: Event) -> None:
    assert TRANSITIONS.get((Stage.ACCEPTED, event), INITIAL_STATE).status is Status.PENDING


def test_status_and_stage_agree_wherever_a_payment_can_be() -> None:
    for state in [INITIAL_STATE, *TRANSITIONS.values()]:
        assert (state.stage is Stage.FINAL) == (state.status is not Status.PENDING)


def test_every_stage_can_be_reached_and_from_every_open_one_both_ends() -> None:
    def reachable(start: Stage) -> set[State]:
        found: set[State] = set()
        edge = {start}
        while edge:
            states = {TRANSITIONS[s, e] for s, e in product(edge, Event) if (s, e) in TRANSITIONS}
            edge = {state.stage for state in states - found}
            found |= states
        return found

    assert {state.stage for state in reachable(INITIAL_STATE.stage)} == set(Stage)
    for stage in set(Stage) - {Stage.FINAL}:
        assert {state.status for state in reachable(stage)} == set(Status)


@pytest.mark.parametrize("event", [Event.SUCCESSFUL, Event.FAILED])
def test_an_end_takes_the_payment_off_everyones_list(event: Event) -> None:
    payment = a_payment(Stage.AWAITING_PAYER)
    assert payment.apply(event, LATER)
    assert payment.is_final
    assert (payment.next_action_at, payment.lease_until) == (None, None)
    assert payment.final_at == LATER


def test_an_event_that_changes_nothing_says_so() -> None:
    payment = a_payment(Stage.AWAITING_PAYER)
    assert not payment.apply(Event.PENDING, LATER)
    assert payment.apply(Event.UNKNOWN, LATER)
    assert not payment.apply(Event.UNKNOWN, LATER)
    assert (payment.next_action_at, payment.lease_until) == (NOW, NOW)
