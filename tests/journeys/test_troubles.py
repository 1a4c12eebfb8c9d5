"""Every fault of the simulator, over the whole stack: the ledger's truth, one charge.

All faults happen at once, each to its own payer; then each payment is checked by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from devstack.programs import await_simulator
from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid, new_payer
from tests.journeys.referee import assert_charged_once, assert_replayed, assert_told_the_truth

# Our calls time out after 15 s.
TOO_LONG = {"delay_s": 16.0}


@dataclass(frozen=True)
class Trouble:
    """A fault, and the failure code that it must end in; None: the payment still succeeds."""

    kind: str
    operation: str = "create"
    times: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)
    fails: str | None = None

    def __str__(self) -> str:
        detail = "-".join(str(value) for value in self.parameters.values())
        return "-".join(part for part in (self.operation, self.kind, detail) if part)


REFUSED = [
    Trouble("refuse_400", fails="request_refused"),
    Trouble("refuse_500_code", fails="provider_not_allowed"),
    Trouble("waf_html_200", fails="request_refused"),
    Trouble("html_403", fails="provider_not_allowed"),
]
LOST = [
    Trouble("internal_error"),
    Trouble("reset_before", parameters={"how": "reset"}),
    Trouble("reset_before", parameters={"how": "close"}),
    Trouble("hang", parameters=TOO_LONG),
    Trouble("unauthorized_401"),
    Trouble("unauthorized_401", times=4),
    Trouble("too_many_429", times=2, parameters={"retry_after": 1}),
    Trouble("quota_403", times=2, parameters={"replenished_in": "00:00:01"}),
    Trouble("gzip"),
    Trouble("many_headers"),
    Trouble("unavailable_503", times=2),
    Trouble("invisible", parameters={"delay_s": 4.0}),
    Trouble("accept_then_500"),
    Trouble("accept_then_503"),
    Trouble("accept_then_reset", parameters={"how": "reset"}),
    Trouble("accept_then_reset", parameters={"how": "close"}),
    Trouble("accept_then_hang", parameters=TOO_LONG),
    Trouble("slow", parameters={"delay_s": 2.0}),
    Trouble("garbage", parameters={"form": "bytes"}),
    Trouble("garbage", parameters={"form": "json"}),
    Trouble("garbage", parameters={"form": "cut"}),
    Trouble("empty_200"),
    Trouble("connection_drip"),
]
UNASKED = [
    Trouble("refuse_400", "status", times=2),
    Trouble("refuse_500_code", "status", times=2),
    Trouble("internal_error", "status", times=2),
    Trouble("unauthorized_401", "status", times=3),
    Trouble("html_403", "status", times=2),
    Trouble("too_many_429", "status", times=2),
    Trouble("unavailable_503", "status", times=2),
    Trouble("waf_html_200", "status", times=2),
    Trouble("reset_before", "status", times=2),
    Trouble("hang", "status", parameters=TOO_LONG),
    Trouble("status_404", "status", times=3),
    Trouble("quota_403", "status", times=2, parameters={"replenished_in": "00:00:01"}),
    Trouble("gzip", "status"),
    Trouble("many_headers", "status"),
    Trouble("amount_number", "status"),
    Trouble("slow", "status", parameters={"delay_s": 2.0}),
    Trouble("garbage", "status", times=2, parameters={"form": "bytes"}),
    Trouble("garbage", "status", times=2, parameters={"form": "json"}),
    Trouble("garbage", "status", times=2, parameters={"form": "cut"}),
    Trouble("empty_200", "status", times=2),
    Trouble("connection_drip", "status"),
    Trouble("unknown_status_word", "status", times=2),
    Trouble("unknown_status_word", "status", times=2, parameters={"word": "PENDING"}),
]
TROUBLES = [*REFUSED, *LOST, *UNASKED]


@pytest.fixture(scope="module")
def troubled(running: Gateway) -> dict[str, Paid]:
    """A payment for each fault; all have ended, and the provider has answered all calls."""
    running.heal()
    # No callbacks: all we know comes from status checks.
    running.provider.settings(callback_mode="none")
    payers = {new_payer(): str(trouble) + str(trouble.times) for trouble in TROUBLES}
    for payer, trouble in zip(payers, TROUBLES, strict=True):
        running.provider.fault(
            trouble.kind,
            times=trouble.times,
            operation=trouble.operation,
            match={"msisdn": payer},
            parameters=trouble.parameters,
        )
    paid = running.pay_all(list(payers))
    running.await_end(*paid.values(), limit_s=90.0)
    references = {one.reference for one in paid.values()}
    wait_until(
        lambda: all(
            row["answered_at"]
            for row in running.provider.rows("requests")
            if row["reference_id"] in references
        ),
        what="the provider still works on a call",
        limit_s=PATIENCE_S,
    )
    return {payers[payer]: one for payer, one in paid.items()}


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_a_trouble_ends_in_the_ledgers_truth(
    gateway: Gateway, troubled: dict[str, Paid], trouble: Trouble
) -> None:
    paid = troubled[str(trouble) + str(trouble.times)]
    struck = [c for c in gateway.provider.truth(paid.reference).requests if c["fault"]]
    assert len(struck) == trouble.times or trouble.kind == "invisible"
    if trouble.fails is None:
        assert_charged_once(gateway, paid)
        return
    truth = assert_told_the_truth(gateway, paid)
    assert truth.creations == []
    assert gateway.show(paid)["failure"]["code"] == trouble.fails
    assert_replayed(gateway, paid, status="FAILED")


def test_success_over_another_amount_is_not_believed_until_the_provider_says_the_right_one(
    gateway: Gateway,
) -> None:
    payer = new_payer()
    gateway.provider.settings(callback_mode="none")
    gateway.provider.fault("status_wrong_amount", times=2, match={"msisdn": payer})
    paid = gateway.pay(payer=payer, amount="1000")
    gateway.await_end(paid)
    assert [(event["type"], event["data"].get("reason")) for event in gateway.story(paid)] == [
        ("payment.accepted", None),
        ("payment.pending", "accepted"),
        ("payment.unknown", "amount_contradicted"),
        ("payment.successful", "successful"),
    ]
    assert_charged_once(gateway, paid)


def test_while_no_token_is_to_be_had_nothing_is_sent_and_then_all_is_paid(
    gateway: Gateway,
) -> None:
    with gateway.one_working():
        gateway.let_token_run_out()
        gateway.provider.fault("token_html_200")
        gateway.provider.fault("token_500")
        payments = [gateway.pay() for _ in range(3)]
        gateway.await_fault("token_500")
        assert all(gateway.provider.truth(paid.reference).requests == [] for paid in payments)
        gateway.await_end(*payments)
    assert_charged_once(gateway, *payments)


def test_a_provider_that_is_away_costs_time_and_nothing_else(gateway: Gateway) -> None:
    simulator = gateway.stack.processes["simulator"]
    gateway.await_end(gateway.pay())
    simulator.kill()
    payments = [gateway.pay() for _ in range(5)]
    tried = "SELECT 1 FROM payments WHERE submissions > 2 AND id = ANY(%s)"
    wait_until(
        lambda: len(gateway.rows(tried, [paid.id for paid in payments])) == 5,
        what="nobody tries again",
        limit_s=PATIENCE_S,
    )
    assert gateway.open_of(*payments) == 5
    simulator.start()
    await_simulator(simulator)
    gateway.await_end(*payments)
    assert_charged_once(gateway, *payments)
