"""No broker, no beat, no callback: the row is the work item, and the workers find it (G4)."""

from __future__ import annotations

from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway, new_payer, repeatedly
from tests.journeys.referee import (
    assert_all_charged_once,
    assert_charged_once,
    assert_one_payment_a_key,
)

HOUR_S = 3600.0


def test_200_open_payments_end_in_time_while_the_broker_is_emptied_all_along(
    gateway: Gateway,
) -> None:
    gateway.provider.settings(callback_mode="none", approval_delay_s=HOUR_S)
    with repeatedly(gateway.stack.redis.flush, every_s=0.02):
        payments = list(gateway.pay_all([new_payer() for _ in range(200)]).values())
        references = {paid.reference for paid in payments}
        wait_until(
            lambda: (
                references <= {row["reference_id"] for row in gateway.provider.rows("payments")}
            ),
            what="the provider does not have all payments",
            limit_s=PATIENCE_S,
        )
        assert gateway.open_of(*payments) == 200
        gateway.provider.advance_clock(HOUR_S)
        gateway.await_end(*payments, limit_s=30.0)
    assert_one_payment_a_key(gateway, *payments)
    assert_all_charged_once(gateway, payments, looked_at=20)


def test_without_any_beat_payments_end_by_the_workers_own_clock(gateway: Gateway) -> None:
    for name in ("beat-1", "beat-2"):
        gateway.stack.processes[name].kill()
    gateway.provider.settings(callback_mode="none", approval_delay_s=None)
    payments = [gateway.pay() for _ in range(5)]
    for paid in payments:
        gateway.await_state(paid, stage="awaiting_payer")
        gateway.provider.approve(paid.reference)
    gateway.await_end(*payments)
    assert_charged_once(gateway, *payments)


def test_without_redis_from_the_start_payments_are_accepted_once_and_reach_their_end(
    gateway: Gateway,
) -> None:
    processes = gateway.stack.processes
    started = ["api", "worker-1", "beat-1"]
    for name in (*started, "worker-2", "beat-2"):
        processes[name].kill()
    gateway.stack.redis.kill()
    for name in started:
        processes[name].start()
    payments = list(gateway.pay_all([new_payer() for _ in range(10)]).values())
    gateway.await_end(*payments)
    assert_one_payment_a_key(gateway, *payments)
    assert_charged_once(gateway, *payments)
