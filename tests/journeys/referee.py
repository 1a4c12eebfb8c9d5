"""What must hold for every payment, whatever was done to the stack: the guarantees, asserted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

from tests.journeys.gateway import Gateway, Paid, Row
from tests.journeys.provider import Truth

# By what a payment's story may go on from a stage; `final` is never left.
_NEXT = {
    "accepted": {"awaiting_payer", "unknown", "final"},
    "awaiting_payer": {"unknown", "final"},
    "unknown": {"awaiting_payer", "final"},
    "final": set(),
}


def assert_charged_once(gateway: Gateway, *payments: Paid) -> None:
    """Each ended SUCCESSFUL, by one movement, and its key still gives the first bytes."""
    for paid in payments:
        truth = assert_told_the_truth(gateway, paid)
        assert (truth.status, len(truth.movements)) == ("SUCCESSFUL", 1)
        assert_replayed(gateway, paid, status="SUCCESSFUL")


def assert_all_charged_once(gateway: Gateway, payments: Sequence[Paid], *, looked_at: int) -> None:
    """For many: all by the ledger and by our rows, some of them in every detail."""
    ids = [paid.id for paid in payments]
    unpaid = "SELECT id FROM payments WHERE status <> 'SUCCESSFUL' AND id = ANY(%s)"
    assert gateway.rows(unpaid, ids) == []
    for view in ("payments", "ledger"):
        moved = Counter(row["external_id"] for row in gateway.provider.rows(view))
        assert {payment_id: moved[payment_id] for payment_id in ids} == dict.fromkeys(ids, 1)
    assert_charged_once(gateway, *payments[:: max(1, len(payments) // looked_at)])


def assert_told_the_truth(gateway: Gateway, paid: Paid, *, contradictions: int = 0) -> Truth:
    """What we say of an ended payment is what the provider's ledger says."""
    shown, truth = gateway.show(paid), gateway.provider.truth(paid.reference)
    assert len(truth.creations) <= 1
    assert len(truth.movements) <= 1
    # One that the provider never took has failed, if it has ended; no other way to fail or pay.
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
    """The same request again: the same bytes, told to be a replay, and the status as it is now."""
    again = gateway.send(paid.order, paid.key)
    assert (again.status_code, again.content) == (201, paid.body)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Payment-Status"] == status


def assert_one_payment_a_key(gateway: Gateway, *payments: Paid) -> None:
    """Neither a key nor a tenant's order made a second payment."""
    for paid in payments:
        assert gateway.payments_of(paid.order) == 1, paid.order


def _assert_story_is_lawful(events: list[Row], shown: Row) -> None:
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "payment.accepted"
    assert (events[-1]["status"], events[-1]["stage"]) == (shown["status"], shown["stage"])
    # A contradiction is told after the end, which stays.
    stages = [event["stage"] for event in events if event["type"] != "payment.contradicted"]
    for earlier, later in pairwise(stages):
        assert later in _NEXT[earlier], stages


def _assert_each_submission_was_written_down(gateway: Gateway, paid: Paid, truth: Truth) -> None:
    """No more left than generations were allowed to send; a 401 is sent once more under one."""
    ((allowed,),) = gateway.rows(
        "SELECT count(*) FROM provider_exchanges WHERE payment_id = %s AND kind = 'submit'",
        paid.id,
    )
    sent = [row for row in truth.asked("create") if row["status"] != 401]
    assert len(sent) <= allowed
