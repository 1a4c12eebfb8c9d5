"""The numbers in the docs, compared with what engine and webhooks do, not with constants."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.errors import FieldsInvalid
from payments_app.kernel.http.messages import NoResponse
from payments_app.payments import backoff
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.model import Payment
from payments_app.payments.outbox import publish_outbox
from payments_app.providers.contract import Observation
from payments_app.webhooks import deliveries
from payments_app.webhooks.endpoints import Owner, SecretRotation
from payments_app.webhooks.feed import leave_gap, read_events
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    keyring,
    make_due,
    payment_row,
    rails_of,
)
from tests.docs.pages import the_page_says
from tests.webhooks.dispatching import WorkerProcess


def value(query: str, **values: Any) -> Any:
    with transaction(EVERY_TENANT) as session:
        return session.scalar(text(query), values)


def change(statement: str, **values: Any) -> None:
    with transaction(EVERY_TENANT) as session:
        assert session.execute(text(statement), values).rowcount == 1  # type: ignore[attr-defined]


# --- payments -------------------------------------------------------------------------------------


def test_a_lease_is_30_seconds(app: Flask) -> None:
    the_page_says("docs/reliability.md", "their lease of 30 s")
    begun = value("SELECT clock_timestamp()")
    claimed: list[tuple[Any, ...]] = []

    def look(*_: object) -> Observation:
        with transaction(EVERY_TENANT) as session:
            claimed.append(tuple(session.execute(text(CLAIMED), {"begun": begun}).one()))
        return ANSWERS["accepted"]

    gateway = rails_of(app, ScriptedProvider(submits=[look]))
    an_accepted_payment(gateway)
    advance(gateway)
    assert claimed == [(True, 30)]


# The time of the claim is that of the submission. It is later than the test's begin, and earlier
# than the row of the submission.
CLAIMED = """
    SELECT p.submitted_at BETWEEN :begun AND x.started_at,
        extract(epoch FROM p.lease_until - p.submitted_at)::float8
    FROM payments p JOIN provider_exchanges x ON x.payment_id = p.id
"""


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(("left_s", "again"), [(10, 0), (-1, 1)])
def test_whose_lease_is_over_is_taken_by_another(app: Flask, left_s: int, again: int) -> None:
    """Before and after the end of the lease, by the database's clock."""
    provider = ScriptedProvider()
    gateway = rails_of(app, provider)
    payment_id = an_accepted_payment(gateway).payment_id
    advance(gateway)
    make_due(payment_id)
    span = "clock_timestamp() + make_interval(secs => :left)"
    change(f"UPDATE payments SET lease_until = {span}", left=left_s)  # noqa: S608  the test's own
    advance(gateway)
    assert len(provider.questions) == again


def test_50_different_callbacks_are_kept_of_a_payment(open_payment: Payment) -> None:
    the_page_says("docs/security.md", "at most 50 different ones for a payment")
    # The fixture has stored one.
    noted = [
        record_callback(
            ReceivedCallback(SCRIPTED, open_payment.reference, "PUT", b"%d" % n, None), keyring()
        )
        for n in range(52)
    ]
    assert noted == [*[True] * 49, *[False] * 3]


RETRIES = [
    *((age_s, 1.0) for age_s in (0, 9.99)),
    *((age_s, 3.0) for age_s in (10, 59.9)),
    *((age_s, 10.0) for age_s in (60, 299)),
    *((age_s, 30.0) for age_s in (300, 899)),
    *((age_s, 60.0) for age_s in (900, 3_599)),
    *((age_s, 300.0) for age_s in (3_600, 86_399)),
    *((age_s, 1_800.0) for age_s in (86_400, 10**9)),
]


@pytest.mark.parametrize(("age_s", "delay_s"), RETRIES)
def test_questions_come_as_often_as_their_age_says(age_s: float, delay_s: float) -> None:
    delays = [backoff.check_delay_s(age_s) for _ in range(300)]
    assert delay_s * 0.8 <= min(delays) < delay_s * 0.85
    assert delay_s * 1.15 < max(delays) <= delay_s * 1.2


def test_nobody_tells_us_to_come_back_later_than_in_five_minutes() -> None:
    assert [backoff.first_check_s(asked) for asked in (None, 299.0, 300.0, 301.0)] == [
        *(1.0, 299.0, 300.0, 300.0),
    ]
    assert [backoff.submit_delay_s(1, asked) for asked in (299.0, 301.0)] == [299.0, 300.0]


def test_what_had_no_effect_goes_again_after_a_second_and_then_15_at_most() -> None:
    for submissions, delay_s in ((1, 1.0), (2, 2.0), (4, 8.0), (5, 15.0), (100, 15.0)):
        delays = [backoff.submit_delay_s(submissions) for _ in range(300)]
        assert delay_s * 0.8 <= min(delays) < delay_s * 0.85
        assert delay_s * 1.15 < max(delays) <= delay_s * 1.2


