"""A worker that was suspended and resumes late: it sends nothing, it changes nothing (G2).

SIGSTOP stands for a machine that sleeps, a debugger, a paused container. Most tests end the
lease in the database; one waits for its real 30 seconds.
"""

from __future__ import annotations

import time

import pytest

from devstack.supervisor import Process, wait_until
from payments_app.payments.claims import LEASE, LEASE_RENEW_BELOW_S
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid, new_payer
from tests.journeys.referee import assert_charged_once, assert_told_the_truth

# With less of its lease left than this, a worker asks the database before it sends.
LATE_S = LEASE.total_seconds() - LEASE_RENEW_BELOW_S
# Enough time to suspend the worker before the provider answers, also on a stalled machine.
HELD_S = 4.0


def test_a_worker_suspended_before_it_sends_finds_its_claim_taken_and_sends_nothing(
    gateway: Gateway,
) -> None:
    gateway.provider.settings(callback_mode="none")
    with gateway.one_working() as (sleeper, other):
        gateway.let_token_run_out()
        gateway.provider.fault("token_slow", parameters={"delay_s": HELD_S})
        paid = gateway.pay()
        gateway.await_fault("token_slow")
        sleeper.stop()
        # Counted from after the claim, which a busy machine may make late.
        late_at = time.monotonic() + LATE_S
        generation = int(gateway.row(paid)["generation"])
        assert gateway.provider.truth(paid.reference).requests == []
        gateway.stack.redis.flush()
        gateway.end_leases(paid)
        other.cont()
        gateway.await_end(paid)
        wait_until(lambda: time.monotonic() > late_at, what="it is early", limit_s=PATIENCE_S)
        before = gateway.row(paid), gateway.provider.truth(paid.reference)
        sleeper.cont()
        assert _verdict_brought_home(gateway, paid, generation) == "NOT_SENT"
        assert (gateway.row(paid), gateway.provider.truth(paid.reference)) == before
    assert [call["status"] for call in before[1].asked("create")] == [202]
    assert_charged_once(gateway, paid)


@pytest.mark.parametrize(
    ("operation", "kind", "brings"),
    [
        ("create", None, "PENDING"),
        ("create", "accept_then_reset", "UNKNOWN"),
        ("status", None, "PENDING"),
        ("status", "garbage", "UNKNOWN"),
    ],
)
def test_an_answer_that_a_suspended_worker_brings_home_late_is_kept_and_changes_nothing(
    gateway: Gateway, operation: str, kind: str | None, brings: str
) -> None:
    gateway.provider.settings(callback_mode="none", approval_delay_s=None)
    with gateway.one_working() as (sleeper, other):
        paid, generation = _suspended_with_an_answer(gateway, sleeper, operation, kind, {})
        gateway.end_leases(paid)
        other.cont()
        _await_taken_over(gateway, paid, after=generation)
        before = gateway.row(paid)
        sleeper.cont()
        assert _verdict_brought_home(gateway, paid, generation) == brings
        assert gateway.row(paid) == before
    gateway.provider.approve(paid.reference)
    gateway.end_leases(paid)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)


def test_a_late_answer_that_contradicts_the_end_is_told_and_changes_no_end(
    gateway: Gateway,
) -> None:
    # Within a minute its tenant is held, so no other test may use it.
    own = Gateway(gateway.stack, tenant="contradicted")
    own.payers = gateway.payers
    own.provider.settings(callback_mode="none")
    with own.one_working() as (sleeper, other):
        paid, generation = _suspended_with_an_answer(
            own, sleeper, "status", "unknown_status_word", {"word": "FAILED"}
        )
        own.end_leases(paid)
        other.cont()
        own.await_end(paid)
        before = own.row(paid)
        sleeper.cont()
        assert _verdict_brought_home(own, paid, generation) == "FAILED"
        assert own.row(paid) == {**before, "sequence": before["sequence"] + 1}
    assert [event["type"] for event in own.story(paid)][-2:] == [
        "payment.successful",
        "payment.contradicted",
    ]
    truth = assert_told_the_truth(own, paid, contradictions=1)
    assert len(truth.movements) == 1


@pytest.mark.slow
def test_a_lease_that_ends_in_real_time_lets_another_take_over_and_its_holder_send_no_more(
    gateway: Gateway,
) -> None:
    """Two payments in one suspended worker; both leases run out by themselves.

    `sent` was sent: the other worker takes it over when the lease ends by the database's clock.
    `refused` got a 401 and waits for a new token. Only the process's own lease check, which ends a
    moment before the database's, prevents its second attempt.
    """
    gateway.provider.settings(callback_mode="none")
    with gateway.one_working() as (sleeper, other):
        sent, refused = _sent_and_refused(gateway, sleeper)
        other.cont()
        gateway.await_end(sent)
        _await_database_time(gateway, refused, before_lease_end_s=1.5)
        row = gateway.row(sent)
        sleeper.cont()
        assert _verdict_brought_home(gateway, sent, 1) == "UNKNOWN"
        gateway.await_end(refused)
        assert gateway.row(sent) == row
    calls = gateway.provider.truth(refused.reference).requests
    assert [call["operation"] for call in calls[:2]] == ["create", "status"], "it sent once more"
    assert [call["status"] for call in calls if call["operation"] == "create"] == [401, 202]
    assert_charged_once(gateway, sent, refused)


