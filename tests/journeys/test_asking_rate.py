"""The rate of status checks on a live account: it begins at the advised ten a second."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, SENDERS, Gateway, Paid, new_payer
from tests.journeys.own_account import OwnAccount, give, opened_at
from tests.journeys.referee import assert_all_charged_once

TENANT = "asked-often"
PAYMENTS = 250
# The seconds over which checks are counted.
WHILE_S = 4
# At the advised rate: ten a second, and the burst that is allowed after a pause.
ADVISED_MAX = 10 * WHILE_S + 12
RISEN_MIN = 80
REFUSALS_MIN = 20
TOKENS_MAX = 4
_MOST_ASKED = """
SELECT coalesce(max(asked), 0) FROM (
    SELECT count(*) OVER (ORDER BY started_at RANGE BETWEEN CURRENT ROW AND %s FOLLOWING) AS asked
    FROM provider_exchanges WHERE kind = 'check' AND payment_id = ANY(%s)
) AS whiles
"""


@pytest.fixture
def account(gateway: Gateway) -> OwnAccount:
    return opened_at(gateway.stack.simulator_url)


@pytest.fixture
def live(gateway: Gateway, account: OwnAccount) -> Gateway:
    """A tenant with a live account, on the same stack."""
    found = Gateway(gateway.stack, tenant=TENANT)
    give(found, TENANT, account, environment="mtnuganda")
    found.api_key = gateway.stack.issue_key(TENANT, mode="live")
    return found


def pay_all(live: Gateway, payments: int) -> list[Paid]:
    orders = [{**live.order(payer=new_payer()), "currency": "UGX"} for _ in range(payments)]
    keys = [str(uuid4()) for _ in orders]
    with ThreadPoolExecutor(SENDERS) as threads:
        answers = list(threads.map(live.send_until_created, orders, keys))
    return [Paid(*one, answer.content) for *one, answer in zip(keys, orders, answers, strict=True)]


def most_asked(live: Gateway, paid: list[Paid]) -> int:
    """The most checks that were started within WHILE_S."""
    ids = [one.id for one in paid]
    ((count,),) = live.rows(_MOST_ASKED, f"{WHILE_S} seconds", ids)
    return int(count)


def keep_young(live: Gateway, paid: list[Paid]) -> None:
    """Have all of them due every second, as payments of less than ten seconds are."""
    live.rows(
        "UPDATE payments SET submitted_at = clock_timestamp() WHERE status = 'PENDING'"
        " AND lease_until IS NULL AND next_step = 'check'"
        " AND submitted_at < clock_timestamp() - interval '8 seconds' AND id = ANY(%s)",
        [one.id for one in paid],
    )


def tokens_asked_for(live: Gateway) -> int:
    return sum(row["operation"] == "token" for row in live.provider.rows("requests"))


def test_the_rate_rises_while_answers_are_quick_and_refusals_lose_nothing(
    live: Gateway, account: OwnAccount
) -> None:
    live.provider.settings(approval_delay_s=None)
    paid = pay_all(live, PAYMENTS)

    def is_asked_often() -> bool:
        keep_young(live, paid)
        return most_asked(live, paid) >= RISEN_MIN > ADVISED_MAX

    wait_until(
        is_asked_often,
        what="it is asked no more often than was advised",
        limit_s=PATIENCE_S,
    )
    before = tokens_asked_for(live)

    live.provider.fault(
        "too_many_429",
        operation="status",
        times=None,
        match={"api_user": account.api_user},
        parameters={"retry_after": 1},
    )
    wait_until(
        lambda: live.provider.strikes("too_many_429") >= REFUSALS_MIN,
        what="it is not refused",
        limit_s=PATIENCE_S,
    )
    live.provider.reset()
    references = {one.reference for one in paid}
    wait_until(
        lambda: references <= {row["reference_id"] for row in live.provider.rows("payments")},
        what="the provider does not have all payments",
        limit_s=PATIENCE_S,
    )
    for one in paid:
        live.provider.approve(one.reference)
    live.await_end(*paid)

    assert_all_charged_once(live, paid, looked_at=10)
    # Two workers, and open payments of earlier tests: far fewer than one for each 429.
    assert tokens_asked_for(live) - before <= TOKENS_MAX
