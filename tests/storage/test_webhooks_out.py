"""Deliveries from a real database to a real receiver: once each, in order, attempts recorded."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
import time_machine
from flask import Flask
from sqlalchemy import select, text

from payments_app.audit.model import AuditEntry
from payments_app.audit.queries import latest_entries
from payments_app.integrity.verification import verify_record
from payments_app.kernel.clock import utc_now
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.http.egress import EgressRules
from payments_app.payments import outbox
from payments_app.tenants.caller import Caller
from payments_app.webhooks import concurrency, deliveries, endpoints, feed
from payments_app.webhooks.deliveries import ResendRange
from payments_app.webhooks.endpoints import EndpointChanges, NewEndpoint, Owner, SecretRotation
from payments_app.webhooks.errors import EndpointDisabled, EndpointsTooMany
from payments_app.webhooks.model import DeliveryStatus, EndpointStatus
from tests.builders import (
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    let_time_pass,
    rails_of,
)
from tests.storage.attacker import Attacker
from tests.storage.bending import LAWLESS
from tests.webhooks.dispatching import WorkerProcess, answered, deliver_due
from tests.webhooks.receiver import OK, Received, Receiver, Reply, receiving

ANYWHERE = EgressRules(allow_private=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def caller() -> Caller:
    return a_caller()


def owner_of(caller: Caller) -> Owner:
    return Owner(caller.tenant_id, caller.mode)


def pay(app: Flask, caller: Caller, times: int = 1) -> list[UUID]:
    """Accept payments of the caller and run them to their end: accepted, pending, successful."""
    gateway = rails_of(app, ScriptedProvider())
    paid = [
        an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
        for _ in range(times)
    ]
    advance(gateway)
    let_time_pass(seconds=60)
    advance(gateway)
    return paid


def time_passes(span: timedelta) -> None:
    """Move back the times of all deliveries and failing endpoints, as if `span` had passed."""
    with transaction(EVERY_TENANT) as session:
        session.execute(
            text(
                "UPDATE webhook_deliveries SET next_attempt_at = next_attempt_at - :span,"
                " lease_until = lease_until - :span"
            ),
            {"span": span},
        )
        session.execute(
            text("UPDATE webhook_endpoints SET failing_since = failing_since - :span"),
            {"span": span},
        )


def endpoint_now(caller: Caller, new: NewEndpoint) -> endpoints.WebhookEndpoint:
    return endpoints.find_endpoint(owner_of(caller), new.endpoint.id)


def one_delivery(caller: Caller, new: NewEndpoint) -> deliveries.Told:
    page = deliveries.list_deliveries(owner_of(caller), new.endpoint.id, limit=1)
    return deliveries.find_delivery(owner_of(caller), page.deliveries[0].id)


def answering(status: int, **headers: str) -> Reply:
    return (status, {name.replace("_", "-"): value for name, value in headers.items()}, 0.0)


def test_a_receiver_down_for_20_hours_gets_all_once_each_and_in_order(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url)
    paid = pay(app, caller, times=3)
    receiver.reply = lambda _received: answering(503)
    for _ in range(40):
        deliver_due(app)
        time_passes(timedelta(minutes=30))
    refused = len(receiver.received)
    assert refused > 3 * 5, "it was hardly tried"
    tried = {one.message_id: one.body for one in receiver.received}
    receiver.received.clear()
    receiver.reply = lambda _received: OK
    for _ in range(20):
        time_passes(timedelta(hours=2))
        deliver_due(app)

    told = [one.verified(new.secret) for one in receiver.received]
    stories: dict[str, list[int]] = defaultdict(list)
    for document in told:
        stories[document["data"]["payment_id"]].append(document["data"]["sequence"])
    assert stories == {str(one): [1, 2, 3] for one in paid}
    assert len({one.message_id for one in receiver.received}) == 9
    assert all(tried.get(one.message_id, one.body) == one.body for one in receiver.received)
    assert endpoint_now(caller, new).failing_since is None


def test_a_body_says_whose_it_is_and_masks_the_number(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.successful")
    (payment,) = pay(app, caller)
    deliver_due(app)

    (received,) = receiver.received
    document = received.verified(new.secret)
    assert document["endpoint_id"] == str(new.endpoint.id)
    assert (document["tenant_id"], document["mode"]) == (str(caller.tenant_id), caller.mode)
    assert document["type"] == "payment.successful"
    data = document["data"]
    assert (data["payment_id"], data["sequence"]) == (str(payment), 3)
    assert (data["status"], data["amount"], data["currency"]) == ("SUCCESSFUL", "1000.00", "EUR")
    assert data["payer"].endswith("456")
    assert b"256772" not in received.body
    assert received.headers["content-type"] == "application/json"


def test_a_worker_killed_during_the_post_leaves_an_open_attempt_and_the_same_bytes_go_again(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    pay(app, caller)
    outbox.publish_outbox()
    slow, other = WorkerProcess(), WorkerProcess()
    lost = slow.claim_one()
    assert other.claim() == [], "it was taken from a living worker"
    time_passes(timedelta(seconds=31))
    again = other.claim_one()
    assert [one.outcome for one in one_delivery(caller, new).attempts] == [None, None]
    other.deliver(again)
    # The worker that lost its claim was only slow: its late result changes nothing.
    receiver.reply = lambda _received: answering(500)
    slow.deliver(lost)

    assert len({(one.message_id, one.body) for one in receiver.received}) == 1
    told = one_delivery(caller, new)
    assert told.delivery.status == "delivered"
    assert [one.outcome for one in told.attempts] == ["http_error", "delivered"]


def test_an_attempt_whose_worker_never_came_back_stays_open(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    pay(app, caller)
    outbox.publish_outbox()
    lost = WorkerProcess().claim_one()
    (shown,) = one_delivery(caller, new).attempts
    assert (shown.outcome, shown.started_at, shown.url) == (None, lost.started_at, receiver.url)
    time_passes(timedelta(seconds=31))
    deliver_due(app)

    told = one_delivery(caller, new)
    assert [one.outcome for one in told.attempts] == [None, "delivered"]
    assert told.attempts[0].started_at == lost.started_at - timedelta(seconds=31)


def test_a_later_event_of_a_payment_waits_for_the_earlier_and_other_payments_go_on(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    an_endpoint(owner_of(caller), receiver.url)
    stuck, _other = pay(app, caller, times=2)

    def reply(received: Received) -> Reply:
        data = received.document["data"]
        first = (data["payment_id"], data["sequence"]) == (str(stuck), 1)
        return answering(500, Retry_After="3600") if first else OK

    receiver.reply = reply
    deliver_due(app)

    came = [
        (o.document["data"]["payment_id"], o.document["data"]["sequence"])
        for o in receiver.received
    ]
    assert [sequence for payment, sequence in came if payment == str(stuck)] == [1]
    assert len(came) == 4


def test_an_endpoint_has_four_at_once_to_begin_with_and_after_timeouts_one(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    pay(app, caller, times=10)
    outbox.publish_outbox()
    assert len(WorkerProcess().claim()) == concurrency.FIRST_LIMIT
    assert WorkerProcess().claim() == [], "what other processes have in hand counts too"
    time_passes(timedelta(seconds=31))
    with transaction(caller.tenant_id) as session:
        session.execute(
            text("UPDATE webhook_endpoints SET timeouts = 3 WHERE id = :id"),
            {"id": new.endpoint.id},
        )
    process = WorkerProcess()
    assert len(process.claim()) == 1
    assert process.claim() == []


def test_a_slow_answer_counts_like_a_timeout_until_a_fast_one(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    for elapsed_s, slow in ((concurrency.SLOW_S, 1), (concurrency.SLOW_S, 2), (0.0, 0)):
        pay(app, caller)
        outbox.publish_outbox()
        process = WorkerProcess()
        process.record(answered(process.claim_one(), elapsed_s=elapsed_s))
        assert endpoint_now(caller, new).timeouts == slow


def test_a_tenant_has_its_part_of_the_slots_and_the_next_tenant_is_not_kept_waiting(
    app: Flask, caller: Caller
) -> None:
    for number in range(3):
        an_endpoint(owner_of(caller), f"http://127.0.0.1:9/{number}", "payment.accepted")
    pay(app, caller, times=5)
    other = a_caller()
    an_endpoint(owner_of(other), "http://127.0.0.1:9/", "payment.accepted")
    pay(app, other)
    outbox.publish_outbox()
    process = WorkerProcess(per_tenant=8)
    first = [claim.tenant_id for claim in process.claim(4)]
    rest = [claim.tenant_id for claim in process.claim(60)]

    assert other.tenant_id in first, "whoever has most comes first"
    assert (first + rest).count(caller.tenant_id) == 8


def test_turns_go_round_by_endpoint(app: Flask, caller: Caller, receiver: Receiver) -> None:
    other = a_caller()
    an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    pay(app, caller, times=6)
    outbox.publish_outbox()
    an_endpoint(owner_of(other), receiver.url, "payment.accepted")
    pay(app, other)
    deliver_due(app)

    tenants = [one.document["tenant_id"] for one in receiver.received]
    assert str(other.tenant_id) in tenants[:2]


def test_410_ends_the_endpoint_at_once(app: Flask, caller: Caller, receiver: Receiver) -> None:
    new = an_endpoint(owner_of(caller), receiver.url)
    pay(app, caller)
    receiver.reply = lambda _received: answering(410)
    deliver_due(app)

    endpoint = endpoint_now(caller, new)
    assert (endpoint.status, endpoint.disabled_reason) == ("disabled", "gone")
    assert len(receiver.received) == 1
    time_passes(timedelta(days=2))
    assert deliver_due(app) == 0
    assert "webhook_endpoint.disabled" in actions(caller)
    assert verify_record(caller.tenant_id, on_row=lambda: None).fault is None


def test_days_of_failure_are_warned_of_before_they_end_the_endpoint(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    receiver.reply = lambda _received: answering(500)
    for _ in range(11):
        pay(app, caller)
        deliver_due(app)
        time_passes(timedelta(hours=12))

    endpoint = endpoint_now(caller, new)
    assert (endpoint.status, endpoint.disabled_reason) == ("disabled", "failing")
    told = [one for one in actions(caller) if one.startswith("webhook_endpoint.")]
    assert told == [
        "webhook_endpoint.added",
        "webhook_endpoint.failing",
        "webhook_endpoint.failing",
        "webhook_endpoint.disabled",
    ]
    assert verify_record(caller.tenant_id, on_row=lambda: None).fault is None


def test_an_endpoint_enabled_again_is_offered_what_it_missed(
    app: Flask, caller: Caller, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    since = set_status(caller, new, EndpointStatus.DISABLED).disabled_at
    assert since is not None
    paid = pay(app, caller, times=3)
    assert deliver_due(app) == 0
    with pytest.raises(EndpointDisabled):
        deliveries.resend_range(
            owner_of(caller), new.endpoint.id, ResendRange(since), actor="cli:test"
        )
    set_status(caller, new, EndpointStatus.ENABLED)

    assert deliveries.missed(owner_of(caller), new.endpoint.id, since) == 3
    monkeypatch.setattr(deliveries, "MISSED_AMONG", 2)
    assert deliveries.missed(owner_of(caller), new.endpoint.id, since) == 2
    resent = deliveries.resend_range(
        owner_of(caller), new.endpoint.id, ResendRange(since), actor="cli:test"
    )
    assert (resent, deliver_due(app)) == (3, 3)
    told = {one.document["data"]["payment_id"] for one in receiver.received}
    assert told == {str(one) for one in paid}
    assert deliveries.missed(owner_of(caller), new.endpoint.id, since) == 0


def test_what_waits_for_its_next_try_is_sent_at_once_when_its_span_is_resent(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    """The receiver works again; the next attempts would be hours away."""
    new = an_endpoint(owner_of(caller), receiver.url, "payment.*")
    since = utc_now()
    pay(app, caller, times=3)
    receiver.reply = lambda _received: answering(503, Retry_After="3600")
    deliver_due(app)
    receiver.reply = lambda _received: OK
    assert deliver_due(app) == 0
    given = {one.message_id: one.body for one in receiver.received}

    span = ResendRange(since)
    assert deliveries.resend_range(owner_of(caller), new.endpoint.id, span, actor="cli:test") == 9
    while deliver_due(app):
        pass
    after = {one.message_id: one.body for one in receiver.received}
    assert {name: after[name] for name in given} == given
    told = [one.document["data"] for one in receiver.received if one.message_id not in given]
    for payment_id in {one["payment_id"] for one in told}:
        sequences = [one["sequence"] for one in told if one["payment_id"] == payment_id]
        assert sequences == [2, 3]
    waiting = deliveries.list_deliveries(
        owner_of(caller), new.endpoint.id, limit=9, status=DeliveryStatus.PENDING
    )
    assert waiting.deliveries == []


def test_a_retry_after_is_waited_for(app: Flask, caller: Caller, receiver: Receiver) -> None:
    an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    pay(app, caller)
    receiver.reply = lambda _received: answering(429, Retry_After="7200")
    deliver_due(app)
    time_passes(timedelta(minutes=110))
    assert deliver_due(app) == 0
    time_passes(timedelta(minutes=11))
    assert deliver_due(app) == 1


@pytest.mark.parametrize("hours", [-5, 5])
def test_the_stamp_is_of_the_databases_clock(
    app: Flask, caller: Caller, receiver: Receiver, hours: int
) -> None:
    """A receiver refuses a timestamp five minutes off, and this machine's clock may be wrong."""
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    pay(app, caller)
    now = time.time()
    with time_machine.travel(now + 3600 * hours):
        assert deliver_due(app) == 1
    (told,) = receiver.received
    assert abs(int(told.headers["webhook-timestamp"]) - now) < 60
    assert told.verified(new.secret)["type"] == "payment.accepted"


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500])
def test_nothing_but_2xx_is_taken_for_delivered_and_no_redirect_is_followed(
    app: Flask, caller: Caller, receiver: Receiver, status: int
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    pay(app, caller)
    receiver.reply = lambda _received: answering(status, Location=receiver.url)
    deliver_due(app)

    told = one_delivery(caller, new)
    assert (told.delivery.status, told.attempts[0].http_status) == ("pending", status)
    assert len(receiver.received) == 1


def test_what_is_given_up_is_resent_alone_or_with_all_that_failed(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted", "payment.successful")
    pay(app, caller, times=2)
    receiver.reply = lambda _received: answering(500)
    for _ in range(30):
        deliver_due(app)
        with transaction(caller.tenant_id) as session:
            session.execute(text("UPDATE webhook_endpoints SET failing_since = NULL"))
        time_passes(timedelta(hours=27))
    owner = owner_of(caller)
    failed = deliveries.list_deliveries(owner, new.endpoint.id, limit=9).deliveries
    assert [one.status for one in failed] == ["failed"] * 4
    assert {one.attempts for one in failed} == {11}
    before = {one.message_id: one.body for one in receiver.received}
    receiver.received.clear()
    receiver.reply = lambda _received: OK

    deliveries.resend_one(owner, failed[0].id, actor="cli:test")
    assert deliver_due(app) == 1
    span = ResendRange(failed_only=True)
    assert deliveries.resend_range(owner, new.endpoint.id, span, actor="cli:test") == 3
    assert deliver_due(app) == 3
    assert {one.message_id: one.body for one in receiver.received} == before
    assert one_delivery(caller, new).attempts[-1].trigger == "manual"


def test_a_rotated_secret_signs_beside_the_old_one_until_the_overlap_ends(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    old = an_endpoint(owner_of(caller), receiver.url, "payment.accepted")
    new = endpoints.rotate_secret(
        owner_of(caller),
        old.endpoint.id,
        SecretRotation(timedelta(hours=1)),
        cipher=app.extensions["maramoja"].cipher,
        actor="cli:test",
    )
    pay(app, caller)
    deliver_due(app)
    receiver.received[0].verified(old.secret)
    receiver.received[0].verified(new.secret)
    with transaction(caller.tenant_id) as session:
        session.execute(
            text("UPDATE webhook_endpoints SET previous_secret_until = clock_timestamp()")
        )
    pay(app, caller)
    deliver_due(app)

    assert " " not in receiver.received[-1].headers["webhook-signature"]
    receiver.received[-1].verified(new.secret)


def test_a_test_event_goes_to_its_endpoint_only_and_not_into_the_feed(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.failed")
    an_endpoint(owner_of(caller), receiver.url)
    deliveries.send_test(owner_of(caller), new.endpoint.id)
    assert deliver_due(app) == 1

    assert receiver.received[0].verified(new.secret)["type"] == "webhook.test"
    assert feed.read_events(owner_of(caller), after=0, limit=10).events == []


def test_a_removed_endpoint_is_sent_nothing_and_keeps_no_secret(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url)
    pay(app, caller)
    outbox.publish_outbox()
    endpoints.remove_endpoint(owner_of(caller), new.endpoint.id, actor="cli:test")

    assert deliver_due(app) == 0
    assert endpoints.list_endpoints(owner_of(caller)) == []
    with transaction(caller.tenant_id) as session:
        left = session.execute(text("SELECT DISTINCT status FROM webhook_deliveries")).scalars()
        assert list(left) == ["failed"]


def test_a_removal_ends_a_part_of_a_large_backlog_at_once_and_the_rest_is_ended_later(
    app: Flask, caller: Caller, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request must not wait for millions of rows."""
    monkeypatch.setattr(endpoints, "ENDED_AT_ONCE", 1)
    monkeypatch.setattr(deliveries, "BATCH", 2)
    new, other = (an_endpoint(owner_of(caller), receiver.url) for _ in range(2))
    pay(app, caller, times=6)
    outbox.publish_outbox()
    endpoints.remove_endpoint(owner_of(caller), new.endpoint.id, actor="cli:test")

    def pending() -> list[tuple[UUID, int]]:
        counted = "SELECT endpoint_id, count(*) FROM webhook_deliveries WHERE status = 'pending'"
        with transaction(caller.tenant_id) as session:
            rows = session.execute(text(f"{counted} GROUP BY 1")).all()
        return [(row[0], row[1]) for row in rows]

    assert sorted(pending()) == sorted([(new.endpoint.id, 17), (other.endpoint.id, 18)])
    assert WorkerProcess().claim(64) != []
    deliveries.purge_deliveries()
    assert pending() == [(other.endpoint.id, 18)]


def test_a_tenant_has_sixteen_endpoints_at_most_however_many_come_at_once(
    app: Flask, caller: Caller
) -> None:
    refused: list[str] = []

    def add() -> None:
        try:
            an_endpoint(owner_of(caller))
        except EndpointsTooMany as error:
            refused.append(error.code)

    _join([_start(app, add) for _ in range(20)])
    assert len(endpoints.list_endpoints(owner_of(caller))) == 16
    assert len(refused) == 4


def test_other_tenants_and_the_other_mode_are_told_nothing(
    app: Flask, caller: Caller, receiver: Receiver
) -> None:
    an_endpoint(owner_of(a_caller()), receiver.url)
    pay(app, caller)

    assert deliver_due(app) == 0


@pytest.mark.usefixtures("quiet")
def test_a_reader_of_the_feed_misses_nothing_of_200_writers(app: Flask, caller: Caller) -> None:
    """Writers commit in any order, while publishers assign positions and the reader follows."""
    gateway = rails_of(app, ScriptedProvider())
    written, ended = threading.Event(), threading.Event()
    seen: list[tuple[int, UUID | None]] = []

    def write() -> None:
        an_accepted_payment(gateway, context=an_asker(caller=caller))

    def publish() -> None:
        while not written.is_set():
            outbox.publish_outbox()

    def read() -> None:
        after, last_look = 0, False
        while not last_look:
            last_look = ended.is_set()
            while (page := feed.read_events(owner_of(caller), after=after, limit=7)).events:
                seen.extend((event.position or 0, event.payment_id) for event in page.events)
                after = page.last_position

    publishers, reader = [_start(app, publish) for _ in range(2)], _start(app, read)
    for _ in range(20):
        _join([_start(app, write) for _ in range(10)])
    written.set()
    _join(publishers)
    outbox.publish_outbox()
    ended.set()
    _join([reader])
    assert [position for position, _ in seen] == list(range(1, 201))
    assert len({payment for _, payment in seen}) == 200


def _start(app: Flask, work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        with app.app_context():
            work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def test_what_was_published_or_sent_never_changes(
    app: Flask, caller: Caller, attacker: Attacker
) -> None:
    an_endpoint(owner_of(caller), "http://127.0.0.1:9/")
    pay(app, caller)
    outbox.publish_outbox()
    changes = {
        ("events", "feed_data"): b"{}",
        ("events", "type"): "payment.failed",
        ("events", "position"): 99,
        ("events", "hash"): b"h" * 32,
        ("events", "event_id"): UUID(int=9),
        ("webhook_deliveries", "body"): b"{}",
        ("webhook_deliveries", "sequence"): 9,
        ("webhook_deliveries", "generation"): -1,
    }
    for (table, column), value in changes.items():
        assert attacker.refusal_of(lambda t=table, c=column, v=value: attacker.change(t, c, v))  # type: ignore[misc]
    refused = attacker.refusal_of(lambda: attacker.run("DELETE FROM events"))
    assert "denied" in refused or attacker.role == "owner"


def test_what_ended_a_month_ago_is_dropped_with_its_attempts(
    app: Flask, caller: Caller, receiver: Receiver, administrator_url: str
) -> None:
    new = an_endpoint(owner_of(caller), receiver.url, "payment.accepted", "payment.successful")
    pay(app, caller)
    deliver_due(app)
    pay(app, caller)
    outbox.publish_outbox()
    with psycopg.connect(
        administrator_url, options="-c session_replication_role=replica"
    ) as session:
        session.execute(
            "UPDATE webhook_deliveries SET created_at = created_at - interval '31 days'"
        )

    assert deliveries.purge_deliveries() == 2
    left = deliveries.list_deliveries(owner_of(caller), new.endpoint.id, limit=9).deliveries
    assert [one.status for one in left] == ["pending", "pending"]
    set_status(caller, new, EndpointStatus.DISABLED)
    assert deliveries.purge_deliveries() == 2
    assert len(feed.read_events(owner_of(caller), after=0, limit=99).events) == 6


def actions(caller: Caller) -> list[str]:
    """The actions in the tenant's audit trail, in order."""
    query = select(AuditEntry.action).where(AuditEntry.tenant_id == caller.tenant_id)
    with transaction(caller.tenant_id) as session:
        return list(session.scalars(query.order_by(AuditEntry.id)))


def set_status(
    caller: Caller, new: NewEndpoint, status: EndpointStatus
) -> endpoints.WebhookEndpoint:
    return endpoints.change_endpoint(
        owner_of(caller),
        new.endpoint.id,
        EndpointChanges(status=status),
        rules=ANYWHERE,
        actor="cli:test",
    )


def test_any_number_of_failed_deliveries_is_sent_again(
    caller: Caller, administrator_url: str
) -> None:
    """PostgreSQL accepts at most 65,535 parameters in a statement."""
    endpoint = an_endpoint(owner_of(caller)).endpoint
    owner = (caller.tenant_id, caller.mode)
    with psycopg.connect(administrator_url, options=LAWLESS, autocommit=True) as superuser:
        superuser.execute(
            "INSERT INTO events (tenant_id, mode, type, position, feed_data)"
            " SELECT %s, %s, 'payment.failed', n, '{}' FROM generate_series(1, 70000) n",
            owner,
        )
        superuser.execute(
            "INSERT INTO webhook_deliveries"
            " (id, tenant_id, mode, endpoint_id, event_number, event_type, body, status)"
            " SELECT gen_random_uuid(), tenant_id, mode, %s, id, type, '{}', 'failed'"
            " FROM events",
            [endpoint.id],
        )
    span = ResendRange(failed_only=True)
    assert deliveries.resend_range(owner_of(caller), endpoint.id, span, actor="cli:test") == 70_000


def test_what_is_in_hand_is_not_counted_as_sent_again(app: Flask, caller: Caller) -> None:
    an_endpoint(owner_of(caller), "http://127.0.0.1:9/", "payment.accepted")
    pay(app, caller)
    outbox.publish_outbox()
    claim = WorkerProcess().claim_one()
    deliveries.resend_one(owner_of(caller), claim.delivery_id, actor="cli:test")
    (entry,) = latest_entries(caller.tenant_id, limit=1)
    assert (entry.action, entry.detail) == ("webhook_endpoint.resent", {"deliveries": 0})
