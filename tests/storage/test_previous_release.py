"""The previous release's statements on today's schema: while both run, and after a rollback.

Delete this file with the views `payment_events` and `webhook_events`, and the other parts of
migration 0014 that support that release.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask

from payments_app.audit.chain import chain_hash
from payments_app.integrity.verification import verify_record
from payments_app.kernel.database import transaction
from payments_app.payments.outbox import publish_outbox
from payments_app.tenants.caller import Caller
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.feed import leave_gap, read_events
from tests.builders import (
    ScriptedProvider,
    a_caller,
    a_claim,
    advance_payment,
    an_accepted_payment,
    an_asker,
    events_of,
    publish_and_checkpoint,
    rails_of,
)

# Its SQL, with its names of tables and columns.
ACCEPT = """
    WITH born AS (
        INSERT INTO payments (id, tenant_id, mode, flow, provider, base_url, target_environment,
            merchant, reference, amount_minor, currency, payer, payer_index, payer_masked, status, stage,
            sequence, next_step, generation, submissions, created_at, updated_at)
        SELECT %(id)s, tenant_id, mode, flow, provider, base_url, target_environment, merchant,
            gen_random_uuid(), amount_minor, currency, payer, payer_index, payer_masked, 'PENDING',
            'accepted', 1, 'submit', 0, 0, now(), now() FROM payments WHERE id = %(like)s
        RETURNING id
    ), told AS (
        INSERT INTO payment_events (tenant_id, payment_id, sequence, type, status, stage, actor, request_id)
        SELECT %(tenant)s, %(id)s, 1, 'payment.accepted', 'PENDING', 'accepted', 'key:old', 'r' FROM born
        RETURNING id
    )
    SELECT count(*) FROM told
"""
FRESH = "SELECT * FROM webhook_events WHERE data IS NULL ORDER BY number LIMIT 200"
LINES = """
    SELECT w.number, e.status, p.amount_minor FROM webhook_events w
    JOIN payment_events e ON e.payment_id = w.payment_id AND e.sequence = w.sequence
    JOIN payments p ON p.id = e.payment_id WHERE w.number = ANY (%s)
"""
PUBLISH = "UPDATE webhook_events SET position = %s, data = %s WHERE number = %s"
TEST_EVENT = """
    INSERT INTO webhook_events (tenant_id, mode, type, payment_id, sequence, position, data)
    VALUES (%s, %s, 'webhook.test', NULL, NULL, NULL, '{}') RETURNING number, id, created_at
"""
STORIES = """
    SELECT encode(e.previous_hash, 'hex'), e.tenant_id::text, e.payment_id::text, e.sequence::text,
           e.id::text, e.type, e.status, e.stage, e.actor, e.request_id, e.data::text,
           e.transaction_id::text, trunc(extract(epoch FROM e.created_at) * 1000000)::text,
           encode(e.hash, 'hex')
    FROM payment_events e LEFT JOIN payments p ON p.id = e.payment_id ORDER BY e.payment_id, e.sequence
"""
BY_RECOVERY = """
    INSERT INTO payment_events (tenant_id, payment_id, sequence, type, status, stage, actor, request_id,
        data, previous_hash, hash)
    SELECT tenant_id, id, 3, 'payment.unknown', status, stage, 'recovery', NULL, '{"reason": "restored"}',
        NULL, NULL FROM payments WHERE id = %s
    RETURNING payment_events.id, payment_events.transaction_id, payment_events.created_at
"""
SEAL = """
    INSERT INTO audit_entries (tenant_id, actor, action, subject_type, subject_id, detail)
    SELECT tenant_id, 'system', 'payment_events.sealed', 'payment_events', min(id) || '-' || max(id),
        jsonb_build_object('first', min(id), 'through', max(id), 'events', count(*),
            'digest', encode(sha256(string_agg(hash, ''::bytea ORDER BY id)), 'hex'))
    FROM payment_events GROUP BY tenant_id
"""


class PreviousRelease:
    """Its role and its statements."""

    def __init__(self, connection: psycopg.Connection, caller: Caller) -> None:
        self.connection, self.caller = connection, caller

    def accept(self, like: UUID) -> UUID:
        """Accept a payment as it does: the event gets no mode, and its id is returned."""
        payment_id = uuid4()
        values = {"id": payment_id, "like": like, "tenant": self.caller.tenant_id}
        assert self.connection.execute(ACCEPT, values).fetchone() == (1,)
        self.connection.commit()
        return payment_id

    def publish(self) -> int:
        """Publish as it does: without hashes."""
        last = "SELECT coalesce(max(position), 0) FROM webhook_events WHERE tenant_id = %s AND mode = %s"
        found = self.connection.execute(last, [self.caller.tenant_id, self.caller.mode]).fetchone()
        assert found is not None
        numbers = [row[0] for row in self.connection.execute(FRESH.replace("*", "number"))]
        assert len(self.connection.execute(LINES, [numbers]).fetchall()) == len(numbers)
        for place, number in enumerate(numbers, start=found[0] + 1):
            self.connection.execute(PUBLISH, [place, b'{"by":"the previous release"}', number])
        self.connection.commit()
        return len(numbers)

    def verify(self) -> int:
        """Verify the event chains and each event's hash as it does; returns how many events."""
        before: dict[str | None, str] = {}
        rows = self.connection.execute(STORIES).fetchall()
        for *hashed, own in rows:
            assert chain_hash("payment_events", *hashed) == own
            assert before.get(hashed[2], hashed[0]) == hashed[0]
            before[hashed[2]] = own
        return len(rows)


