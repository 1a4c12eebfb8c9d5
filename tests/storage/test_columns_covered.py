"""Each column of a payment, its events and its evidence is covered by an event, or may change.

Fails for a new column until somebody puts it in a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import psycopg
import pytest
from flask import Flask

from payments_app.integrity.checkpoints import write_checkpoints
from payments_app.integrity.verification import verify_record
from payments_app.payments.model import Payment
from payments_app.payments.outbox import publish_outbox
from payments_app.payments.payers import erase_payer
from payments_app.providers.contract import Observation
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    an_asker,
    an_order,
    events_of,
    keyring,
    make_due,
    payment_row,
    rails_of,
)
from tests.storage.bending import LAWLESS, Superuser, another

PAYMENTS, EVENTS, EVIDENCE = "payments", "events", "provider_exchanges"
COVERED_BY: Final = {
    PAYMENTS: {
        "the hash that its first event is linked to": (
            "id tenant_id mode flow provider account_id base_url target_environment merchant"
            " reference amount_minor currency created_at"
        ),
        "the order that its first event covers": (
            "external_id payer_message payee_note description metadata traceparent"
        ),
        "its last event": "sequence status stage",
        "the end that its final event covers": (
            "evidence_id provider_transaction_id failure_code failure_provider_code next_step"
            " generation submissions submitted_at updated_at final_at"
        ),
        "what its last event told its tenant": "payer_masked external_id",
    },
    EVENTS: {
        "the event's hash, and the links": (
            "tenant_id payment_id sequence id type status stage actor request_id data transaction_id"
            " created_at previous_hash hash"
        ),
        "the hash of what it says": "event_id mode position feed_data covers content_hash",
    },
    EVIDENCE: {
        "the hash that the final event covers": (
            "id tenant_id payment_id generation kind reference verdict reason http_status body"
            " failure_code failure_provider_code elapsed_ms requests_left started_at finished_at"
        ),
    },
}
MAY_CHANGE: Final = {
    PAYMENTS: {
        "payer": "forgotten after the end; encrypted for this payment, so another's opens no more",
        "payer_index": "forgotten with it; only finds the payments of a number",
        "next_action_at": "when to act next: no payment that has ended has it, by a constraint",
        "hinted": "that a callback came: decides nothing once it has ended",
        "lease_until": "a worker's claim: decides nothing once it has ended",
    },
    EVENTS: {},
    EVIDENCE: {},
}


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


@pytest.fixture
def _without_checks(superuser: Superuser) -> Iterator[None]:
    """The superuser has dropped the CHECK constraints, too."""
    found = superuser.run(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE contype = 'c' AND conrelid::regclass::text = ANY (%s)",
        [PAYMENTS, EVENTS, EVIDENCE],
    ).fetchall()
    for table, name, _ in found:
        superuser.run(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
    yield
    for table, name, rule in found:
        superuser.run(f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {rule} NOT VALID')
        superuser.run(f'ALTER TABLE {table} VALIDATE CONSTRAINT "{name}"')


def ended_payment(app: Flask, answer: Observation) -> Payment:
    """A payment with every field that a tenant can set."""
    order = replace(
        an_order(external_id="order-1"),
        payer_message="Thank you",
        payee_note="Shoes",
        description="Shoes, size 42",
        metadata={"cart": "7"},
    )
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    gateway = rails_of(app, ScriptedProvider(checks=[answer]))
    context = replace(an_asker(), traceparent=traceparent)
    payment_id = an_accepted_payment(gateway, order=order, context=context).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    publish_outbox()
    return payment_row(payment_id)


@pytest.fixture(params=["paid", "declined"])
def ended(request: pytest.FixtureRequest, app: Flask) -> Payment:
    return ended_payment(app, ANSWERS[request.param])


def columns_of(table: str) -> set[str]:
    return {name for names in COVERED_BY[table].values() for name in names.split()}


def named() -> str | None:
    """The row that `verify` names, and the problem."""
    fault = verify_record(None, on_row=lambda: None).fault
    return None if fault is None else f"{fault.table} {fault.row}: {fault.detail}"


@pytest.mark.parametrize("table", [PAYMENTS, EVENTS, EVIDENCE])
def test_each_column_is_covered_or_may_change(superuser: Superuser, table: str) -> None:
    covered, may_change = columns_of(table), set(MAY_CHANGE[table])
    assert covered | may_change == set(superuser.columns(table))
    assert not covered & may_change


@pytest.mark.usefixtures("_without_checks")
@pytest.mark.parametrize("table", [PAYMENTS, EVENTS, EVIDENCE])
def test_a_covered_column_that_is_changed_by_hand_is_named(
    superuser: Superuser, ended: Payment, table: str
) -> None:
    assert named() is None
    final = events_of(ended.id)[-1].id
    row_id = {PAYMENTS: ended.id, EVENTS: final, EVIDENCE: ended.evidence_id}[table]
    row = superuser.row(table, row_id)
    missed = []
    for column, data_type in superuser.columns(table).items():
        value = other_than(row[column], data_type)
        with superuser.bent(table, row_id, **{column: value}):
            found = named()
        # The fault names this row, or the row that it now refers to.
        names = found is not None and any(
            str(name) in found for name in (ended.id, ended.evidence_id, value)
        )
        if names != (column in columns_of(table)):
            missed.append((column, found))
    assert missed == []
    assert named() is None


def other_than(value: Any, data_type: str) -> object:
    if data_type == "boolean":
        return not value
    for_none = {"bytea": "\\x00", "timestamp with time zone": "2026-01-01T00:00:00Z", "integer": 7}
    if value is None and data_type in for_none:
        return for_none[data_type]
    return another(value, data_type)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(
            ("external_id", "order-2"),
            ("payer_masked", "+2567*****99"),
            ("metadata", '{"cart": 8}'),
        ),
        *(
            ("provider_transaction_id", "9999"),
            ("evidence_id", 1),
            ("final_at", "2026-01-01T00:00:00Z"),
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_column(
    app: Flask, superuser: Superuser, column: str, value: object
) -> None:
    payment = ended_payment(app, ANSWERS["paid"])
    superuser.run(f"UPDATE payments SET {column} = %s WHERE id = %s", value, payment.id)  # noqa: S608  the test's own
    found = named() or ""
    assert found.startswith(f"payments id {payment.id}: ")
    assert column in found


def test_an_open_payments_order_is_covered_from_its_first_event_on(
    app: Flask, superuser: Superuser
) -> None:
    payment_id = an_accepted_payment(rails_of(app, ScriptedProvider())).payment_id
    publish_outbox()
    for change in ("payer_masked = '+2567*****99'", "description = 'Boots'", "external_id = 'b'"):
        kept = superuser.row(PAYMENTS, payment_id)
        superuser.run(f"UPDATE payments SET {change} WHERE id = %s", payment_id)  # noqa: S608  the test's own
        assert (named() or "").startswith(f"payments id {payment_id}: "), change
        superuser.put(PAYMENTS, payment_id, kept)
    assert named() is None


def test_evidence_that_is_gone_is_missing(superuser: Superuser, ended: Payment) -> None:
    assert ended.evidence_id is not None
    superuser.remove(EVIDENCE, ended.evidence_id)
    # The event covers it. An event of an earlier release does not, but the loss is found as well.
    assert str(ended.evidence_id) in (named() or "")
    uncover(superuser)
    assert (named() or "").startswith(f"{EVIDENCE} id {ended.evidence_id}: ")


def uncover(superuser: Superuser) -> None:
    """Make events as the previous release publishes them."""
    superuser.run("UPDATE events SET content_hash = NULL, covers = NULL")


@pytest.mark.parametrize("verdict", ["SUCCESSFUL", "FAILED", "REFUSED", "PENDING"])
def test_the_verdict_of_an_earlier_releases_evidence_fits_the_end(
    superuser: Superuser, ended: Payment, verdict: str
) -> None:
    uncover(superuser)
    superuser.run(
        "UPDATE provider_exchanges SET verdict = %s WHERE id = %s", verdict, ended.evidence_id
    )
    fits = {"SUCCESSFUL": {"SUCCESSFUL"}, "FAILED": {"FAILED", "REFUSED"}}[ended.status]
    assert (named() is None) == (verdict in fits)


def test_a_refusal_does_not_pass_for_a_failure(app: Flask, superuser: Superuser) -> None:
    """Both end a payment as FAILED; the hash includes which of the two it was."""
    payment = ended_payment(app, ANSWERS["declined"])
    superuser.run(
        "UPDATE provider_exchanges SET verdict = 'REFUSED' WHERE id = %s", payment.evidence_id
    )
    assert (named() or "").startswith(f"{EVIDENCE} id {payment.evidence_id}: ")


def test_another_payments_evidence_is_none(app: Flask, superuser: Superuser) -> None:
    mine, other = (ended_payment(app, ANSWERS["paid"]) for _ in range(2))
    uncover(superuser)
    superuser.run("UPDATE payments SET evidence_id = %s WHERE id = %s", other.evidence_id, mine.id)
    assert (named() or "").startswith(f"{EVIDENCE} id {other.evidence_id}: ")


def test_a_forgotten_payer_is_no_fault_and_another_one_is(app: Flask, superuser: Superuser) -> None:
    payment = ended_payment(app, ANSWERS["paid"])
    assert erase_payer(payment.tenant_id, an_order().payer, keyring(), actor="cli:ada").erased == 1
    assert payment_row(payment.id).payer_masked is None
    assert named() is None
    superuser.run(
        "UPDATE payments SET payer = 'x', payer_index = 'x', payer_masked = '+2567*****99'"
        " WHERE id = %s",
        payment.id,
    )
    assert "payer_masked" in (named() or "")


def test_a_payer_who_was_forgotten_before_the_end_was_told(app: Flask) -> None:
    gateway = rails_of(app, ScriptedProvider())
    payment_id = an_accepted_payment(gateway).payment_id
    advance(gateway)
    make_due(payment_id)
    advance(gateway)
    tenant_id = payment_row(payment_id).tenant_id
    assert erase_payer(tenant_id, an_order().payer, keyring(), actor="cli:ada").erased == 1
    publish_outbox()
    assert named() is None


# --- the checkpoint over it -----------------------------------------------------------------------


@contextmanager
def sealed(app: Flask) -> Iterator[Payment]:
    payment = ended_payment(app, ANSWERS["paid"])
    assert write_checkpoints() == len(events_of(payment.id))
    assert named() is None
    yield payment
    assert "with another digest" in (named() or "")


def test_words_with_a_hash_that_fits_are_not_what_was_sealed(
    app: Flask, superuser: Superuser
) -> None:
    with sealed(app) as payment:
        first = events_of(payment.id)[0].id
        words = superuser.run("SELECT feed_data FROM events WHERE id = %s", first).fetchone()[0]
        changed = words.replace(b'"amount":"1000.00"', b'"amount":"1000000.00"')
        assert changed != words
        superuser.run("UPDATE events SET feed_data = %s WHERE id = %s", changed, first)
        superuser.make_hashes_fit(first)


def test_a_sealed_hash_that_was_taken_away_is_missed(app: Flask, superuser: Superuser) -> None:
    with sealed(app):
        uncover(superuser)


def say_uncovered(superuser: Superuser, payment: Payment, through: int) -> None:
    superuser.run("SET session_replication_role = origin")
    superuser.run(
        "INSERT INTO audit_entries (tenant_id, actor, action, subject_type, subject_id, detail)"
        " VALUES (%s, 'system:migration', 'payment_events.uncovered', 'payment_events', '-',"
        " jsonb_build_object('through', %s::bigint))",
        *(payment.tenant_id, through),
    )
    superuser.run("SET session_replication_role = replica")


def test_hashes_that_a_migration_took_are_missed_by_no_seal_of_before(
    app: Flask, superuser: Superuser
) -> None:
    payment = ended_payment(app, ANSWERS["paid"])
    write_checkpoints()
    last = events_of(payment.id)[-1].id
    uncover(superuser)
    say_uncovered(superuser, payment, last - 1)
    assert "with another digest" in (named() or ""), "it speaks of fewer"
    say_uncovered(superuser, payment, last)
    assert named() is None


def test_one_hash_that_is_left_or_a_later_seal_is_no_migrations_work(
    app: Flask, superuser: Superuser
) -> None:
    payment = ended_payment(app, ANSWERS["paid"])
    first, *_, last = (event.id for event in events_of(payment.id))
    say_uncovered(superuser, payment, last)
    write_checkpoints()
    kept = superuser.row(EVENTS, first)
    superuser.run("UPDATE events SET content_hash = NULL, covers = NULL WHERE id = %s", first)
    assert "with another digest" in (named() or ""), "the seal is later"
    say_uncovered(superuser, payment, last)
    assert "with another digest" in (named() or ""), "the others' are left"
    superuser.put(EVENTS, first, kept)
    assert named() is None


def test_an_event_that_lost_only_its_hash_of_what_it_covers(
    app: Flask, superuser: Superuser
) -> None:
    payment = ended_payment(app, ANSWERS["paid"])
    superuser.run("UPDATE events SET content_hash = NULL WHERE payment_id = %s", payment.id)
    assert "was taken from it" in (named() or "")


@pytest.mark.parametrize("document", ["", "[]", "7", '{"end": 7}', '{"order": 7}', "nonsense"])
def test_a_document_that_is_none_is_named_and_stops_no_walk(
    app: Flask, superuser: Superuser, document: str
) -> None:
    payment = ended_payment(app, ANSWERS["paid"])
    event = events_of(payment.id)[-1 if "order" not in document else 0].id
    superuser.run("UPDATE events SET covers = %s WHERE id = %s", document, event)
    superuser.make_hashes_fit(event)
    assert str(payment.id) in (named() or "")


def test_words_that_are_none_are_named_and_stop_no_walk(app: Flask, superuser: Superuser) -> None:
    payment = ended_payment(app, ANSWERS["paid"])
    event = events_of(payment.id)[-1].id
    superuser.run("UPDATE events SET feed_data = '\\xff' WHERE id = %s", event)
    superuser.make_hashes_fit(event)
    assert "payer_masked" in (named() or "")


# --- new columns ----------------------------------------------------------------------------------


def test_a_new_column_is_in_no_group(superuser: Superuser) -> None:
    superuser.run("ALTER TABLE payments ADD COLUMN tip bigint")
    try:
        with pytest.raises(AssertionError):
            test_each_column_is_covered_or_may_change(superuser, PAYMENTS)
    finally:
        superuser.run("ALTER TABLE payments DROP COLUMN tip")