def _sent_and_refused(gateway: Gateway, sleeper: Process) -> tuple[Paid, Paid]:
    gateway.await_end(gateway.pay())
    _let_others_rest(gateway)
    payer = new_payer()
    match = {"msisdn": payer}
    gateway.provider.fault("accept_then_hang", match=match, parameters={"delay_s": 120})
    sent = gateway.pay(payer=payer)
    gateway.await_call(sent, "create")
    # Earlier by so much that its lease is over while that of the second has just not ended.
    _await_database_time(gateway, sent, before_lease_end_s=LEASE.total_seconds() - 4)
    gateway.provider.expire_tokens()
    # The worker is suspended meanwhile anyway; the token must come after this test's next steps.
    gateway.provider.fault("token_slow", parameters={"delay_s": 10.0})
    refused = gateway.pay()
    gateway.await_fault("token_slow")
    gateway.await_call(refused, "create")
    sleeper.stop()
    gateway.stack.redis.flush()
    return sent, refused


def _let_others_rest(gateway: Gateway) -> None:
    """Postpone what other tests left open: a check of theirs would take the 401 and the token."""
    in_hand = "SELECT 1 FROM payments WHERE status = 'PENDING' AND lease_until IS NOT NULL"

    def at_rest() -> bool:
        # What was in hand a moment ago may be open again, so all are postponed each time.
        has_in_hand = bool(gateway.rows(in_hand))
        gateway.rows(
            "UPDATE payments SET next_action_at = clock_timestamp() + interval '1 hour'"
            " WHERE status = 'PENDING' AND lease_until IS NULL"
        )
        return not has_in_hand and not gateway.rows(in_hand)

    wait_until(at_rest, what="others are in hand", limit_s=PATIENCE_S)


def _suspended_with_an_answer(
    gateway: Gateway, sleeper: Process, operation: str, kind: str | None, parameters: dict[str, str]
) -> tuple[Paid, int]:
    """A payment whose answer waits for a suspended worker; and its generation."""
    payer = new_payer()
    match = {"msisdn": payer}
    held = {"delay_s": HELD_S}
    gateway.provider.fault("hang", operation=operation, match=match, parameters=held)
    if kind is not None:
        gateway.provider.fault(kind, operation=operation, match=match, parameters=parameters)
    paid = gateway.pay(payer=payer)
    gateway.await_call(paid, operation)
    sleeper.stop()
    wait_until(
        lambda: bool(gateway.provider.truth(paid.reference).asked(operation)[0]["answered_at"]),
        what="the provider has not answered",
        limit_s=PATIENCE_S,
    )
    return paid, int(gateway.row(paid)["generation"])


def _await_taken_over(gateway: Gateway, paid: Paid, *, after: int) -> None:
    """Wait until another worker has checked it and it is open; then postpone it by an hour."""
    statement = (
        "UPDATE payments SET next_action_at = clock_timestamp() + interval '1 hour',"
        " lease_until = clock_timestamp() + interval '1 hour'"
        " WHERE id = %s AND generation > %s AND lease_until IS NULL AND stage = 'awaiting_payer'"
        " RETURNING id"
    )
    wait_until(
        lambda: bool(gateway.rows(statement, paid.id, after)),
        what="nobody has taken over",
        processes=gateway.workers,
        limit_s=PATIENCE_S,
    )


def _await_database_time(gateway: Gateway, paid: Paid, *, before_lease_end_s: float) -> None:
    statement = (
        "SELECT 1 FROM payments p JOIN provider_exchanges e ON e.payment_id = p.id"
        " WHERE p.id = %s AND e.generation = 1"
        " AND clock_timestamp() > e.started_at + make_interval(secs => %s)"
    )
    passed_s = LEASE.total_seconds() - before_lease_end_s
    wait_until(
        lambda: bool(gateway.rows(statement, paid.id, passed_s)),
        what="the lease does not end",
        limit_s=PATIENCE_S,
    )


def _verdict_brought_home(gateway: Gateway, paid: Paid, generation: int) -> object:
    """The verdict of this generation's exchange, once its worker has recorded it."""
    statement = (
        "SELECT verdict FROM provider_exchanges"
        " WHERE payment_id = %s AND generation = %s AND verdict IS NOT NULL"
    )
    wait_until(
        lambda: bool(gateway.rows(statement, paid.id, generation)),
        what="nothing is written down",
        limit_s=PATIENCE_S,
    )
    return gateway.rows(statement, paid.id, generation)[0][0]
