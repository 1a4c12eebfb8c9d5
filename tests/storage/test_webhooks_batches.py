"""Deliveries of several tenants in one batch, claimed and recorded: fair, fenced, nothing lost."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from payments_app.audit.queries import latest_entries
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.webhooks import deliveries, dispatcher
from payments_app.webhooks.claims import EXCHANGE_MAX_S, LEASE, DeliveryClaim
from payments_app.webhooks.endpoints import find_endpoint
from payments_app.webhooks.model import WebhookDelivery, WebhookEndpoint
from tests.builders import in_threads
from tests.conftest import Installation
from tests.metrics.figures import figures_here
from tests.webhooks.backlogs import Backlogs, backlogs_of_their_own
from tests.webhooks.dispatching import WorkerProcess, answered, unanswered

pytestmark = pytest.mark.usefixtures("app")
FALLBACK = "webhooks_recorded_one_by_one_total"


def delivery(claim: DeliveryClaim) -> WebhookDelivery:
    with transaction(EVERY_TENANT) as session:
        return session.get_one(WebhookDelivery, claim.delivery_id)


# --- fair -----------------------------------------------------------------------------------------


def test_a_batch_serves_tenants_evenly_whatever_their_backlogs_are(backlogs: Backlogs) -> None:
    large, small = backlogs.owner(), backlogs.owner()
    for _ in range(3):
        backlogs.endpoint(large, payments=500)
    backlogs.endpoint(small, payments=3)

    tenants = [claim.tenant_id for claim in WorkerProcess().claim(6)]
    assert (tenants.count(large.tenant_id), tenants.count(small.tenant_id)) == (3, 3)


def test_slots_that_become_free_one_by_one_go_round_too(backlogs: Backlogs) -> None:
    owners = [backlogs.owner() for _ in range(3)]
    for owner in owners:
        backlogs.endpoint(owner, payments=100)
    process = WorkerProcess()
    tenants = []
    for _ in range(9):
        claim = process.claim_one()
        tenants.append(claim.tenant_id)
        process.record(answered(claim))
    assert [tenants.count(owner.tenant_id) for owner in owners] == [3, 3, 3]


def test_an_endpoint_is_sent_more_at_once_while_it_is_quick(backlogs: Backlogs) -> None:
    backlogs.endpoint(backlogs.owner(), payments=500)
    process, sizes = WorkerProcess(), []
    for _ in range(12):
        claims = process.claim(64)
        sizes.append(len(claims))
        process.record(*map(answered, claims))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]
    claims = process.claim(64)
    process.record(*[answered(claim, 503) for claim in claims])
    assert len(process.claim(64)) == 1


# --- in order -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quiet")
def test_several_processes_keep_a_payments_order_and_send_each_once(
    app: Flask, backlogs: Backlogs
) -> None:
    backlogs.endpoint(backlogs.owner(), payments=12, each=4)
    lock = threading.Lock()
    story: defaultdict[UUID | None, list[tuple[str, int]]] = defaultdict(list)

    def tell(what: str, claims: list[DeliveryClaim]) -> None:
        with lock:
            for claim in claims:
                story[claim.payment_id].append((what, int(claim.body)))

    def work() -> None:
        process = WorkerProcess()
        while any_is_open(backlogs):
            claims = process.claim(5)
            tell("claimed", claims)
            # Noted before the commit: from the commit on, another process may claim the next event.
            tell("recorded", claims)
            process.record(*map(answered, claims))

    assert in_threads(app, work, times=3) == [None] * 3
    wanted = [(what, number) for number in (1, 2, 3, 4) for what in ("claimed", "recorded")]
    assert list(story.values()) == [wanted] * 12


def any_is_open(backlogs: Backlogs) -> bool:
    found = backlogs.run("SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'")
    return found != [(0,)]


def test_the_next_event_of_a_payment_is_due_with_the_end_of_the_one_before(
    backlogs: Backlogs,
) -> None:
    backlogs.endpoint(backlogs.owner(), payments=2, each=3)
    process, bodies = WorkerProcess(), []
    while claims := process.claim():
        bodies.append(sorted(claim.body for claim in claims))
        process.record(*map(answered, claims))
    assert bodies == [[b"1", b"1"], [b"2", b"2"], [b"3", b"3"]]


@pytest.mark.parametrize("end", [200, 410], ids=["delivered", "given up"])
def test_what_was_moved_behind_a_failure_is_released_at_its_end_and_keeps_its_place(
    backlogs: Backlogs, end: int
) -> None:
    backlogs.endpoint(backlogs.owner(), payments=1, each=3)
    process = WorkerProcess()
    process.record(answered(process.claim_one(), 503, headers={"retry-after": "3600"}))
    assert process.claim() == []
    waiting = "SELECT next_attempt_at > clock_timestamp() FROM webhook_deliveries"
    assert backlogs.run(waiting) == [(True,)] * 3, "what waits is looked at each time"
    backlogs.run("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE sequence = 1")
    first = process.claim_one()
    process.record(answered(first, end))
    backlogs.run("UPDATE webhook_endpoints SET status = 'enabled', disabled_at = NULL")
    second = process.claim_one()
    assert (second.body, second.due_at) == (b"2", max(first.due_at, delivery(second).created_at))


def test_thousands_that_wait_keep_nobody_from_being_claimed(backlogs: Backlogs) -> None:
    """Their first events are due in hours; their second events are first in the queue, but wait."""
    owner = backlogs.owner()
    endpoint_id = backlogs.endpoint(owner, payments=3000, each=2)
    backlogs.run(
        "UPDATE webhook_deliveries SET next_attempt_at = now() + interval '5 hours'"
        " WHERE sequence = 1 AND payment_id <> (SELECT payment_id FROM webhook_deliveries"
        "                                       ORDER BY next_attempt_at DESC LIMIT 1)"
    )
    process = WorkerProcess()
    claim = process.claim_one()
    assert (claim.endpoint_id, claim.body) == (endpoint_id, b"1")
    due = "SELECT count(*) FROM webhook_deliveries WHERE next_attempt_at <= clock_timestamp()"
    assert backlogs.run(due) == [(2,)], "what waits is looked at each time"


def test_a_table_that_was_analyzed_while_empty_is_not_looked_through_for_each_that_waits(
    installation_of_its_own: Installation,
) -> None:
    """PostgreSQL plans for an empty table until the next ANALYZE; a backlog may arrive before."""
    with backlogs_of_their_own(installation_of_its_own) as backlogs:
        owner = backlogs.owner()
        backlogs.endpoint(owner, payments=3000, each=2)
        backlogs.run("DELETE FROM webhook_deliveries")
        backlogs.run("ANALYZE webhook_deliveries")
        backlogs.endpoint(owner, payments=3000, each=2)
        backlogs.run(
            "UPDATE webhook_deliveries SET next_attempt_at = now() + interval '5 hours'"
            " WHERE sequence = 1"
        )
        before = backlogs.rows_read()
        assert WorkerProcess().claim(32) == []

        # All passes together read some ten rows for each waiting delivery.
        assert backlogs.rows_read() - before < 100_000


# --- recorded in one batch ------------------------------------------------------------------------


def test_two_tenants_in_one_batch_are_recorded_each_as_its_own(backlogs: Backlogs) -> None:
    owners = [backlogs.owner() for _ in range(2)]
    endpoints = [backlogs.endpoint(owner, payments=2) for owner in owners]
    process = WorkerProcess()
    claims = process.claim()
    assert len(claims) == 4
    gone = {owners[1].tenant_id}
    process.record(*[answered(claim, 410 if claim.tenant_id in gone else 200) for claim in claims])

    for owner, endpoint_id, status in zip(owners, endpoints, ("delivered", "failed"), strict=True):
        page = deliveries.list_deliveries(owner, endpoint_id, limit=9)
        assert [one.status for one in page.deliveries] == [status] * 2
        attempts = [deliveries.find_delivery(owner, one.id).attempts for one in page.deliveries]
        assert [len(one) for one in attempts] == [1, 1]
        assert {one.tenant_id for (one,) in attempts} == {owner.tenant_id}
    assert find_endpoint(owners[0], endpoints[0]).status == "enabled"
    assert find_endpoint(owners[1], endpoints[1]).disabled_reason == "gone"
    told = [latest_entries(owner.tenant_id, limit=9) for owner in owners]
    disabled = ["webhook_endpoint.disabled" in [one.action for one in entries] for entries in told]
    assert disabled == [False, True]


def test_one_that_cannot_be_recorded_takes_nothing_with_it_and_is_counted(
    backlogs: Backlogs, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        backlogs.endpoint(backlogs.owner(), payments=3)
    process = WorkerProcess()
    claims = process.claim()
    # Without the delivery's row, its attempt can't be written.
    backlogs.run("DELETE FROM webhook_deliveries WHERE id = %s", claims[2].delivery_id)
    before = figures_here()
    process.record(*map(answered, claims))

    statuses = backlogs.run("SELECT status, lease_until FROM webhook_deliveries")
    assert statuses == [("delivered", None)] * 5
    assert backlogs.run("SELECT count(*) FROM webhook_attempts") == [(5,)]
    assert figures_here().total(FALLBACK) - before.total(FALLBACK) == 6
    assert "webhooks.recorded_one_by_one" in caplog.text
    assert caplog.text.count("webhook.not_recorded") == 1


def test_what_was_not_recorded_because_the_database_was_away_is_recorded_later(
    backlogs: Backlogs, administrator_url: str
) -> None:
    backlogs.endpoint(backlogs.owner(), payments=3)
    # Only connections that are opened from here on are terminated.
    db.engine.dispose()
    ((since,),) = backlogs.run("SELECT clock_timestamp()")
    process = WorkerProcess()
    results = [answered(claim) for claim in process.claim()]
    before = figures_here()
    with psycopg.connect(administrator_url, autocommit=True) as administrator:
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'maramoja' AND datname = current_database()"
            " AND backend_start > %s",
            [since],
        )
    with pytest.raises(DBAPIError):
        dispatcher.record(results)
    # The commit may have succeeded: to record a result twice must count once.
    for _ in range(2):
        dispatcher.record(results)

    assert backlogs.run("SELECT DISTINCT status FROM webhook_deliveries") == [("delivered",)]
    assert backlogs.run("SELECT count(*) FROM webhook_attempts") == [(3,)]
    assert figures_here().total(FALLBACK) == before.total(FALLBACK)


@pytest.mark.usefixtures("short_lock_waits")
def test_an_endpoint_that_somebody_has_locked_holds_up_no_other(
    backlogs: Backlogs, administrator_url: str
) -> None:
    locked, other = (backlogs.endpoint(backlogs.owner(), payments=2) for _ in range(2))
    process = WorkerProcess()
    results = [answered(claim) for claim in process.claim()]
    with psycopg.connect(administrator_url) as person:
        person.execute("SELECT FROM webhook_endpoints WHERE id = %s FOR UPDATE", [locked])
        # It stays locked to the end of this block: a statement that waits for it fails.
        left = dispatcher.record(results)
        assert {result.claim.endpoint_id for result in left} == {locked}
        assert dispatcher.record(left) == left
    assert dispatcher.record(left) == []
    statuses = backlogs.run("SELECT DISTINCT endpoint_id, status FROM webhook_deliveries")
    assert set(statuses) == {(locked, "delivered"), (other, "delivered")}


def test_a_late_result_and_the_new_claims_in_one_batch_are_told_apart(backlogs: Backlogs) -> None:
    """As after a pause of the whole process: it has claimed its own delivery again."""
    backlogs.endpoint(backlogs.owner(), payments=1)
    process = WorkerProcess()
    late = process.claim_one()
    backlogs.run("UPDATE webhook_deliveries SET lease_until = now() - interval '1 s'")
    again = process.claim_one()
    process.record(answered(late, 500), answered(again))

    assert delivery(again).status == "delivered"
    outcomes = backlogs.run("SELECT generation, outcome FROM webhook_attempts ORDER BY 1")
    assert outcomes == [(1, "http_error"), (2, "delivered")]


def test_a_late_result_of_a_lost_claim_reschedules_nothing(backlogs: Backlogs) -> None:
    backlogs.endpoint(backlogs.owner(), payments=1)
    slow, other = WorkerProcess(), WorkerProcess()
    late = slow.claim_one()
    backlogs.run("UPDATE webhook_deliveries SET lease_until = now() - interval '1 s'")
    other.claim_one()
    before = delivery(late)
    fenced = figures_here().total("fenced_writes_total")
    slow.record(answered(late, 500))

    after = delivery(late)
    assert (after.lease_until, after.next_attempt_at, after.attempts) == (
        before.lease_until,
        before.next_attempt_at,
        before.attempts,
    )
    assert figures_here().total("fenced_writes_total") - fenced == 1


def test_an_endpoint_that_was_removed_meanwhile_stays_failed(backlogs: Backlogs) -> None:
    owner = backlogs.owner()
    endpoint_id = backlogs.endpoint(owner, payments=1)
    process = WorkerProcess()
    claim = process.claim_one()
    with transaction(owner.tenant_id) as session:
        session.execute(text("UPDATE webhook_deliveries SET status = 'failed'"))
    process.record(answered(claim, 500))

    assert (delivery(claim).status, delivery(claim).lease_until) == ("failed", None)
    shown = deliveries.list_deliveries(owner, endpoint_id, limit=1).deliveries[0]
    assert deliveries.find_delivery(owner, shown.id).attempts[0].outcome == "http_error"


def test_a_result_that_is_recorded_twice_counts_once(backlogs: Backlogs) -> None:
    """As when the confirmation of the first commit is lost, and the result is written again."""
    owner = backlogs.owner()
    endpoint_id = backlogs.endpoint(owner, payments=1)
    process = WorkerProcess()
    claim = process.claim_one()
    busy = unanswered(claim, "lookup_busy")
    process.record(busy)
    process.record(busy)
    assert delivery(claim).attempts == 0

    backlogs.run("UPDATE webhook_deliveries SET next_attempt_at = now()")
    slow = answered(process.claim_one(), 500, elapsed_s=14.0)
    process.record(slow)
    process.record(slow)
    with transaction(owner.tenant_id) as session:
        assert session.get_one(WebhookEndpoint, endpoint_id).timeouts == 1


def test_a_request_that_could_outlast_its_lease_does_not_leave(backlogs: Backlogs) -> None:
    """Otherwise another process could send the same delivery at the same time."""
    backlogs.endpoint(backlogs.owner(), payments=1)
    claim = WorkerProcess().claim_one()
    assert claim.leave_before + EXCHANGE_MAX_S < claim.taken_at + LEASE.total_seconds()


# --- our own shortage -----------------------------------------------------------------------------


def test_a_want_of_lookups_is_no_failure_of_the_endpoints_and_no_attempt(
    backlogs: Backlogs,
) -> None:
    owner = backlogs.owner()
    endpoint_id = backlogs.endpoint(owner, payments=1)
    process = WorkerProcess()
    claim = process.claim_one()
    process.record(unanswered(claim, "lookup_busy"))

    found = delivery(claim)
    assert (found.status, found.attempts) == ("pending", 0)
    pause = found.next_attempt_at - claim.started_at
    assert timedelta(seconds=10) < pause < timedelta(seconds=30)
    endpoint = find_endpoint(owner, endpoint_id)
    assert (endpoint.failing_since, endpoint.timeouts) == (None, 0)
    (attempt,) = deliveries.find_delivery(owner, claim.delivery_id).attempts
    assert attempt.outcome == "lookup_busy"


def test_a_date_in_retry_after_is_waited_for(backlogs: Backlogs) -> None:
    backlogs.endpoint(backlogs.owner(), payments=1)
    process = WorkerProcess()
    claim = process.claim_one()
    at = (claim.now() + timedelta(hours=2)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    process.record(answered(claim, 503, headers={"retry-after": at}))

    pause = delivery(claim).next_attempt_at - claim.started_at
    assert timedelta(minutes=119) < pause < timedelta(minutes=121)


# --- what it costs --------------------------------------------------------------------------------


def test_a_claim_reads_what_it_claims_however_much_is_open_or_has_ended(
    installation_of_its_own: Installation,
) -> None:
    """Also with plans from a time when the tables were empty, and without an ANALYZE since."""
    with backlogs_of_their_own(installation_of_its_own) as backlogs:
        process = WorkerProcess()
        backlogs.endpoint(backlogs.owner(), payments=30)
        while claims := process.claim(2):
            process.record(*map(answered, claims))
        for _ in range(20):
            backlogs.endpoint(backlogs.owner(), payments=300, each=3)
        before, claimed = backlogs.rows_read(), 0
        for _ in range(10):
            claims = process.claim(20)
            claimed += len(claims)
            process.record(*map(answered, claims))
        read = backlogs.rows_read() - before

    assert claimed >= 150
    assert read < 40 * claimed