@pytest.fixture
def caller() -> Caller:
    return a_caller()


@pytest.fixture
def like(app: Flask, caller: Caller) -> UUID:
    """A payment of this release, with two unpublished events."""
    gateway = rails_of(app, ScriptedProvider())
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    # The submission only: a check, which is due a second later, would add a third event.
    advance_payment(a_claim(), gateway)
    return payment_id


@pytest.fixture
def previous(database_url: str, caller: Caller) -> Iterator[PreviousRelease]:
    with psycopg.connect(database_url, options="-c maramoja.tenant=*") as connection:
        yield PreviousRelease(connection, caller)


def positions(caller: Caller) -> list[int | None]:
    page = read_events(Owner(caller.tenant_id, caller.mode), after=0, limit=99)
    return [one.position for one in page.events]


def assert_whole() -> None:
    assert verify_record(None, on_row=lambda: None).fault is None


def test_what_it_accepts_this_release_publishes(
    previous: PreviousRelease, caller: Caller, like: UUID
) -> None:
    accepted = previous.accept(like)
    assert publish_outbox() == 3
    assert positions(caller) == [1, 2, 3]
    (event,) = events_of(accepted)
    assert (event.mode, event.actor) == (caller.mode, "key:old")
    assert_whole()


def test_what_it_publishes_has_its_place_in_the_chain(
    previous: PreviousRelease, caller: Caller, like: UUID
) -> None:
    previous.accept(like)
    assert previous.publish() == 3
    assert publish_outbox() == 0
    assert positions(caller) == [1, 2, 3]
    assert_whole()
    assert publish_and_checkpoint() == 3
    assert_whole()


def test_both_publish_in_turn_without_a_gap(
    previous: PreviousRelease, caller: Caller, like: UUID
) -> None:
    for publish in (previous.publish, publish_outbox, previous.publish, publish_outbox):
        previous.accept(like)
        assert publish() > 0
    assert positions(caller) == [1, 2, 3, 4, 5, 6]
    assert_whole()


def test_its_nightly_check_finds_nothing_wrong_in_what_is_not_published(
    previous: PreviousRelease, like: UUID
) -> None:
    previous.accept(like)
    assert previous.verify() == 3
    publish_outbox()
    assert previous.verify() == 3


def test_its_seals_hold_for_what_is_published_later(previous: PreviousRelease, like: UUID) -> None:
    previous.accept(like)
    previous.connection.execute(SEAL)
    previous.connection.commit()
    assert_whole()
    publish_outbox()
    assert_whole()
    assert publish_and_checkpoint() == 0


def test_its_recovery_adds_an_event_that_names_the_columns_of_the_hash(
    previous: PreviousRelease, like: UUID
) -> None:
    found = previous.connection.execute(BY_RECOVERY, [like]).fetchone()
    assert found is not None
    previous.connection.execute("UPDATE payments SET sequence = 3 WHERE id = %s", [like])
    previous.connection.commit()
    assert [event.id for event in events_of(like)][2:] == [found[0]]
    publish_outbox()
    assert_whole()


def test_its_test_events_and_those_of_a_restore(previous: PreviousRelease, caller: Caller) -> None:
    number, event_id, created_at = previous.connection.execute(
        TEST_EVENT, [caller.tenant_id, caller.mode]
    ).fetchone() or (None, None, None)
    previous.connection.commit()
    assert None not in (number, event_id, created_at)
    with transaction(caller.tenant_id) as session:
        leave_gap(session, caller.tenant_id)
    found = previous.connection.execute(
        "SELECT position > 1000, data IS NOT NULL FROM webhook_events WHERE mode = %s"
        " ORDER BY number",
        [caller.mode],
    )
    assert found.fetchall() == [(None, True), (True, True)]
    assert previous.verify() == 0
    assert_whole()


def test_it_changes_no_more_than_it_could(previous: PreviousRelease, like: UUID) -> None:
    assert like
    previous.publish()
    for statement in (
        "UPDATE webhook_events SET data = '{}'",
        "UPDATE webhook_events SET type = 'payment.failed'",
        "UPDATE payment_events SET actor = 'eve'",
        "DELETE FROM payment_events",
        "DELETE FROM webhook_events",
    ):
        with pytest.raises(psycopg.Error) as refused, previous.connection.transaction():
            previous.connection.execute(statement)
        assert type(refused.value).__name__ in ("InsufficientPrivilege", "RestrictViolation")
    with previous.connection.transaction():
        previous.connection.execute(
            "SELECT set_config('maramoja.tenant', %s, true)", [str(uuid4())]
        )
        for view in ("payment_events", "webhook_events"):
            seen = previous.connection.execute(f"SELECT count(*) FROM {view}")  # noqa: S608
            assert seen.fetchone() == (0,)
