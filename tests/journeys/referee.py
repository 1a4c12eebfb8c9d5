"""Asserts the guarantees that must hold for every payment, whatever happened to the stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

from tests.journeys.gateway import Gateway, Paid, Row
from tests.journeys.provider import Truth

# The stages that may follow each stage; `final` has none.
_NEXT = {
    "accepted": {"awaiting_payer", "unknown", "final"},
    "awaiting_payer": {"unknown", "final"},
    "unknown": {"awaiting_payer", "final"},
    "final": set(),
}


def assert_charged_once(gateway: Gateway, *payments: Paid) -> None:
    """Each ended SUCCESSFUL, with one movement; its key still returns the first bytes."""
    for paid in payments:
        truth = assert_told_the_truth(gateway, paid)
        assert (truth.status, len(truth.movements)) == ("SUCCESSFUL", 1)
        assert_replayed(gateway, paid, status="SUCCESSFUL")


def assert_all_charged_once(gateway: Gateway, payments: Sequence[Paid], *, looked_at: int) -> None:
    """For many payments: all by the ledger and by our rows, and some of them in every detail."""
    ids = [paid.id for paid in payments]
    unpaid = "SELECT id FROM payments WHERE status <> 'SUCCESSFUL' AND id = ANY(%s)"
    assert gateway.rows(unpaid, ids) == []
    for view in ("payments", "ledger"):
        moved = Counter(row["external_id"] for row in gateway.provider.rows(view))
        assert {payment_id: moved[payment_id] for payment_id in ids} == dict.fromkeys(ids, 1)
    assert_charged_once(gateway, *payments[:: max(1, len(payments) // looked_at)])


def assert_told_the_truth(gateway: Gateway, paid: Paid, *, contradictions: int = 0) -> Truth:
    """What we show of an ended payment is what the provider's ledger says."""
    shown, truth = gateway.show(paid), gateway.provider.truth(paid.reference)
    assert len(truth.creations) <= 1
    assert len(truth.movements) <= 1
    # A payment that the provider never accepted has FAILED. Else our status is the provider's.
    assert shown["status"] == (truth.status or "FAILED")
    assert bool(truth.movements) == (shown["status"] == "SUCCESSFUL")
    for row in (*truth.creations, *truth.movements):
        assert (row["external_id"], row["party"]) == (paid.id, paid.order["payer"])
        asked = (Decimal(shown["amount"]), paid.order["currency"])
        assert (Decimal(row["amount"]), row["currency"]) == asked
    for movement in truth.movements:
        assert movement["financial_transaction_id"] == shown["provider_transaction_id"]
    events = gateway.story(paid)
    _assert_story_is_lawful(events, shown)
    told = [event for event in events if event["type"] == "payment.contradicted"]
    assert len(told) == contradictions
    _assert_each_submission_was_written_down(gateway, paid, truth)
    return truth


def assert_replayed(gateway: Gateway, paid: Paid, *, status: str) -> None:
    """The same request returns the same bytes, marked as a replay, with the current status."""
    again = gateway.send(paid.order, paid.key)
    assert (again.status_code, again.content) == (201, paid.body)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Payment-Status"] == status


def assert_one_payment_a_key(gateway: Gateway, *payments: Paid) -> None:
    """No key and no order made a second payment."""
    for paid in payments:
        assert gateway.payments_of(paid.order) == 1, paid.order


def _assert_story_is_lawful(events: list[Row], shown: Row) -> None:
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "payment.accepted"
    assert (events[-1]["status"], events[-1]["stage"]) == (shown["status"], shown["stage"])
    # A contradiction is recorded after the end, which stays.
    stages = [event["stage"] for event in events if event["type"] != "payment.contradicted"]
    for earlier, later in pairwise(stages):
        assert later in _NEXT[earlier], stages


def _assert_each_submission_was_written_down(gateway: Gateway, paid: Paid, truth: Truth) -> None:
    """No more submissions than generations; one that got a 401 is sent again in its generation."""
    ((allowed,),) = gateway.rows(
        "SELECT count(*) FROM provider_exchanges WHERE payment_id = %s AND kind = 'submit'",
        paid.id,
    )
    sent = [row for row in truth.asked("create") if row["status"] != 401]
    assert len(sent) <= allowed
