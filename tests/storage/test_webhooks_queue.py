"""The queue of deliveries under load, with many workers: nothing is lost, no claim scans it all."""

from __future__ import annotations

import threading
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import func, select, text

from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.kernel.secrets import Cipher
from payments_app.payments import outbox
from payments_app.webhooks import deliveries
from payments_app.webhooks.claims import DeliveryClaim
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.model import WebhookDelivery, WebhookEndpoint
from tests.builders import (
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    in_threads,
    rails_of,
)
from tests.conftest import Installation
from tests.webhooks.backlogs import backlogs_of_their_own
from tests.webhooks.dispatching import WorkerProcess, answered

# An endpoint that is down: each payment's first delivery is tried again in hours, and its second
# waits for the first.
DOWN = """
    INSERT INTO webhook_deliveries (id, tenant_id, mode, endpoint_id, event_number, event_type,
        payment_id, sequence, body, next_attempt_at)
    SELECT gen_random_uuid(), tenant_id, mode, id, 2 * n + s, 'payment.x', md5(n::text)::uuid, s,
        '', now() + CASE s WHEN 1 THEN interval '5 hours' ELSE - n * interval '1 ms' END
    FROM webhook_endpoints, generate_series(1, %s) AS n, generate_series(1, 2) AS s
    WHERE id = %s
"""
# Enabled endpoints without due deliveries.
IDLE = """
    INSERT INTO webhook_endpoints (id, tenant_id, mode, url, event_types, secret)
    SELECT gen_random_uuid(), %s, 'live', 'https://a.example', '{*}', 'x'
    FROM generate_series(1, 300)
"""
BACKLOG = """
    INSERT INTO webhook_deliveries (id, tenant_id, mode, endpoint_id, event_number, event_type,
        payment_id, sequence, body)
    SELECT gen_random_uuid(), tenant_id, mode, id, n, 'payment.x', gen_random_uuid(), 1, ''
    FROM webhook_endpoints, generate_series(1, 200) AS n WHERE id = %s
"""


def owner() -> Owner:
    caller = a_caller()
    return Owner(caller.tenant_id, caller.mode)


def told_of_a_payment(app: Flask) -> UUID:
    """Make an endpoint with one due delivery; returns the endpoint's id."""
    caller = a_caller()
    endpoint = an_endpoint(Owner(caller.tenant_id, caller.mode)).endpoint
    an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
    outbox.publish_outbox()
    return endpoint.id


def test_an_endpoint_that_is_down_slows_nobody(installation_of_its_own: Installation) -> None:
    with backlogs_of_their_own(installation_of_its_own) as backlogs:
        down = an_endpoint(owner()).endpoint
        backlogs.run(DOWN, 5000, down.id)
        backlogs.run("ANALYZE webhook_deliveries")
        well = told_of_a_payment(installation_of_its_own.app)

        process = WorkerProcess()
        (claim,) = process.claim()
        assert claim.endpoint_id == well
        process.record(answered(claim))
        assert process.claim() == []
        before = backlogs.rows_read()
        assert process.claim() == []
        assert backlogs.rows_read() - before < 50, "what waits is looked at each time"
        due = (
            "SELECT count(*) FROM webhook_deliveries"
            " WHERE status = 'pending' AND next_attempt_at <= clock_timestamp()"
        )
        assert backlogs.run(due) == [(0,)], "what waits is looked at each time"


def test_what_waited_goes_as_soon_as_the_one_before_has_ended(app: Flask) -> None:
    caller = a_caller()
    gateway = rails_of(app, ScriptedProvider())
    an_endpoint(Owner(caller.tenant_id, caller.mode))
    an_accepted_payment(gateway, context=an_asker(caller=caller))
    advance(gateway)
    outbox.publish_outbox()

    process = WorkerProcess()
    (first,) = process.claim()
    assert process.claim() == []
    process.record(answered(first))
    (second,) = process.claim()
    assert (first.event_type, second.event_type) == ("payment.accepted", "payment.pending")


@pytest.mark.usefixtures("quiet")
def test_whoever_claims_at_once_has_other_deliveries_in_hand(
    app: Flask, past_rules: psycopg.Connection
) -> None:
    past_rules.execute(IDLE, [owner().tenant_id])
    for endpoint in [an_endpoint(owner()).endpoint for _ in range(2)]:
        past_rules.execute(BACKLOG, [endpoint.id])
    claimed: list[DeliveryClaim] = []

    def claim() -> None:
        process = WorkerProcess()
        for _ in range(12):
            claims = process.claim(3)
            claimed.extend(claims)
            process.record(*map(answered, claims))

    assert in_threads(app, claim, times=8) == [None] * 8
    assert claimed
    assert {one.generation for one in claimed} == {1}
    assert len({one.delivery_id for one in claimed}) == len(claimed)


def test_what_is_just_being_sent_again_is_not_dropped(
    app: Flask, past_rules: psycopg.Connection
) -> None:
    told_of_a_payment(app)
    process = WorkerProcess()
    claim = process.claim_one()
    process.record(answered(claim))
    old = deliveries.KEPT + timedelta(days=1)
    past_rules.execute("UPDATE webhook_deliveries SET created_at = created_at - %s", [old])

    def forget() -> None:
        with app.app_context():
            deliveries.purge_deliveries()
            db.session.remove()

    forgetting = threading.Thread(target=forget)
    with transaction(EVERY_TENANT) as session:
        session.execute(
            text("UPDATE webhook_deliveries SET status = 'pending', delivered_at = NULL")
        )
        forgetting.start()
        forgetting.join(1.0)
    forgetting.join()
    with transaction(EVERY_TENANT) as session:
        assert session.get_one(WebhookDelivery, claim.delivery_id).status == "pending"


def test_what_happened_before_an_endpoint_was_disabled_waits_for_it(app: Flask) -> None:
    # The event commits before and is published after: it is neither lost nor counted as missed.
    caller = a_caller()
    whose = Owner(caller.tenant_id, caller.mode)
    endpoint_id = an_endpoint(whose).endpoint.id
    an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
    with transaction(whose.tenant_id) as session:
        endpoint = session.get_one(WebhookEndpoint, endpoint_id)
        since = session.execute(select(func.clock_timestamp())).scalar_one()
        endpoint.disable("asked", since)
    outbox.publish_outbox()

    assert WorkerProcess().claim() == []
    assert deliveries.missed(whose, endpoint_id, since) == 0
    with transaction(whose.tenant_id) as session:
        session.get_one(WebhookEndpoint, endpoint_id).enable()
    assert WorkerProcess().claim_one().endpoint_id == endpoint_id


def test_a_secret_that_we_cannot_read_is_no_failure_of_the_endpoint(app: Flask) -> None:
    endpoint_id = told_of_a_payment(app)
    process = WorkerProcess(cipher=Cipher([Fernet.generate_key().decode()]))
    claim = process.claim_one()
    process.deliver(claim)
    with transaction(EVERY_TENANT) as session:
        endpoint = session.get_one(WebhookEndpoint, endpoint_id)
        assert endpoint.failing_since is None
        delivery = session.get_one(WebhookDelivery, claim.delivery_id)
        assert (delivery.status, delivery.lease_until) == ("pending", None)