def test_not_found_lasts_ten_minutes_at_most_before_the_reference_is_sent_again() -> None:
    waits = [backoff.resend_after_s(30.0, submissions) for submissions in (1, 2, 5, 6, 1000)]
    assert waits == [30.0, 60.0, 480.0, 600.0, 600.0]


def test_evidence_is_kept_up_to_16_kib(app: Flask) -> None:
    long = replace(ANSWERS["paid"], body=b"x" * 20_000)
    gateway = rails_of(app, ScriptedProvider(checks=[long]))
    payment_id = an_accepted_payment(gateway).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    payment = payment_row(payment_id)
    sealed = value(
        "SELECT octet_length(body) FROM provider_exchanges WHERE id = :id", id=payment.evidence_id
    )
    # Encryption adds a nonce of 12 bytes and a tag of 16.
    assert sealed == 16_384 + 28


# --- webhooks -------------------------------------------------------------------------------------


@pytest.fixture
def owner(app: Flask) -> Owner:
    """A tenant with one endpoint and one payment, whose first event is published."""
    caller = a_caller()
    owner = Owner(caller.tenant_id, caller.mode)
    an_endpoint(owner, "http://127.0.0.1:9/", "payment.accepted")
    an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
    publish_outbox()
    return owner


@pytest.mark.parametrize(
    ("age", "kept"), [(timedelta(days=30, hours=-1), 1), (timedelta(days=30, hours=1), 0)]
)
@pytest.mark.usefixtures("owner")
def test_deliveries_that_have_ended_are_kept_for_30_days(
    past_rules: psycopg.Connection, age: timedelta, kept: int
) -> None:
    the_page_says("docs/webhooks.md", "Deliveries that have ended are kept for 30 days")
    past_rules.execute(
        "UPDATE webhook_deliveries SET status = 'failed', created_at = clock_timestamp() - %s",
        [age],
    )
    deliveries.purge_deliveries()
    assert value("SELECT count(*) FROM webhook_deliveries") == kept


# Hours of failure; days of the last warning; the endpoint's status.
FAILURES = [
    *((23, 0, "enabled"), (25, 1, "enabled"), (71, 1, "enabled"), (73, 3, "enabled")),
    *((119, 3, "enabled"), (121, 0, "disabled")),
]


@pytest.mark.parametrize(("hours", "warned_days", "status"), FAILURES)
@pytest.mark.usefixtures("owner")
def test_an_endpoint_is_warned_of_after_one_and_three_days_and_disabled_after_five(
    past_rules: psycopg.Connection, hours: int, warned_days: int, status: str
) -> None:
    the_page_says("docs/webhooks.md", "for one and for three days", "is disabled after five")
    past_rules.execute(
        "UPDATE webhook_endpoints SET failing_since = clock_timestamp() - make_interval(hours => %s)",
        [hours],
    )
    process = WorkerProcess()
    # Nothing listens at the endpoint's address.
    process.deliver(process.claim_one())
    assert value("SELECT status FROM webhook_endpoints") == status
    assert value("SELECT warned_days FROM webhook_endpoints") == warned_days


def test_a_rotation_overlaps_by_24_hours_unless_asked_otherwise_and_by_72_at_most() -> None:
    """Both the API and the command use SecretRotation."""
    assert SecretRotation().overlap == timedelta(hours=24)
    SecretRotation(timedelta(hours=72)).check()
    with pytest.raises(FieldsInvalid):
        SecretRotation(timedelta(hours=72, seconds=1)).check()


def test_a_try_ends_after_15_seconds(app: Flask) -> None:
    """The receiver accepts the connection and sends no response."""
    the_page_says("docs/webhooks.md", "A try ends after 15 seconds")
    caller = a_caller()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        an_endpoint(
            Owner(caller.tenant_id, caller.mode), f"http://127.0.0.1:{mute.getsockname()[1]}/"
        )
        an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
        publish_outbox()
        process = WorkerProcess()
        claim, begun = process.claim_one(), time.monotonic()
        seen = process.send(claim).seen
    took_s = time.monotonic() - begun
    assert isinstance(seen, NoResponse)
    assert took_s >= 14.9
    # A margin for a busy machine.
    assert took_s < 25


def test_a_restored_feed_jumps_by_a_thousand_million(owner: Owner) -> None:
    the_page_says("docs/webhooks.md", "one jump of 1,000,000,000 positions")
    with transaction(owner.tenant_id) as session:
        leave_gap(session, owner.tenant_id)
    positions = [one.position for one in read_events(owner, after=0, limit=9).events]
    assert positions == [1, 1_000_000_001]
